"""The simulator against analytic truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoline.errors import InputError
from tomoline.io.annotations import read_truth
from tomoline.io.mrc import open_volume
from tomoline.simulation.densities import (
    EXTRA_CLASSES,
    SHREC_CLASSES,
    effective_radius,
    load_density,
)
from tomoline.simulation.phantom import PhantomSettings, make_phantom, rotate_density
from tomoline.simulation.projection import (
    TiltSettings,
    contrast_transfer,
    project,
    projection_matrix,
    tilt_series,
)
from tomoline.simulation.reconstruction import back_project, ramp_filter
from tomoline.simulation.shrec import write_shrec
from tomoline.simulation.tomogram import simulate_tomogram

DENSITIES = Path(__file__).parents[2] / "resources" / "densities"
SMALL = PhantomSettings(shape_zyx=(40, 56, 56), particles=20)


@pytest.fixture(scope="module")
def structures():
    return [load_density(DENSITIES, name) for name in ("1bxn", "3qm1", "2cg9")]


def test_all_shipped_densities_are_centred_and_normalised():
    for name in SHREC_CLASSES + EXTRA_CLASSES:
        density = load_density(DENSITIES, name)
        mask = density.values > 0.1 * density.values.max()
        weights = density.values * mask
        grid = np.indices(weights.shape) - weights.shape[0] // 2
        centre = (grid * weights).sum((1, 2, 3)) / weights.sum()
        assert np.abs(centre).max() < 0.1, name
        assert weights.shape[0] % 2 == 1
        assert np.percentile(density.values[mask], 99) == pytest.approx(1, abs=0.05)


def test_unknown_density_lists_the_known_ones():
    with pytest.raises(InputError, match="1bxn"):
        load_density(DENSITIES, "nothing")


@pytest.mark.parametrize("radius", [6.0, 10.0])
def test_effective_radius_of_a_ball_is_its_radius(radius):
    grid = np.indices((31, 31, 31)) - 15
    assert effective_radius((grid**2).sum(0) <= radius**2) == pytest.approx(radius, rel=0.06)


def test_rotation_acts_on_x_y_z():
    cube = np.zeros((21, 21, 21), np.float32)
    cube[10, 10, 16] = 1  # at x = +6
    turned = rotate_density(cube, Rotation.from_euler("z", 90, degrees=True), np.zeros(3))
    assert np.unravel_index(turned.argmax(), turned.shape) == (10, 16, 10)  # at y = +6


def test_particles_do_not_overlap_and_lie_where_the_table_says(structures):
    phantom = make_phantom(structures, SMALL, np.random.default_rng(3))
    assert len(phantom.classes) > 5
    counts = np.bincount(phantom.occupancy.ravel())[1:]
    assert (counts > 0).all()
    for k, (centre, name) in enumerate(zip(phantom.centres_zyx, phantom.classes, strict=True)):
        voxels = np.argwhere(phantom.occupancy == k + 1)
        weights = phantom.density[tuple(voxels.T)]
        middle = (voxels * weights[:, None]).sum(0) / weights.sum()
        assert np.linalg.norm(middle - centre) < 0.5
        label = [s.name for s in structures].index(name) + 1
        assert (phantom.class_mask[tuple(voxels.T)] == label).all()


def test_projection_keeps_mass_and_follows_the_tilt():
    volume = np.zeros((21, 3, 41), np.float32)
    volume[16, 1, 24] = 1  # z = +6, x = +4 from the middle
    tilts = np.array([-50.0, 0.0, 30.0])
    images = project(projection_matrix(21, 41, tilts), volume)
    np.testing.assert_allclose(images.sum((1, 2)), 1, rtol=1e-5)
    expected = 4 * np.cos(np.deg2rad(tilts)) + 6 * np.sin(np.deg2rad(tilts)) + 20
    np.testing.assert_allclose((images[:, :, 1] * np.arange(41)).sum(1), expected, atol=1e-4)


def test_back_projection_returns_a_point_to_its_place():
    volume = np.zeros((33, 5, 49), np.float32)
    volume[20, 2, 30] = 1
    tilts = TiltSettings(tilt_min_deg=-60, tilt_max_deg=60, tilt_step_deg=2).tilts_deg
    matrix = projection_matrix(33, 49, tilts)
    back = back_project(matrix, project(matrix, volume), 33)
    assert np.unravel_index(back.argmax(), back.shape) == (20, 2, 30)


def test_reconstruction_is_empty_in_the_missing_wedge():
    rng = np.random.default_rng(0)
    tilts = TiltSettings(tilt_min_deg=-60, tilt_max_deg=60, tilt_step_deg=2).tilts_deg
    matrix = projection_matrix(64, 64, tilts)
    volume = rng.standard_normal((64, 8, 64)).astype(np.float32)
    back = back_project(matrix, project(matrix, volume), 64)
    window = np.hanning(64)
    power = np.abs(np.fft.fftn(back * window[:, None, None] * window, axes=(0, 2))) ** 2
    fz, fx = np.fft.fftfreq(64)[:, None, None], np.fft.fftfreq(64)[None, None]
    radius, angle = np.hypot(fz, fx), np.degrees(np.arctan2(np.abs(fz), np.abs(fx)))
    ring = (radius > 0.1) & (radius < 0.3) & np.ones_like(power, bool)
    missing = power[ring & (angle > 66)].mean()
    seen = power[ring & (angle < 54)].mean()
    assert missing < 0.1 * seen


def test_ramp_is_straight_up_to_the_cutoff():
    ramp = ramp_filter(200, cutoff=0.35, falloff=0.05)
    np.testing.assert_allclose(ramp[10:60], np.arange(10, 60) / 200, rtol=1e-5)
    assert ramp[-1] < 0.05


def test_noise_has_the_variance_that_was_asked_for(structures):
    phantom = make_phantom(structures, SMALL, np.random.default_rng(1))
    settings = TiltSettings(snr=0.1, dose_exponent=0.0)
    images = project(projection_matrix(40, 56, settings.tilts_deg), phantom.density)
    noisy = tilt_series(images, settings, np.random.default_rng(2))
    noise = noisy + images  # particles come out negative
    middle = images[len(images) // 2]
    assert middle.var() / noise.var() == pytest.approx(0.1, rel=0.03)


def test_contrast_transfer_has_its_zero_where_theory_puts_it():
    settings = TiltSettings(defocus_um=4.0, phase_flipped=False)
    ctf = contrast_transfer((4096, 8), settings, amplitude_contrast=0.0)[:2048, 0]
    first = int(np.flatnonzero((ctf[5:-1] > 0) & (ctf[6:] <= 0))[0]) + 5
    expected = 1 / np.sqrt(0.0196875 * 4e4)  # sin(pi lambda dz k^2) = 0, Cs negligible here
    assert first / 4096 / 10 == pytest.approx(expected, rel=0.01)


def test_particles_are_dark(structures):
    made = simulate_tomogram(structures, SMALL, TiltSettings(snr=5.0), seed=5)
    inside = made.phantom.class_mask > 0
    volume = made.reconstruction
    assert volume[inside].mean() < volume[~inside].mean() - volume[~inside].std()


def test_same_seed_same_bytes_and_shrec_layout(structures, tmp_path):
    for folder in ("a", "b"):
        made = simulate_tomogram(structures, SMALL, TiltSettings(), seed=9)
        write_shrec(tmp_path / folder, made)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted([
        "class_mask.mrc", "conditions.json", "grandmodel.mrc", "occupancy_mask.mrc",
        "particle_locations.txt", "reconstruction.mrc",
    ])  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = read_truth(tmp_path / "a" / "particle_locations.txt")
    occupancy = np.asarray(open_volume(tmp_path / "a" / "occupancy_mask.mrc"))
    assert occupancy.max() == len(table)
    assert json.loads((tmp_path / "a" / "conditions.json").read_text())["seed"] == 9
    np.testing.assert_allclose(
        table[["z_vox", "y_vox", "x_vox"]], made.phantom.centres_zyx, atol=1e-3
    )
