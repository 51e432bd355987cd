"""Simulated micrographs: what the simulator says it does, measured on what comes out of it."""

import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import ndimage, signal

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header
from tomoline.settings import Config, SimulateMicrographsSettings, validated
from tomoline.simulation.contaminants import KINDS, MATERIALS, ContaminantSettings, contaminate
from tomoline.simulation.coordinates import density_of_atoms, load_structure, read_atoms
from tomoline.simulation.densities import Density
from tomoline.simulation.micrograph import MicrographSettings, simulate_micrograph
from tomoline.stages import simulate_micrographs

ROOT = Path(__file__).parents[2]
DENSITIES = ROOT / "resources" / "densities"
SILENT = 1e9
NOTHING_ELSE = {
    "amplitude_jitter": 0.0,
    "amorphous": False,
    "ice_gradient": 0.0,
    "mtf_sigma_nyquist": 0.0,
}


@pytest.fixture(scope="module")
def ball() -> Density:
    """A ball of 8 voxels: every view of it is the same."""
    z, y, x = np.ogrid[-12:13, -12:13, -12:13]
    values = np.clip(8.5 - np.sqrt(z**2 + y**2 + x**2), 0, 1).astype(np.float32)
    return Density("ball", values, 8.0, 8.0)


@pytest.mark.parametrize("defocus_um", [0.0, 1.5])
def test_particles_lie_where_the_picks_say_to_half_a_pixel(ball, defocus_um):
    settings = MicrographSettings(
        shape_yx=(150, 211), particles=6, gap=1.6, snr=SILENT, defocus_um=defocus_um,
        **NOTHING_ELSE,
    )  # fmt: skip
    made = simulate_micrograph([ball], settings, seed=3)
    assert len(made.centres_yx) == 6
    # The image of a ball at a known place is even about it: so is its correlation with itself.
    for cy, cx in made.centres_yx:
        if not (20 < cy < 130 and 20 < cx < 190):
            continue
        y, x = round(cy), round(cx)
        dark = made.image.max() - made.image[y - 9 : y + 10, x - 9 : x + 10]
        flipped = signal.fftconvolve(dark - dark.mean(), (dark - dark.mean()), mode="full")
        top = np.array(np.unravel_index(flipped.argmax(), flipped.shape))
        found = np.array([y, x]) + (top - 18) / 2
        assert np.abs(found - [cy, cx]).max() <= 0.5
    middle = ndimage.center_of_mass(np.maximum(made.image.max() - made.image - 1.0, 0))
    if not defocus_um:
        np.testing.assert_allclose(
            middle, np.mean(made.centres_yx, axis=0), atol=0.5
        )  # mass centre of equal balls


def test_the_signal_to_noise_ratio_is_what_was_asked_for(ball):
    settings = MicrographSettings(
        shape_yx=(256, 256), particles=30, snr=0.2, defocus_um=2.0, amorphous=False
    )
    noisy = simulate_micrograph([ball], settings, seed=5)
    clear = simulate_micrograph([ball], MicrographSettings(**{**vars(settings), "snr": SILENT}),
                                seed=5)  # fmt: skip
    y, x = np.ogrid[:256, :256]
    circles = np.zeros((256, 256), bool)
    for (cy, cx), diameter in zip(noisy.centres_yx, noisy.diameters_px, strict=True):
        circles |= np.hypot(y - cy, x - cx) <= diameter / 2
    noise = (noisy.image - clear.image)[circles]
    # Less the slow change of the flux, which is no signal.
    measured = clear.signal[circles].var() / noise.var()
    assert measured == pytest.approx(0.2, rel=0.05)
    assert noisy.snr == 0.2


def test_without_a_ratio_the_noise_is_that_of_the_electrons_counted(ball):
    settings = MicrographSettings(shape_yx=(256, 256), particles=0, dose=30.0, defocus_um=0.0,
                                  ice_nm=30.0, **NOTHING_ELSE)  # fmt: skip
    made = simulate_micrograph([ball], settings, seed=1)
    electrons = 30.0 * 25 * np.exp(-0.1)  # dose, pixel area, 30 of 300 nm of ice
    assert made.image.mean() == pytest.approx(electrons, rel=0.01)
    assert made.image.var() == pytest.approx(electrons, rel=0.05)


def test_no_power_where_the_ctf_is_zero(ball):
    voxel, defocus = 5.0, 2.0
    settings = MicrographSettings(
        shape_yx=(400, 400), particles=0, snr=SILENT, defocus_um=defocus, ice_gradient=0.0,
        mtf_sigma_nyquist=0.0, pixel_size_angstrom=voxel,
    )  # fmt: skip
    image = simulate_micrograph([ball], settings, seed=2).image
    power = np.abs(np.fft.fft2((image - image.mean()) * np.outer(np.hanning(400), np.hanning(400))))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(400), np.fft.fftfreq(400), indexing="ij"))
    ring = np.rint(f * 400).astype(int)
    profile = ndimage.mean(power**2, ring, np.arange(200))
    wavelength, cs = 0.0196875, 2.7e7
    a, b = 0.5 * cs * wavelength**3, wavelength * defocus * 1e4
    for n in (1, 2, 3):
        c = n - np.arcsin(0.07) / np.pi
        zero = np.sqrt((b - np.sqrt(b**2 - 4 * a * c)) / (2 * a)) * voxel * 400
        near = profile[round(zero) - 3 : round(zero) + 4]
        assert abs(int(near.argmin()) - 3) <= 1, n
        assert near.min() < 0.1 * profile[round(zero) - 12 : round(zero) + 13].max(), n


def test_masks_cover_what_takes_electrons_away_and_nothing_else(ball):
    spoilt = ContaminantSettings(carbon_share=1.0, ice_crystals=2, dust=2, gold=3)
    settings = MicrographSettings(shape_yx=(300, 420), particles=0, snr=SILENT, defocus_um=0.0,
                                  dose=40.0, contaminants=spoilt, **NOTHING_ELSE)  # fmt: skip
    made = simulate_micrograph([ball], settings, seed=11)
    mask = made.contamination.mask
    assert {KINDS[k - 1] for k in np.unique(mask) if k} == set(KINDS)
    clean = 40.0 * 25 * np.exp(-40 / 300)
    darker = 1 - made.image / clean
    rim = ndimage.binary_dilation(mask > 0, iterations=3)
    # Less than a nanometre of dust is not masked; it darkens by 2 sigma V t and t / L.
    assert darker[~rim].max() < 2 * 6.526e-3 * 2.0 + 1 / 160
    assert np.median(np.abs(darker[~rim])) < 1e-4
    # A nanometre, the least that is masked, of what takes the least away.
    assert (darker[ndimage.binary_erosion(mask > 0, iterations=2)] > 3e-3).all()
    for k, kind in enumerate(KINDS, 1):
        inside = mask == k
        thickness = made.contamination.thickness_nm[kind]
        assert thickness[inside].min() > 1.0
        assert thickness[~inside & (mask > 0)].max() <= 1.0
        attenuation = np.exp(-thickness / MATERIALS[kind].attenuation_nm)
        assert attenuation[inside].mean() < 0.99


def test_an_edge_of_carbon_lets_no_contrast_in_from_the_other_side(ball):
    spoilt = ContaminantSettings(carbon_share=1.0)
    settings = MicrographSettings(shape_yx=(300, 300), particles=0, snr=SILENT, defocus_um=2.0,
                                  contaminants=spoilt, **NOTHING_ELSE)  # fmt: skip
    made = simulate_micrograph([ball], settings, seed=4)
    far = ~ndimage.binary_dilation(made.contamination.mask > 0, iterations=40)
    assert far.any()
    assert np.ptp(made.image[far]) < 0.03 * made.image[far].mean()


def test_no_particle_is_put_on_what_is_masked(ball):
    spoilt = ContaminantSettings(carbon_share=1.0, ice_crystals=3, dust=2, gold=3)
    settings = MicrographSettings(shape_yx=(300, 300), particles=60, contaminants=spoilt)
    made = simulate_micrograph([ball], settings, seed=6)
    assert made.centres_yx
    for y, x in made.centres_yx:
        assert made.contamination.mask[round(y), round(x)] == 0


def test_contaminants_fill_the_share_that_they_say():
    rng = np.random.default_rng(0)
    shares = [
        float((contaminate((128, 128), 1.0, ContaminantSettings(carbon_share=1.0), rng).mask > 0)
              .mean()) for _ in range(20)
    ]  # fmt: skip
    assert all(0.03 < s < 0.62 for s in shares)


def settings_for(**more):
    return SimulateMicrographsSettings(
        **{"structures": ["1bxn", "3qm1"], "micrographs": 2, "shape_yx": (96, 120),
           "pixel_size_angstrom": 8.0, "particles": (4, 8), "carbon_share": 1.0, **more}
    )  # fmt: skip


def written(folder: Path, settings) -> Path:
    simulate_micrographs.run({"densities": DENSITIES}, {"conditions": folder / "conditions.json"},
                             settings=settings)  # fmt: skip
    return folder


def test_a_data_set_on_disk_says_all_of_itself(tmp_path):
    folder = written(tmp_path / "a", settings_for())
    known = json.loads((folder / "conditions.json").read_text())
    assert known["pixel_size_angstrom"] == 8.0
    # The larger of the two, 2 x 75 A, as its map has it.
    largest = load_structure(DENSITIES, "1bxn", 8.0)
    assert known["particle_diameter_angstrom"] == pytest.approx(16 * largest.radius_vox, abs=0.1)
    assert known["kinds"] == {"1": "carbon", "2": "ice", "3": "dust", "4": "gold"}
    for row in known["micrographs"]:
        header = read_header(folder / row["file"])
        assert header.voxel_size_angstrom == pytest.approx(8.0)
        assert header.shape_zyx == (1, 96, 120)
        lines = (folder / row["picks"]).read_text().splitlines()
        assert lines[0] == "x_px,y_px,diameter_px,structure"
        assert len(lines) - 1 == sum(row["particles"].values())
        for line in lines[1:]:
            x, y, _, name = line.split(",")
            assert 0 <= float(x) < 120
            assert 0 <= float(y) < 96
            assert name in {"1bxn", "3qm1"}
        mask = np.asarray(Image.open(folder / row["mask"]))
        assert mask.shape == (96, 120)
        assert float((mask > 0).mean()) == pytest.approx(row["contaminated_share"], abs=1e-4)
        assert (mask == 1).any() == (row["contaminants"]["carbon"] > 0)


def test_the_same_seed_gives_the_same_bytes_and_another_name_others(tmp_path):
    one, two = (written(tmp_path / k / "set", settings_for()) for k in "ab")
    other = written(tmp_path / "other", settings_for())
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir())
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names)
    first = "micrograph_0001.mrc"
    assert (one / first).read_bytes() != (other / first).read_bytes()


def test_a_micrograph_without_particles_has_noise_and_an_empty_list(tmp_path):
    folder = written(tmp_path / "empty", settings_for(particles=(0, 0), snr=(0.1, 0.1)))
    assert (folder / "micrograph_0001_picks.csv").read_text().count("\n") == 1
    assert np.asarray(open_volume(folder / "micrograph_0001.mrc")).std() > 0


def pdb_of(path: Path, places, element: str = "C") -> Path:
    structure, model, chain = gemmi.Structure(), gemmi.Model(1), gemmi.Chain("A")
    for k, (z, y, x) in enumerate(places, 1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(k, " ")
        atom.name, atom.element = "CA", gemmi.Element(element)
        atom.pos = gemmi.Position(x, y, z)
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    if path.suffix == ".cif":
        structure.setup_entities()
        structure.make_mmcif_document().write_file(str(path))
    else:
        structure.write_pdb(str(path))
    return path


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_atoms_lie_where_the_model_says_about_their_mass_centre(tmp_path, suffix):
    places = np.array([[0.0, 0.0, -30.0], [0.0, 0.0, 30.0], [0.0, 21.0, 0.0]])
    atoms, weights = read_atoms(pdb_of(tmp_path / f"model{suffix}", places))
    np.testing.assert_allclose(atoms, places, atol=1e-3)
    np.testing.assert_array_equal(weights, 6.0)
    values = density_of_atoms(atoms, weights, 3.0)
    middle = (np.asarray(values.shape) - 1) / 2
    np.testing.assert_allclose(ndimage.center_of_mass(values), middle, atol=0.02)
    assert values.sum() == pytest.approx(18.0, rel=1e-3)
    peaks = np.argwhere((values == ndimage.maximum_filter(values, 5)) & (values > 0.2))
    expected = (places - places.mean(0)) / 3.0 + middle
    assert len(peaks) == 3
    for peak in peaks:
        assert np.linalg.norm(expected - peak, axis=1).min() < 1.0


def test_a_users_model_is_on_the_scale_of_the_shipped_maps(tmp_path):
    # A cube of 60 A with an atom of carbon every 2 A: its inside is 1.
    grid = np.stack(np.meshgrid(*[np.arange(0, 60, 2.0)] * 3), -1).reshape(-1, 3)
    made = load_structure(DENSITIES, str(pdb_of(tmp_path / "cube.cif", grid)), 4.0)
    middle = made.values.shape[0] // 2
    inside = made.values[(slice(middle - 4, middle + 5),) * 3]
    assert inside.mean() == pytest.approx(1.0, abs=0.1)
    assert made.radius_vox * 4.0 == pytest.approx(30 * np.sqrt(3), abs=6.0)


@pytest.mark.parametrize(("text", "expected"), [("", "atoms"), ("nothing\n", "atoms")])
def test_a_model_that_holds_nothing_is_refused(tmp_path, text, expected):
    path = tmp_path / "bad.pdb"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        load_structure(DENSITIES, str(path), 5.0)


def test_what_cannot_be_is_refused_before_the_first_job():
    for bad in ({"particles": [9, 3]}, {"sets": {"../x": {}}}, {"sets": {"a": {"dose": [0, 1]}}},
                {"shape_yx": [8, 8]}, {"sets": {"a": {"nmae": 1}}}):  # fmt: skip
        with pytest.raises(InputError):
            validated(Config, {"simulate_micrographs": bad}, source="config")
    with pytest.raises(InputError, match="no such file"):
        load_structure(DENSITIES, "mine.pdb", 5.0)
    with pytest.raises(InputError, match="1bxn"):
        load_structure(DENSITIES, "9xyz", 5.0)


def test_the_shipped_recipe_holds_many_sources():
    recipe = yaml.safe_load((ROOT / "config" / "simulate" / "micrographs.yaml").read_text())
    sets = validated(Config, recipe, source="recipe").simulate_micrographs.folders
    assert len(sets) == 18
    assert sets["micrographs/4cr2"].micrographs == 12
    assert all(len(s.structures) >= 1 for s in sets.values())
