"""The benchmark's methods on particles whose places are known, their tuning, and the plan."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.ops.clusters import connected_clusters, find_clusters
from tomoline.peers.base import Case, Found, Scene, best_of, combinations, goal
from tomoline.peers.dog import DogPicker
from tomoline.peers.network import VoxelNetwork, windows
from tomoline.peers.pytme import NEVER, PytmeMatcher
from tomoline.settings import (
    BenchmarkSettings,
    Config,
    _merged,
    validated,
)
from tomoline.simulation.densities import load_density
from tomoline.stages.benchmark_plan import make_plan

DENSITIES = Path(__file__).parents[2] / "resources" / "densities"
PLACES = np.array([[10.0, 12, 14], [28, 30, 40], [12, 34, 40]])


def ball(shape, centre, radius):
    grid = np.moveaxis(np.indices(shape), 0, -1)
    return np.linalg.norm(grid - np.asarray(centre), axis=-1) <= radius


def scene(folder: Path, volume) -> Scene:
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "volume.mrc", np.asarray(volume, np.float32), 10.0)
    return Scene(volume=folder / "volume.mrc", transform=folder / "none.json", work=folder / "work")


def case(place: Scene, response: Path, zyx=PLACES, classes=("a", "b", "a")) -> Case:
    return Case(
        scene=place, response=response, zyx_vox=np.asarray(zyx, float), classes=list(classes),
        hit_distance_vox=5.0,
    )  # fmt: skip


def test_goal_counts_places_and_a_tenth_of_the_classes(tmp_path):
    here = case(scene(tmp_path, np.zeros((8, 8, 8))), tmp_path / "r")
    two = Found(zyx_vox=PLACES[:2], score=np.ones(2), classes=["a", "a"])
    figures = goal([here], lambda _: two)
    assert figures["f1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert figures["mean_class_accuracy"] == pytest.approx((1 / 2 + 0) / 2)
    assert figures["goal"] == pytest.approx(figures["f1"] + 0.1 * 0.25)
    bare = goal([here], lambda _: Found(zyx_vox=PLACES[:2], score=np.ones(2)))
    assert bare["goal"] == pytest.approx(figures["f1"])


def test_the_best_settings_win_and_of_equal_ones_the_first(tmp_path):
    here = case(scene(tmp_path, np.zeros((8, 8, 8))), tmp_path / "r")

    def picks(_, settings):
        return Found(zyx_vox=PLACES[: settings["n"]], score=np.ones(settings["n"]))

    best = best_of([here], combinations(n=(1, 2, 3), other=("x", "y")), picks)
    assert (best["n"], best["other"]) == (3, "x")
    assert best["figures"]["f1"] == 1


def test_dog_finds_balls_and_is_tuned_to_their_size(tmp_path):
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 0.3, (40, 48, 56))
    for place in PLACES:
        volume[ball(volume.shape, place, 4)] -= 3
    here = scene(tmp_path, volume)
    picker, response = DogPicker(), tmp_path / "r.h5"
    picker.respond(here, response)
    tuned = picker.tune([case(here, response)])
    assert tuned["figures"]["f1"] == 1
    found = picker.picks(here, response, json.loads(json.dumps(tuned)))
    assert len(found.score) == 3
    for place in PLACES:
        assert np.linalg.norm(found.zyx_vox - place, axis=1).min() < 0.7
    assert found.classes is None


def probabilities(path: Path, shape, particles, names=("a", "b")):
    """A network's answer: certain balls `(centre, radius, class index)`, background elsewhere."""
    p = np.zeros((len(names) + 1, *shape), np.uint8)
    p[0] = 255
    for centre, radius, k in particles:
        inside = ball(shape, centre, radius)
        p[:, inside] = 0
        p[k + 1, inside] = 250
    with h5py.File(path, "w") as file:
        file.create_dataset("probabilities", data=p).attrs["classes"] = ["background", *names]


def test_touching_particles_of_two_classes_are_told_apart_by_class(tmp_path):
    shape = (24, 24, 40)
    pair = [((12, 12, 12), 5, 0), ((12, 12, 21), 5, 1)]
    probabilities(tmp_path / "r.h5", shape, pair)
    here = scene(tmp_path, np.zeros(shape))
    network = VoxelNetwork(folder=tmp_path)
    tuned = network.tune([case(here, tmp_path / "r.h5", [p[0] for p in pair], ["a", "b"])])
    assert tuned["figures"]["f1"] == 1
    assert tuned["figures"]["mean_class_accuracy"] == 1
    settings = {"threshold": 0.5, "bandwidth_vox": 4.0, "min_size_vox": 3, "by_class": True}
    found = network.picks(here, tmp_path / "r.h5", settings)
    assert sorted(found.classes) == ["a", "b"]
    for centre, _, k in pair:
        n = found.classes.index("ab"[k])
        assert np.linalg.norm(found.zyx_vox[n] - centre) < 1
    assert len(network.picks(here, tmp_path / "r.h5", settings | {"min_size_vox": 900}).score) == 0


@pytest.mark.parametrize("shape", [(40, 48, 56), (100, 256, 256), (130, 97, 300)])
def test_windows_keep_every_voxel_once_and_begin_at_multiples_of_four(shape):
    halo, kept = 36, np.zeros(shape, np.uint8)
    for read, keep in windows(shape, halo):
        kept[keep] += 1
        for r, k, n in zip(read, keep, shape, strict=True):
            assert r.start % 4 == 0
            assert r.start == max(0, k.start - halo)
            assert r.stop == min(n, k.stop + halo)
    assert (kept == 1).all()


def test_connected_components_alone_keep_touching_particles_together():
    shape = (24, 24, 40)
    mask = ball(shape, (12, 12, 12), 5) | ball(shape, (12, 12, 21), 5)
    together = connected_clusters(mask, mask.astype(np.float32))
    assert np.allclose(together.centres, [[12, 12, 16.5]])
    assert together.size_vox[0] == mask.sum()
    assert len(find_clusters(mask, mask.astype(np.float32), bandwidth_vox=4.5).centres) == 2
    empty = connected_clusters(np.zeros(shape), np.zeros(shape, np.float32))
    assert len(empty.centres) == 0


def peaks_file(path: Path, rows) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("peaks", data=np.array(rows, float))
        file.create_dataset("moments", data=np.array([[0.0, 0.1], [0.0, 0.05]]))
    return path


def test_template_scores_of_unlike_scale_are_weighed_by_their_thresholds(tmp_path):
    # Class b's scores are half of class a's; at its own particle a's are higher all the same.
    rows = [
        (0, 10, 12, 14, 0.8), (1, 10, 12, 14, 0.20),
        (0, 28, 30, 40, 0.45), (1, 28, 30, 40, 0.40),
        (0, 12, 34, 40, 0.7), (1, 12, 34, 40, 0.15),
        *[(0, 35, 5 + 9 * k, 6, 0.42) for k in range(4)],
        *[(1, 35, 5 + 9 * k, 50, 0.18) for k in range(4)],
    ]  # fmt: skip
    response = peaks_file(tmp_path / "r.h5", rows)
    here = scene(tmp_path, np.zeros((8, 8, 8)))
    matcher = PytmeMatcher(densities=DENSITIES, classes=("a", "b"), python=Path("none"))
    tuned = matcher.tune([case(here, response)])
    assert tuned["figures"]["f1"] == 1
    assert tuned["figures"]["mean_class_accuracy"] == 1
    found = matcher.picks(here, response, json.loads(json.dumps(tuned)))
    assert sorted(found.classes) == ["a", "a", "b"]
    plain = {"thresholds": {"a": 0.44, "b": NEVER}, "distance_vox": 5.0, "strength": "score"}
    assert matcher.picks(here, response, plain).classes == ["a", "a", "a"]


def test_pytme_that_is_not_installed_says_how_it_is(tmp_path):
    matcher = PytmeMatcher(densities=DENSITIES, classes=("1bxn",), python=tmp_path / "python")
    with pytest.raises(InputError, match="make bench-peers"):
        matcher.respond(scene(tmp_path, np.zeros((8, 8, 8))), tmp_path / "r.h5")


@pytest.mark.parametrize("bin_", [1, 2, 3])
def test_score_maps_are_read_in_the_tomograms_voxels_and_templates_stay_centred(tmp_path, bin_):
    # Stands for pytme: the score is the tomogram itself, and what it was given is kept.
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys, numpy as np\n"
        "task = json.loads(open(sys.argv[1]).read())\n"
        "volume = np.load(task['volume'])\n"
        "for name, path in task['templates'].items():\n"
        "    np.save(task['output'] + '/' + name + '.npy', volume)\n"
        "    np.save(sys.argv[1] + '.template.npy', np.load(path))\n"
    )
    volume = np.zeros((36, 42, 48))
    grid = np.moveaxis(np.indices(volume.shape), 0, -1)
    volume -= np.exp(-(((grid - [15, 21, 27]) ** 2).sum(-1)) / (2 * 4.0**2))
    here = scene(tmp_path, volume)
    matcher = PytmeMatcher(
        densities=DENSITIES, classes=("1bxn",), python=Path(sys.executable),
        program=program, bin=bin_,
    )  # fmt: skip
    matcher.respond(here, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        first = file["peaks"][0]
    assert np.abs(first[1:4] - [15, 21, 27]).max() < 0.3
    template = np.load(here.work / "task.json.template.npy")
    assert len(set(template.shape)) == 1
    assert len(template) % 2 == 1
    weight = np.clip(template, 0.2, None) - 0.2
    middle = [float((g * weight).sum() / weight.sum()) for g in np.indices(template.shape)]
    assert np.abs(np.array(middle) - len(template) // 2).max() < 0.2
    given = load_density(DENSITIES, "1bxn")
    assert len(template) * bin_ >= len(given.values)
    assert not (here.work / "1bxn.npy").exists()


def benchmark(**given):
    tomograms = {
        "tune": {"use": "validation", "folder": "a"}, "test": {"use": "test", "folder": "b"}
    }  # fmt: skip
    return {"tomograms": tomograms, "methods": {"dog": {"kind": "dog"}}, **given}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": {}, "experiments": "none"}, "files of experiments"),
        ({"tomograms": {"t": {"use": "test", "folder": "b"}}}, "validation tomogram of group all"),
        ({"tomograms": {"v": {"use": "validation", "folder": "b"}}}, "test tomograms"),
        ({"tomograms": {"v": {"use": "validation", "folder": "b"},
                        "t": {"use": "test", "folder": "b"}}}, "a tomogram of its own"),
        ({"tomograms": {"v": {"use": "validation", "folder": "b"},
                        "t": {"use": "test"}}}, "a folder, or a tomogram"),
        ({"trainings": ["none.yaml"]}, "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(tmp_path, given, message):
    config = validated(Config, {"benchmark": benchmark(**given)}, source="test")
    with pytest.raises(InputError, match=message):
        make_plan(config, root=tmp_path)


def test_experiments_share_trainings_and_runs_and_have_tables_of_their_own(tmp_path):
    files = {
        "loss": {"focal": {}, "plain": {"train": {"gamma": 0.0}}},
        "depth": {"deep": {}, "flat": {"train": {"shape": {"depth": 3}}}},
        "shift": {"with": {}, "without": {"method": {"centres": "components"}}},
        "kind": {
            "line": {},
            "unet": {
                "train": {"network": "unet", "task": "classifier"},
                "method": {"kind": "unet"},
            },
        },
    }
    (tmp_path / "experiments").mkdir()
    for name, variants in files.items():
        text = yaml.safe_dump({"question": name, "variants": variants})
        (tmp_path / "experiments" / f"{name}.yaml").write_text(text)
    raw = {
        "train": {"shape": {"depth": 9, "width": 2}, "gamma": 1.5},
        "benchmark": benchmark(methods={}, name="e", experiments="experiments", flips=2),
    }
    plan = make_plan(validated(Config, raw, source="test"), root=tmp_path)
    assert set(plan.experiments) == {"e-loss", "e-depth", "e-shift", "e-kind"}
    assert set(plan.trainings) == {"e-common", "e-loss-plain", "e-depth-flat", "e-kind-unet"}
    assert plan.trainings["e-depth-flat"].shape.model_dump()["width"] == 2
    assert plan.trainings["e-depth-flat"].shape.depth == 3
    assert plan.trainings["e-loss-plain"].gamma == 0
    assert plan.trainings["e-loss-plain"].shape.depth == 9
    # One benchmark runs every method once; "common" stands in all four tables.
    assert set(plan.benchmarks) == {"e-variants"} == {plan.variants}
    methods = plan.benchmarks["e-variants"].methods
    assert set(methods) == {"common", "loss-plain", "depth-flat", "shift-without", "kind-unet"}
    assert methods["common"].localizer == methods["shift-without"].localizer == "e-common-localizer"
    assert methods["shift-without"].centres == "components"
    assert methods["shift-without"].flips == 2
    assert methods["kind-unet"].classifier == "e-kind-unet-classifier"
    assert methods["kind-unet"].flips is None
    settings, labels = plan.table("e-shift")
    assert settings.name == "e-variants"
    assert {labels[key]: m.centres for key, m in settings.methods.items()} == {
        "with": "mean_shift", "without": "components",
    }  # fmt: skip
    twins = {"question": "q", "variants": {"one": {}, "other": {}}}
    (tmp_path / "experiments" / "twins.yaml").write_text(yaml.safe_dump(twins))
    with pytest.raises(InputError, match="a variant unlike the others"):
        make_plan(validated(Config, raw, source="test"), root=tmp_path)
    (tmp_path / "experiments" / "twins.yaml").unlink()
    wrong = {"question": "q", "variants": {"v": {"train": {"gama": 1}}}}
    (tmp_path / "experiments" / "bad.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(InputError, match="did you mean `gamma`"):
        make_plan(validated(Config, raw, source="test"), root=tmp_path)


BENCHMARKS = DENSITIES.parents[1] / "config/benchmarks"
# Given after another configuration, which they change (their first lines say so).
LAID_OVER = {
    "densenet-small": "densenet", "experimental": "densenet", "dsmnet-small": "dsmnet",
    "dsmnet-unseen-small": "dsmnet-unseen",
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_benchmarks_can_be_planned(file):
    raw = yaml.safe_load(file.read_text())
    if file.stem in LAID_OVER:
        base = yaml.safe_load((BENCHMARKS / f"{LAID_OVER[file.stem]}.yaml").read_text())
        raw = _merged(base, raw)
    plan = make_plan(validated(Config, raw, source=file), root=DENSITIES.parents[1])
    if raw.get("train", {}).get("source") == "subtomograms":
        assert plan.comparisons or "discover" in raw
        for comparison in plan.comparisons.values():
            assert set(comparison.trainings.values()) <= set(plan.trainings)
        return
    assert plan.benchmarks
    for settings in plan.benchmarks.values():
        assert isinstance(settings, BenchmarkSettings)
    trained = {f"{name}-{part}" for name in plan.trainings for part in ("localizer", "classifier")}
    for settings in plan.benchmarks.values():
        for method in settings.methods.values():
            if method.folder == "results/models":
                assert method.classifier in trained
