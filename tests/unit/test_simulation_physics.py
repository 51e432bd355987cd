"""What the simulator says it does, measured on what comes out of it."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoline.io.annotations import read_truth
from tomoline.io.mrc import open_volume
from tomoline.simulation.densities import load_density
from tomoline.simulation.distractors import KINDS, DistractorSettings, Ice, make_scenery, solvent
from tomoline.simulation.phantom import PhantomSettings, make_phantom, rotate_density
from tomoline.simulation.projection import (
    TiltSettings,
    noise_growth,
    project,
    projection_matrix,
    recorded_sd,
    tilt_series,
)
from tomoline.simulation.reconstruction import back_project
from tomoline.simulation.shrec import write_shrec
from tomoline.simulation.tomogram import random_conditions, simulate_tomogram

DENSITIES = Path(__file__).parents[2] / "resources" / "densities"
SILENT = 1e12  # a signal-to-noise ratio without noise
ONE_TILT = {"tilt_min_deg": 0.0, "tilt_max_deg": 0.0}


@pytest.fixture(scope="module")
def structures():
    return [load_density(DENSITIES, name) for name in ("4cr2", "1u6g", "3cf3")]


@pytest.fixture(scope="module")
def clear(structures):
    """A tomogram almost without noise, of a few turned particles."""
    phantom = PhantomSettings(shape_zyx=(48, 96, 96), particles=12, amplitude_jitter=0.0)
    tilt = TiltSettings(snr=1e4, tilt_min_deg=-48, tilt_max_deg=60, tilt_step_deg=2)
    return simulate_tomogram(structures, phantom, tilt, seed=4)


def transfer(settings: TiltSettings, edge: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Power that a white projection keeps, by radius; and the radii in cycles a pixel."""
    projection = np.random.default_rng(0).standard_normal((1, edge, edge)).astype(np.float32)
    image = tilt_series(projection, settings, np.random.default_rng(1))
    kept = np.abs(np.fft.fft2(image[0])) ** 2 / np.abs(np.fft.fft2(projection[0])) ** 2
    f = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.fftfreq(edge)[None])
    bins = np.arange(0, 0.5, 1 / edge)
    middle = np.digitize(f.ravel(), bins)
    ratio = np.array([np.median(kept.ravel()[middle == k]) for k in range(1, len(bins))])
    return ratio, bins[:-1] + 0.5 / edge


@pytest.mark.parametrize("flipped", [True, False])
def test_an_untilted_projection_loses_what_the_ctf_has_no_transfer_for(flipped):
    voxel, defocus = 5.0, 2.0
    settings = TiltSettings(**ONE_TILT, snr=SILENT, defocus_um=defocus, phase_flipped=flipped,
                            voxel_size_angstrom=voxel)  # fmt: skip
    power, f = transfer(settings)
    # sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + asin 0.07) = 0, solved for k^2
    wavelength, dz, cs = 0.0196875, defocus * 1e4, 2.7e7
    a, b = 0.5 * cs * wavelength**3, wavelength * dz
    for n in (1, 2, 3):
        c = n - np.arcsin(0.07) / np.pi
        zero = np.sqrt((b - np.sqrt(b**2 - 4 * a * c)) / (2 * a)) * voxel
        at = int(np.argmin(np.abs(f - zero)))
        near = power[at - 3 : at + 4]
        assert abs(int(near.argmin()) - 3) <= 1, n
        assert near.min() < 0.1 * power[at - 9 : at + 10].max(), n


def test_the_detector_blurs_as_the_formula_says():
    power, f = transfer(TiltSettings(**ONE_TILT, snr=SILENT, mtf_sigma_nyquist=1.2))
    np.testing.assert_allclose(power, np.exp(-2 * 1.2 * (f / 0.5) ** 2), rtol=0.05)


def test_damage_takes_fine_detail_of_late_images_first():
    settings = TiltSettings(tilt_min_deg=0, tilt_max_deg=3, snr=SILENT, dose_per_tilt=40.0)
    image = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    shown = -tilt_series(image, settings, np.random.default_rng(1))
    left = np.abs(np.fft.rfft2(shown) / np.fft.rfft2(image))
    k = np.array([8, 24]) / 64 / 10
    critical = 0.245 * k**-1.665 + 2.81
    for number, dose in enumerate((20.0, 60.0)):
        np.testing.assert_allclose(
            left[number, 0, [8, 24]], np.exp(-dose / 2 / critical), rtol=0.01
        )


def test_noise_grows_with_the_path_through_the_ice():
    settings = TiltSettings(tilt_min_deg=0, tilt_max_deg=60, tilt_step_deg=60, snr=1.0,
                            dose_exponent=0.0, mean_free_path_nm=300.0)  # fmt: skip
    assert noise_growth(settings, 150.0) == pytest.approx([1.0, np.exp(150 * (2 - 1) / 600)])
    nothing = np.zeros((2, 200, 200), np.float32)
    signal = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
    images = tilt_series(nothing, settings, np.random.default_rng(1), signal=signal,
                         thickness_nm=150.0)  # fmt: skip
    assert images[1].std() / images[0].std() == pytest.approx(np.exp(0.25), rel=0.02)


def test_the_missing_wedge_begins_at_the_last_tilt():
    rng, n = np.random.default_rng(0), 128
    volume = rng.standard_normal((n, 3, n)).astype(np.float32)
    volume *= (np.hanning(n)[:, None, None] * np.hanning(n)).astype(np.float32)
    tilts = TiltSettings(tilt_min_deg=-60, tilt_max_deg=48, tilt_step_deg=1.5).tilts_deg
    matrix = projection_matrix(n, n, tilts)
    back = back_project(matrix, project(matrix, volume), n, cutoff=0.5)
    power = (np.abs(np.fft.fftn(back, axes=(0, 2))) ** 2).sum(1)
    power /= (np.abs(np.fft.fftn(volume, axes=(0, 2))) ** 2).sum(1)
    fz, fx = np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None]
    ring = (np.hypot(fz, fx) > 0.2) & (np.hypot(fz, fx) < 0.35)
    # an image at tilt t measures the frequencies (fz, fx) = f (sin t, cos t)
    angle = np.degrees(np.arctan2(fz * np.sign(fx + 1e-9), np.abs(fx)))
    of = {a: np.median(power[ring & (np.abs(angle - a) < 1.0)]) for a in range(-88, 89, 2)}
    seen = np.median([v for a, v in of.items() if -56 < a < 44])
    assert all(v < 0.03 * seen for a, v in of.items() if a < -66 or a > 54)
    edges = [a for a in of if a - 2 in of and (of[a] > seen / 2) != (of[a - 2] > seen / 2)]
    assert len(edges) == 2
    assert edges[0] - 1 == pytest.approx(-60, abs=2)
    assert edges[1] - 1 == pytest.approx(48, abs=2)


def test_the_reconstruction_lies_where_the_phantom_does(clear):
    dark = -clear.reconstruction
    spectrum = np.conj(np.fft.rfftn(clear.phantom.density - clear.phantom.density.mean()))
    correlation = np.fft.irfftn(
        np.fft.rfftn(dark - dark.mean()) * spectrum, s=dark.shape, axes=(0, 1, 2)
    )
    top = np.unravel_index(correlation.argmax(), dark.shape)
    for axis in range(3):
        line = [correlation[tuple(np.add(top, d * (np.arange(3) == axis)) % dark.shape)]
                for d in (-1, 0, 1)]  # fmt: skip
        fine = 0.5 * (line[0] - line[2]) / (line[0] - 2 * line[1] + line[2])
        shift = (top[axis] + dark.shape[axis] // 2) % dark.shape[axis] - dark.shape[axis] // 2
        assert abs(shift + fine) < 0.2, axis


def test_particles_lie_turned_as_the_table_says(clear, structures, tmp_path):
    write_shrec(tmp_path, clear)
    table = read_truth(tmp_path / "particle_locations.txt")
    angles = np.loadtxt(tmp_path / "particle_locations.txt", usecols=(4, 5, 6))
    dark = -np.asarray(open_volume(tmp_path / "reconstruction.mrc"))
    by_name = {s.name: s for s in structures}
    better, right = 0, []
    for row, (_, particle) in zip(angles, table.iterrows(), strict=True):
        centre = particle[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
        true = Rotation.from_euler("ZXZ", row, degrees=True)
        own = correlation_with(dark, by_name[particle["class"]].values, true, centre)
        turn = Rotation.from_rotvec(np.deg2rad(90) * np.eye(3)[int(row[0]) % 3])
        others = [true * turn, true.inv(), true * Rotation.from_euler("y", 45, degrees=True)]
        rest = [correlation_with(dark, by_name[particle["class"]].values, other, centre)
                for other in others]  # fmt: skip
        right.append(own)
        better += own > max(rest)
    assert len(right) >= 6
    assert np.mean(right) > 0.6
    assert better == len(right)


def correlation_with(volume, template, rotation, centre):
    place = np.rint(centre).astype(int)
    turned = rotate_density(template, rotation, centre - place)
    half = turned.shape[0] // 2
    low = np.maximum(place - half, 0)
    high = np.minimum(place + half + 1, volume.shape)
    box = volume[tuple(map(slice, low, high))]
    own = turned[tuple(map(slice, low - place + half, high - place + half))]
    ball = ndimage.binary_dilation(own > 0.1, iterations=2)
    return np.corrcoef(box[ball], own[ball])[0, 1]


@pytest.mark.parametrize("snr", [0.5, 0.03])
def test_the_snr_is_that_of_the_particles_as_recorded(structures, snr):
    distractors = DistractorSettings(gold_beads=4, vesicles=1, solvent_rms=0.1)
    wanted = PhantomSettings(shape_zyx=(60, 128, 128), particles=40, distractors=distractors)
    phantom = make_phantom(structures, wanted, np.random.default_rng(1))
    assert {p.kind for p in phantom.scenery.placed} >= {"fiducial", "vesicle"}
    optics = {**ONE_TILT, "defocus_um": 2.5, "mtf_sigma_nyquist": 0.5}
    alone = phantom.density - phantom.scenery.density
    matrix = projection_matrix(60, 128, np.zeros(1))
    series = {
        level: tilt_series(project(matrix, volume), TiltSettings(**optics, snr=level),
                           np.random.default_rng(2), signal=phantom.signal)
        for level, volume in ((snr, phantom.specimen), (SILENT, phantom.specimen))
    }  # fmt: skip
    noise = series[snr] - series[SILENT]
    shown = tilt_series(project(matrix, alone), TiltSettings(**optics, snr=SILENT),
                        np.random.default_rng(2))  # fmt: skip
    assert shown.var() / noise.var() == pytest.approx(snr, rel=0.05)
    settings = TiltSettings(**optics, snr=snr)
    assert recorded_sd(phantom.signal, settings) ** 2 / noise.var() == pytest.approx(snr, rel=0.03)
    # a defocused image keeps a part of the projection's variance only
    assert recorded_sd(phantom.signal, settings) < 0.7 * phantom.signal.std()


def test_a_tomogram_without_particles_has_the_noise_of_a_usual_one(structures):
    tilt = TiltSettings(snr=0.2)
    shape = (60, 96, 96)
    empty, usual = (
        simulate_tomogram(structures, PhantomSettings(shape_zyx=shape, particles=n), tilt, seed=3)
        for n in (0, 28)
    )
    assert not empty.phantom.classes
    assert not empty.phantom.class_mask.any()
    background = usual.reconstruction[usual.phantom.class_mask == 0]
    assert empty.reconstruction.std() == pytest.approx(background.std(), rel=0.35)


@pytest.fixture(scope="module")
def crowded(structures):
    """Everything at once, in tilted ice with empty volume above and below."""
    distractors = DistractorSettings(
        vesicles=3, sheets=1, gold_beads=6, contaminants=3, filaments=1, solvent_rms=0.05
    )
    settings = PhantomSettings(
        shape_zyx=(80, 128, 128), particles=60, ice_thickness_nm=50.0, ice_tilt_deg=(3.0, -2.0),
        distractors=distractors,
    )  # fmt: skip
    return simulate_tomogram(structures, settings, TiltSettings(snr=1.0), seed=11)


def test_gold_is_darker_than_protein(crowded):
    kinds, volume = crowded.phantom.scenery.kinds, crowded.reconstruction
    gold = volume[kinds == KINDS.index("fiducial") + 1].mean()
    protein = volume[crowded.phantom.class_mask > 0].mean()
    around = volume[(kinds == 0) & (crowded.phantom.class_mask == 0)].mean()
    assert around - gold > 4 * (around - protein) > 0


def test_distractors_and_particles_do_not_meet_and_the_truth_knows_particles_only(crowded):
    phantom = crowded.phantom
    assert {p.kind for p in phantom.scenery.placed} == set(KINDS)
    assert len(phantom.classes) > 10
    assert not ((phantom.scenery.kinds > 0) & (phantom.occupancy > 0)).any()
    assert phantom.occupancy.max() == len(phantom.classes)
    numbers = np.unique(phantom.scenery.numbers)
    assert len(numbers) == len(phantom.scenery.placed) + 1


def test_particles_and_solvent_lie_in_the_ice(crowded):
    phantom = crowded.phantom
    z, y, x = np.indices(phantom.density.shape)
    rise = np.tan(np.deg2rad(3.0)) * (y - 63.5) + np.tan(np.deg2rad(-2.0)) * (x - 63.5)
    height = z - 39.5 - rise
    assert np.abs(height[phantom.class_mask > 0]).max() <= 25
    assert not phantom.solvent[np.abs(height) > 25.01].any()
    assert phantom.solvent[np.abs(height) < 24].std() == pytest.approx(0.05, rel=0.2)
    # above and below there is room that holds nothing but contamination
    outside = (np.abs(height) > 27) & (phantom.scenery.kinds != KINDS.index("contamination") + 1)
    assert np.abs(phantom.density[outside]).max() < 0.16


def test_a_bilayer_shows_two_leaflets_where_voxels_are_fine():
    nm = 0.4
    wanted = DistractorSettings(vesicles=1, vesicle_radius_nm=(14.0, 14.0))
    ice = Ice((100, 100, 100))
    scenery = make_scenery(wanted, ice, nm, np.random.default_rng(2))
    centre = scenery.placed[0].centre_zyx
    start = np.rint(centre).astype(int)
    profile = scenery.density[start[0], start[1], start[2] :]
    if len(profile) < 50:  # the wall is nearer on the other side of the volume
        profile = scenery.density[start[0], start[1], start[2] :: -1]
    peaks = np.flatnonzero((profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])) + 1
    assert len(peaks) == 2
    # 4 to 5 nm thick, of which head groups take half a nanometre on each side; the wall is cut
    # a little aslant
    assert 2.9 <= (peaks[1] - peaks[0]) * nm <= 4.8
    assert profile[peaks[0] : peaks[1]].min() < 0.3 * profile[peaks].min()


def test_coarser_voxels_hold_the_same_membrane():
    masses = []
    for nm in (0.5, 1.0):
        ice = Ice((round(60 / nm),) * 3)
        wanted = DistractorSettings(vesicles=1, vesicle_radius_nm=(15.0, 15.0))
        scenery = make_scenery(wanted, ice, nm, np.random.default_rng(0))
        masses.append(float(scenery.density.sum()) * nm**3)
    assert masses[0] == pytest.approx(masses[1], rel=0.1)


def test_solvent_is_correlated_and_of_the_rms_wanted():
    noise = solvent(0.1, Ice((64, 64, 64)), 0.5, np.random.default_rng(0))
    assert noise.std() == pytest.approx(0.1, rel=0.02)
    assert np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(noise[:, :, :-12].ravel(), noise[:, :, 12:].ravel())[0, 1]) < 0.05


def test_vesicles_and_gold_are_listed_where_wanted(crowded, tmp_path):
    names = ["4cr2", "1u6g", "3cf3"]
    write_shrec(tmp_path / "a", crowded, classes=names)
    write_shrec(tmp_path / "b", crowded, classes=names, list_distractors=True)
    plain, listed = (read_truth(tmp_path / f / "particle_locations.txt") for f in "ab")
    n = len(plain)
    assert set(plain["class"]) <= set(names)
    assert listed[:n].equals(plain)
    assert set(listed["class"][n:]) == {"vesicle", "fiducial"}
    occupancy, labels = (
        np.asarray(open_volume(tmp_path / "b" / f"{x}_mask.mrc")) for x in ("occupancy", "class")
    )
    assert occupancy.max() == len(listed)
    for _, row in listed[n:].iterrows():
        voxels = occupancy == row["id"]
        assert voxels.any()
        assert (labels[voxels] == (4 if row["class"] == "vesicle" else 5)).all()
        if row["class"] == "fiducial":
            middle = np.argwhere(voxels).mean(0)
            assert np.abs(middle - row[["z_vox", "y_vox", "x_vox"]].to_numpy(float)).max() < 1.5
    before = np.asarray(open_volume(tmp_path / "a" / "occupancy_mask.mrc"))
    assert np.array_equal(before[before > 0], occupancy[before > 0])


def test_faults_of_a_microscope_leave_the_truth_in_its_place(structures):
    phantom = PhantomSettings(shape_zyx=(48, 64, 64), particles=6)
    faults = {"rotation_sd_deg": 0.4, "tilt_error_sd_deg": 0.4, "drift_vox": 0.8,
              "missing_tilts": (3, 20), "defocus_um": 2.0, "defocus_sd_um": 0.2,
              "defocus_ramp": True, "dose_per_tilt": 2.0, "dose_weighted": True}  # fmt: skip
    made = simulate_tomogram(structures, phantom, TiltSettings(snr=50.0, **faults), seed=2)
    ideal = simulate_tomogram(structures, phantom, TiltSettings(snr=50.0), seed=2)
    assert len(made.tilt_settings.tilts_deg) == 39
    spectra = [np.fft.rfftn(m.reconstruction - m.reconstruction.mean()) for m in (made, ideal)]
    shape = ideal.reconstruction.shape
    correlation = np.fft.irfftn(spectra[0] * np.conj(spectra[1]), s=shape, axes=(0, 1, 2))
    top = np.array(np.unravel_index(correlation.argmax(), correlation.shape))
    shift = (top + 24) % np.array([48, 64, 64]) - 24
    assert np.abs(shift).max() <= 1
    assert np.corrcoef(made.reconstruction.ravel(), ideal.reconstruction.ravel())[0, 1] < 0.95


def test_inverted_contrast_turns_the_signal_over(structures):
    phantom = PhantomSettings(shape_zyx=(40, 56, 56), particles=6)
    made = simulate_tomogram(structures, phantom, TiltSettings(snr=50.0, inverted=True), seed=2)
    inside = made.phantom.class_mask > 0
    assert made.reconstruction[inside].mean() > made.reconstruction[~inside].mean()


def test_random_conditions_cover_what_they_promise():
    drawn = [random_conditions(seed, (80, 112, 112)) for seed in range(600)]
    objects = [p.distractors for p, _, _ in drawn]
    shares = {
        "membranes": (np.mean([d.vesicles + d.sheets > 0 for d in objects]), 0.5),
        "gold": (np.mean([d.gold_beads > 0 for d in objects]), 0.33),
        "filaments": (np.mean([d.filaments > 0 for d in objects]), 0.2),
        "contamination": (np.mean([d.contaminants > 0 for d in objects]), 0.2),
        "empty": (np.mean([p.particles == 0 for p, _, _ in drawn]), 0.03),
    }
    for name, (found, wanted) in shares.items():
        assert found == pytest.approx(wanted, abs=0.07 if wanted > 0.1 else 0.025), name
    snr = np.array([t.snr for _, t, _ in drawn])
    assert 0.03 <= snr.min() < 0.04
    assert 2.5 < snr.max() <= 3.0
    flips = {t.phase_flipped for _, t, _ in drawn if t.defocus_um > 0}
    assert flips == {True, False}
    assert drawn == [random_conditions(seed, (80, 112, 112)) for seed in range(600)]
    bare = [random_conditions(s, (80, 112, 112), distractors=0.0)[0] for s in range(50)]
    assert not any(p.distractors.any_objects for p in bare)


def test_everything_follows_from_the_seed(structures):
    phantom, tilt, radial = random_conditions(8, (40, 64, 64))
    first, second = (
        simulate_tomogram(structures, phantom, tilt, filter_settings=radial, seed=8)
        for _ in range(2)
    )
    assert first.reconstruction.tobytes() == second.reconstruction.tobytes()
    other = simulate_tomogram(structures, phantom, tilt, filter_settings=radial, seed=9)
    assert first.reconstruction.tobytes() != other.reconstruction.tobytes()


def test_densities_of_other_voxel_sizes_have_the_same_mass_and_size():
    usual = load_density(DENSITIES, "4cr2")
    for voxel in (5.0, 13.5):
        other = load_density(DENSITIES, "4cr2", voxel)
        scale = (voxel / 10) ** 3
        solid = (other.values > 0.3).sum() * scale / (usual.values > 0.3).sum()
        assert solid == pytest.approx(1, rel=0.15)
        assert other.radius_vox * voxel == pytest.approx(usual.radius_vox * 10, rel=0.12)
