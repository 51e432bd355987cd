"""Simulated data sets on disk: variants, subtomograms with truth, provenance, shipped recipes."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from scipy import ndimage

from tomoline.errors import InputError
from tomoline.io.annotations import read_truth
from tomoline.io.mrc import open_volume, read_header
from tomoline.io.subtomograms import join_simulated, open_simulated, open_subtomograms
from tomoline.settings import Config, SimulateSettings, validated
from tomoline.simulation.densities import SHREC_CLASSES, known_densities
from tomoline.stages import simulate, simulate_subtomograms
from tomoline.stages.simulate_subtomograms import split_of

ROOT = Path(__file__).parents[2]
DENSITIES = ROOT / "resources" / "densities"
RECIPES = [
    path for path in sorted((ROOT / "config" / "simulate").glob("*.yaml"))
    if "simulate" in yaml.safe_load(path.read_text())
]  # fmt: skip
SMALL = {"shape_zyx": (48, 72, 72), "particles": 30, "conditions": "fixed", "tomograms": 2,
         "classes": ["1bxn", "3qm1"]}  # fmt: skip


def made(folder: Path, settings: SimulateSettings, number: int) -> Path:
    simulate.run({"densities": DENSITIES}, {"locations": folder / "particle_locations.txt"},
                 settings=settings, number=number)  # fmt: skip
    return folder


def test_variants_show_the_same_specimen_at_other_noise(tmp_path):
    settings = SimulateSettings(
        **SMALL, name="two", variants={"clear": {"snr": 9.0}, "noisy": {"snr": 0.05}},
        split={"train": [1], "test": [2]},
    )  # fmt: skip
    assert set(settings.sets) == {"two/clear", "two/noisy"}
    folders = [made(tmp_path / k, s, 2) for k, s in settings.sets.items()]
    tables = [(f / "particle_locations.txt").read_bytes() for f in folders]
    assert tables[0] == tables[1]
    clear, noisy = (np.asarray(open_volume(f / "reconstruction.mrc")) for f in folders)
    assert noisy.std() > 3 * clear.std()
    known = json.loads((folders[1] / "conditions.json").read_text())
    assert known["split"] == "test"
    assert known["tilt"]["snr"] == 0.05
    assert known["settings"]["snr"] == 0.05
    assert set(known["densities_sha256"]) == {"1bxn", "3qm1"}
    assert sum(known["placed"].values()) == len(read_truth(folders[0] / "particle_locations.txt"))
    assert known["tomoline_version"]


def test_variants_change_single_settings_of_a_group():
    settings = SimulateSettings(
        specimen={"vesicles": 2, "thickness_nm": 60.0},
        variants={"a": {"specimen": {"vesicles": 5}}},
    )
    assert settings.variant("a").specimen.vesicles == 5
    assert settings.variant("a").specimen.thickness_nm == 60.0


@pytest.mark.parametrize(
    ("variants", "said"),
    [({"a": {"snrr": 1}}, "snrr"), ({"../a": {}}, "safe"), ({"a": {"name": "b"}}, "leave name")],
)
def test_bad_variants_are_refused_before_anything_is_made(variants, said):
    with pytest.raises(InputError, match=said):
        validated(Config, {"simulate": {"variants": variants}}, source="config.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_name_themselves(path):
    settings = validated(Config, yaml.safe_load(path.read_text()), source=path).simulate
    assert settings.name == path.stem
    for each in settings.sets.values():
        phantom, tilt, _ = simulate.conditions(each, 1)
        assert phantom.voxel_size_angstrom == tilt.voxel_size_angstrom
        listed = [number for numbers in each.split.values() for number in numbers]
        assert len(listed) == len(set(listed))
        numbers = range(each.first, each.first + 10)
        assert set(listed) <= set(numbers)


def test_recipes_hold_what_their_names_promise():
    recipes = {p.stem: yaml.safe_load(p.read_text())["simulate"] for p in RECIPES}
    for name, scale in (("shrec-like", 1), ("shrec-like-half", 2)):
        settings = SimulateSettings(**recipes[name])
        assert settings.shape_zyx == (200 // scale, 512 // scale, 512 // scale)
        assert settings.particles == pytest.approx(2500 / scale**3, abs=5)
        assert settings.split == {"train": [1, 2, 3, 4, 5, 6, 7], "validation": [8], "test": [9]}
        assert len(settings.sets) == 2
    sets = SimulateSettings(**recipes["dsmnet-like"]).sets.values()
    assert {s.snr for s in sets} == {0.06, 0.01}
    assert {s.box_vox for s in sets} == {40}
    assert len(simulate.load_classes(DENSITIES, next(iter(sets)))) == len(
        known_densities(DENSITIES)
    )
    stress = SimulateSettings(**recipes["stress"]).sets
    assert {s.particles for s in stress.values()} == {0, 250}
    assert {s.microscope.contrast for s in stress.values()} == {"dark", "bright"}
    assert {s.voxel_size_angstrom for s in stress.values()} == {10.0, 13.5}


def test_another_voxel_size_is_in_the_header(tmp_path):
    settings = SimulateSettings(**{**SMALL, "particles": 3}, voxel_size_angstrom=13.5)
    folder = made(tmp_path / "a", settings, 1)
    assert read_header(folder / "reconstruction.mrc").voxel_size_angstrom == pytest.approx(13.5)


def test_every_ten_tomograms_hold_each_split():
    settings = SimulateSettings(first=1)
    roles = [split_of(settings, k) for k in range(1, 41)]
    for start in range(0, 40, 10):
        ten = roles[start : start + 10]
        assert (ten.count("train"), ten.count("validation"), ten.count("test")) == (8, 1, 1)
    assert len({tuple(roles[s : s + 10]) for s in range(0, 40, 10)}) > 1
    assert roles == [split_of(settings, k) for k in range(1, 41)]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Subtomograms of two tomograms, joined."""
    folder = tmp_path_factory.mktemp("boxes")
    settings = SimulateSettings(**SMALL, snr=20.0, box_vox=24, shift_sd_vox=0.0,
                                split={"train": [1], "test": [2]})  # fmt: skip
    parts = [folder / f"{k}.h5" for k in (1, 2)]
    for number, part in enumerate(parts, 1):
        simulate_subtomograms.run({"densities": DENSITIES}, {"subtomograms": part},
                                  settings=settings, number=number)  # fmt: skip
    whole = folder / "subtomograms.h5"
    simulate_subtomograms.run({"parts": parts}, {"subtomograms": whole}, settings=settings)
    return parts, whole


def test_subtomograms_are_read_like_extracted_ones(boxes):
    parts, whole = boxes
    with open_subtomograms(whole) as file:
        assert file.box_vox == 24
        assert list(file.candidate_id) == list(range(1, len(file) + 1))
        assert np.abs(file.centre_zyx - 12).max() <= 0.5
        counts = []
        for part in parts:
            with open_subtomograms(part) as one:
                counts.append(len(one))
                np.testing.assert_array_equal(file.boxes[sum(counts) - 1], one.boxes[-1])
        assert min(counts) > 3
        assert sum(counts) == len(file)


def test_subtomograms_hold_their_particle_where_target_and_mask_have_it(boxes):
    _, whole = boxes
    with h5py.File(whole) as file:
        assert list(file.attrs["classes"]) == ["background", "1bxn", "3qm1"]
        values, clean, mask = (file[name][()] for name in ("subtomograms", "clean", "mask"))
        centres, labels, splits = file["centre_zyx"][()], file["label"][()], file["split"][()]
        assert set(labels) == {1, 2}
        assert [list(file.attrs["splits"])[k] for k in sorted(set(splits))] == ["train", "test"]
        assert (np.unique(file["tomogram"][()][splits == 2]) == [2]).all()
        known = json.loads(file["provenance"][()])
    assert set(known) == {"1", "2"}
    right = []
    for k in range(len(values)):
        assert mask[k].any()
        middle = np.array(ndimage.center_of_mass(np.where(clean[k] > 0.1, clean[k], 0)))
        assert np.abs(middle - centres[k]).max() < 0.3
        inside = mask[k] > 0
        right.append(np.corrcoef(values[k][inside | (clean[k] > 0.05)],
                                 -clean[k][inside | (clean[k] > 0.05)])[0, 1])  # fmt: skip
        assert values[k][inside].mean() < values[k].mean()
        if labels[k] == 1:  # the larger one
            assert inside.sum() > 300
        else:
            assert inside.sum() < 150
    assert np.mean(right) > 0.6


def test_background_subtomograms_hold_no_particle(tmp_path):
    settings = SimulateSettings(**SMALL, box_vox=24, background_share=0.5)
    plain = settings.model_copy(update={"background_share": 0.0})
    paths = [tmp_path / "with.h5", tmp_path / "without.h5"]
    for path, own in zip(paths, (settings, plain), strict=True):
        simulate_subtomograms.run({"densities": DENSITIES}, {"subtomograms": path}, settings=own,
                                  number=1)  # fmt: skip
    made = simulate.make_numbered(simulate.load_classes(DENSITIES, settings), settings, 1)
    volume = simulate_subtomograms.normalise(made.reconstruction)
    with open_simulated(paths[0]) as boxes, open_simulated(paths[1]) as without:
        n = len(without)
        assert len(boxes) == n + round(n / 2) and n > 3
        np.testing.assert_array_equal(boxes.values[:n], without.values[()])
        assert not boxes.label[n:].any() and not boxes.particle_id[n:].any()
        assert not boxes.mask[n:].any() and not boxes.clean[n:].any()
        windows = np.lib.stride_tricks.sliding_window_view(volume, (24,) * 3)
        for values in boxes.values[n:]:
            ((z, y, x),) = np.argwhere(windows[..., 0, 0, 0] == values[0, 0, 0])
            np.testing.assert_array_equal(windows[z, y, x], values)
            middle = np.array([z, y, x]) + 12
            apart = np.linalg.norm(np.asarray(made.phantom.centres_zyx) - middle, axis=1)
            assert apart.min() > 4.5


def test_parts_that_do_not_belong_together_are_refused(boxes, tmp_path):
    parts, _ = boxes
    other = tmp_path / "other.h5"
    settings = SimulateSettings(**SMALL, box_vox=16)
    simulate_subtomograms.run({"densities": DENSITIES}, {"subtomograms": other},
                              settings=settings, number=3)  # fmt: skip
    with pytest.raises(InputError, match="box_vox"):
        join_simulated([parts[0], other], tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_no_classes_means_the_twelve_of_shrec():
    assert [d.name for d in simulate.load_classes(DENSITIES, SimulateSettings())] == list(
        SHREC_CLASSES
    )
