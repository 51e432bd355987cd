"""Points as targets, new classes, and models that are taught on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import ROOT, VOXEL_SIZE, balls, save_threshold_network

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.held_out import Held, Judged, figures
from tomoline.io.annotations import annotation_table, label_table, read_labels, write_labels
from tomoline.io.mrc import open_volume, write_volume
from tomoline.io.tables import candidate_table, read_candidates, write_candidates
from tomoline.networks.cards import ModelCard, load_card, write_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.msdnet import MSDNet
from tomoline.networks.weights import load_network, save_model
from tomoline.settings import Config, FinetuneSettings, validated
from tomoline.stages.checks import start_of
from tomoline.stages.finetune import run
from tomoline.stages.labelled import Given, labelled, radii_of
from tomoline.training.data import core_radius
from tomoline.training.losses import UNKNOWN, weighted_focal_loss
from tomoline.training.points import Points, background_places, point_volume, unknown_near
from tomoline.training.tuning import Tuned, TuneRecipe, extended

SHAPE = (40, 48, 56)
NONE = np.empty((0, 3))


def points(**given) -> Points:
    centres = np.array(given.pop("centres", NONE), float).reshape(-1, 3)
    whole = {
        "centres": centres, "labels": np.ones(len(centres), np.int64),
        "radii": np.full(len(centres), 5.0), "negatives": NONE, "unsure": NONE, **given,
    }  # fmt: skip
    return Points(**whole)


def distances(shape: tuple[int, ...], centre) -> np.ndarray:
    return np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)))


def test_partial_labels_make_no_background_of_what_nobody_knows():
    volume = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    p = np.full(SHAPE, 0.3, np.float32)
    p[:, :10] = 0.01
    known = points(
        centres=[(20, 25, 20)], negatives=np.array([(20.0, 40, 45)]),
        unsure=np.array([(8.0, 5, 40)]),
    )  # fmt: skip
    made = point_volume(volume, known, probability=p, low_score=0.05)
    at = distances(SHAPE, (20, 25, 20))
    none = distances(SHAPE, (20, 40, 45))
    for target, inner in ((made.core, core_radius(5.0)), (made.classes, 5.0)):
        assert (target[at <= inner] == 1).all()
        background = target == 0
        # Background is the label's own particle beside its core, the negative, and what the
        # localizer gives a low probability, and not one voxel else.
        allowed = (at <= 5.0) | (none <= 3.0) | (p < 0.05)
        assert not (background & ~allowed).any()
        assert background[none <= 3.0].all()
        assert (target[(at > 6) & (none > 3) & (p > 0.05)] == UNKNOWN).all()
        assert target[8, 5, 40] == UNKNOWN  # however low the probability is
    assert (made.core[(at > core_radius(5.0)) & (at <= 5)] == 0).all()


def test_complete_labels_make_background_of_the_rest():
    volume = np.zeros(SHAPE, np.float32)
    made = point_volume(volume, points(centres=[(20, 25, 20)], complete=True), probability=None,
                        low_score=0.05)  # fmt: skip
    assert (made.core[distances(SHAPE, (20, 25, 20)) > core_radius(5.0)] == 0).all()
    assert UNKNOWN not in made.core and UNKNOWN not in made.classes


def test_a_particle_without_class_is_a_particle_to_the_localizer_alone():
    known = points(centres=[(20, 25, 20)], labels=np.array([-1]))
    made = point_volume(np.zeros(SHAPE, np.float32), known, probability=None, low_score=0.05)
    assert made.core[20, 25, 20] == 1 and made.classes[20, 25, 20] == UNKNOWN


def test_places_of_background_are_far_from_labels_and_where_the_localizer_sees_nothing():
    rng = np.random.default_rng(0)
    places = [(10, 12, 12), (10, 36, 12), (30, 12, 44), (30, 36, 44)]
    volume = balls(places, seed=1)
    p = np.where(distances(SHAPE, places[0]) < 4, 0.9, 0.0).astype(np.float32)
    how = {"low_score": 0.05, "hit_vox": 4.5, "rim_vox": 4, "number": 24, "rng": rng}
    found = background_places(volume, points(centres=[places[1]]), probability=p, **how)
    assert len(found)
    near = [np.linalg.norm(found - c, axis=1).min() for c in places]
    assert near[0] > 4.5  # the localizer sees something
    assert near[1] > 9.0  # a label
    assert min(near[2:]) < 2  # what neither knows is taken, as the words of `low_score` say
    assert len(background_places(volume, points(), probability=None, **how)) == 0


def test_unknown_voxels_teach_nothing():
    logits = torch.randn(1, 2, 6, 6, 6, requires_grad=True)
    target = torch.full((1, 6, 6, 6), UNKNOWN, dtype=torch.uint8)
    target[0, 0] = 1
    loss = weighted_focal_loss(logits, target, torch.tensor([1.0, 4.0]))
    loss.backward()
    assert (logits.grad[0, :, 1:] == 0).all() and (logits.grad[0, :, 0] != 0).any()
    alone = weighted_focal_loss(logits[:, :, :1], target[:, :1], torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(loss, alone)
    nothing = torch.full_like(target, UNKNOWN)
    assert weighted_focal_loss(logits, nothing).item() == 0


SMALL = {"maps": [4, 6, 8], "features": 10, "dropout": 0.0, "stem": "strided"}


@pytest.mark.parametrize("network", [
    lambda classes: DSMNet(classes=classes, **SMALL),
    lambda classes: MSDNet(classes=classes, depth=2, width=2, max_dilation=1),
])  # fmt: skip
def test_a_new_class_gets_an_output_and_the_old_ones_stay(network):
    torch.manual_seed(0)
    old, new = network(3).eval(), network(5).eval()
    new.load_state_dict(extended(old.state_dict(), 2))
    x = torch.randn(4, 1, 16, 16, 16)
    with torch.no_grad():
        before, after = old(x), new(x)
    torch.testing.assert_close(after[:, :3], before)
    torch.testing.assert_close(after[:, 3], before[:, 1:].mean(1))
    torch.testing.assert_close(after[:, 4], after[:, 3])


@pytest.mark.parametrize("layers", ["head", "last_block", "all"])
def test_below_and_above_are_the_network_and_only_what_is_above_learns(layers):
    torch.manual_seed(0)
    network = DSMNet(classes=3, **SMALL).eval()
    x = torch.randn(3, 1, 16, 16, 16)
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(network.above(network.below(x, layers), layers), whole)
        below = network.below(x, layers)
    tuned = Tuned(network, layers).train()
    statistics = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    tuned(below).square().sum().backward()
    learnt = {id(p) for p in network.learnt(layers)}
    for name, parameter in network.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == (id(parameter) in learnt), name
    assert all(torch.equal(network.state_dict()[k], v) for k, v in statistics.items())


def test_figures_say_what_cannot_be_measured():
    held = Held(centres=np.array([(0.0, 0, 0), (0, 0, 50)]), names=["a", "b"],
                negatives=np.array([(0.0, 50, 0), (0, 50, 50)]))  # fmt: skip
    judged = Judged(
        centres=np.array([(0.0, 0, 1), (0, 50, 1), (0, 0, 51)]),
        probability=np.array([0.9, 0.8, 0.3]), accepted=np.array([True, True, False]),
        named=["A", "a", "b"],
    )  # fmt: skip
    partial = figures([(held, judged)], complete=False, picks=3)
    assert partial["precision"] is None and partial["f1"] is None
    assert partial["recall"] == 0.5 and partial["recall_at_as_many_picks"] == 1.0
    assert partial["left_alone"] == 1 and partial["class_accuracy"] == 0.5
    complete = figures([(held, judged)], complete=True)
    assert complete["precision"] == 0.5 and complete["f1"] == 0.5
    assert complete["classes"]["a"]["f1"] == pytest.approx(2 / 3, abs=1e-4)


# --- the stage on tomograms with balls and specks -------------------------------------------------

BALLS = [(10, 8, 10), (10, 8, 44), (30, 8, 28), (30, 30, 10), (12, 40, 44)]
SPECKS = [(30, 8, 10), (12, 20, 28), (30, 26, 46), (12, 36, 12), (30, 40, 30)]


def tomogram(folder: Path, name: str, seed: int) -> dict[str, str]:
    """Balls, which the model knows, and specks, which it does not; all are candidates."""
    rng = np.random.default_rng(seed)
    shift = rng.integers(-2, 3, 3)
    places = {"ball": np.array(BALLS) + shift, "speck": np.array(SPECKS) + shift}
    own = folder / name
    own.mkdir()
    volume = balls(places["ball"], seed=seed, specks_zyx=places["speck"]) / 0.1
    write_volume(own / "prepared.mrc", volume.astype(np.float32), VOXEL_SIZE)
    VolumeTransform(
        source="t.mrc", file_shape=SHAPE, given_shape_zyx=SHAPE, prepared_shape_zyx=SHAPE,
        given_voxel_size_angstrom=VOXEL_SIZE, prepared_voxel_size_angstrom=VOXEL_SIZE,
        scale_zyx=(1.0, 1.0, 1.0),
    ).save(own / "prepared.json")  # fmt: skip
    zyx = np.concatenate(list(places.values())).astype(float)
    n = len(zyx)
    write_candidates(own / "candidates.csv", candidate_table({
        "candidate_id": range(1, n + 1),
        **{f"{axis}_prepared_vox": zyx[:, k] for k, axis in enumerate("zyx")},
        "status": ["accepted"] * n, "reason": [""] * n, "score": [0.9] * n,
        "mean_probability": [0.9] * n, "size_vox": [60] * n, "contrast": [9.0] * n,
    }))  # fmt: skip
    names = [kind for kind, own_places in places.items() for _ in own_places]
    labels = label_table(annotation_table(zyx, names, radius_vox=[4.0] * n), source="test")
    write_labels(own / "labels.csv", labels)
    return {"labels": str(own / "labels.csv"), "transforms": str(own / "prepared.json"),
            "volumes": str(own / "prepared.mrc"),
            "candidates": str(own / "candidates.csv")}  # fmt: skip


def save_whole(folder: Path, classes: list[str]) -> None:
    """A network of random layers that calls everything the first class."""
    torch.manual_seed(4)
    network = DSMNet(classes=len(classes), **SMALL)
    state = network.state_dict()
    state["last.bias"][1] = 3.0
    card = ModelCard(
        name=folder.name, network="dsmnet", parameters={"classes": len(classes), **SMALL},
        role="classifier", classes=classes, voxel_size_angstrom=VOXEL_SIZE,
        voxel_size_range_angstrom=(8.0, 12.0), box_vox=16, receptive_field_vox=16, n_parameters=1,
    )  # fmt: skip
    save_model(folder, card, state)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "densities").mkdir()
    save_threshold_network(tmp_path / "localizer", "localizer", ["background", "particle"])
    save_whole(tmp_path / "classifier", ["background", "ball", "cube"])
    made = [tomogram(tmp_path, name, seed) for seed, name in enumerate("abc")]
    return {
        "localizer": str(tmp_path / "localizer" / "card.yaml"),
        "classifier": str(tmp_path / "classifier" / "card.yaml"),
        "densities": str(tmp_path / "densities"),
        **{key: [one[key] for one in made] for key in made[0]},
    }


def teach(
    files: dict[str, object], folder: Path, truths: dict[str, str] | None = None, **settings
) -> dict:
    chosen = {"name": "mine", "epochs": 8, "steps_per_epoch": 8, "batch_size": 24, "views": 4,
              "learning_rate": 5e-3, "layers": "all", "keep_named": 1, "held_out": ["c"],
              "device": "cpu", **settings}  # fmt: skip
    roles = chosen.get("roles", ["classifier"])
    outputs = {role: str(folder / f"mine-{role}" / "card.yaml")
               for role in {"classifier", *roles}}  # fmt: skip
    outputs |= {"figures": str(folder / "finetune.json"), "page": str(folder / "finetune.html")}
    run(
        files, outputs, settings=FinetuneSettings(**chosen), tomograms=["a", "b", "c"],
        truths=truths or {},
        tilt_series={}, dataset={"name": "d", "sheet": "d.tsv"}, work=str(folder / "work"),
    )  # fmt: skip
    found: dict = json.loads((folder / "finetune.json").read_text())
    return found


def test_what_was_learnt_is_named_rightly_on_a_tomogram_that_was_held_out(files, tmp_path):
    told = teach(files, tmp_path / "out", labels="complete")
    assert told["before"]["classes"]["speck"]["right"] == 0
    assert told["before"]["class_accuracy"] == 0.5
    assert told["after"]["class_accuracy"] >= 0.9
    assert told["after"]["f1"] >= 0.9
    assert told["tomograms"]["c"]["learnt"] == 0 and told["tomograms"]["c"]["held_out"] == 10
    card, network = load_network(tmp_path / "out" / "mine-classifier")
    assert card.classes == ["background", "ball", "cube", "speck"]
    assert network.classes == 4
    start = load_card(tmp_path / "classifier")
    assert card.training["finetuned_from"]["weights_sha256"] == start.weights_sha256
    brief = {key: value for key, value in told["after"].items() if key != "classes"}
    assert card.metrics["finetune"]["after"] == brief and brief["f1"] == told["after"]["f1"]
    assert "speck" in (tmp_path / "out" / "finetune.html").read_text()


def test_a_training_goes_on_where_it_was_and_other_labels_begin_anew(files, tmp_path):
    first = teach(files, tmp_path / "out", epochs=2)
    (work,) = (tmp_path / "out" / "work" / "classifier").iterdir()
    rows = (work / "curves.jsonl").read_text()
    assert teach(files, tmp_path / "out", epochs=2) == first
    assert (work / "curves.jsonl").read_text() == rows  # nothing was trained again
    assert first["after"]["precision"] is None
    assert any("not measurable" in note for note in first["notes"])
    teach(files, tmp_path / "out", epochs=2, views=3)
    assert not work.exists()


def test_a_localizer_learns_and_the_pair_stays_a_pair(files, tmp_path):
    told = teach(files, tmp_path / "out", roles=["localizer"], labels="complete", epochs=1,
                 steps_per_epoch=2, learning_rate=1e-4)  # fmt: skip
    made = load_card(tmp_path / "out" / "mine-localizer")
    assert made.training["finetuned_from"]["name"] == "localizer"
    assert load_card(tmp_path / "out" / "mine-classifier").classes == ["background", "ball", "cube"]
    assert told["after"]["picks"] > 0


def weights(folder: Path, role: str = "classifier") -> bytes:
    return (folder / f"mine-{role}" / "weights.safetensors").read_bytes()


SHORT = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 16}


def test_no_voxel_and_no_label_of_the_held_out_part_is_learnt(files, tmp_path):
    """Another held-out part, and the same is learnt, to the byte."""
    how = {**SHORT, "held_out": [], "held_out_part": 0.4, "roles": ["classifier", "localizer"],
           "labels": "complete"}  # fmt: skip
    teach(files, tmp_path / "out", **how)
    border = int(np.ceil(0.6 * SHAPE[1]))
    for k, (volume, labels) in enumerate(zip(files["volumes"], files["labels"], strict=True)):
        whole = np.array(open_volume(volume))
        whole[:, border:] = np.random.default_rng(90 + k).normal(3, 5, whole[:, border:].shape)
        write_volume(volume, whole, VOXEL_SIZE)
        table = read_labels(labels)
        held = table["y_vox"] >= border
        write_labels(labels, table.assign(**{"class": table["class"].mask(held, "ball")}))
    teach(files, tmp_path / "other", **how)
    for role in how["roles"]:
        assert weights(tmp_path / "other", role) == weights(tmp_path / "out", role)
    assert border > 8  # there was something to learn
    teach(files, tmp_path / "third", **{**how, "held_out_part": 0.3})
    assert weights(tmp_path / "third") != weights(tmp_path / "out")


def given(folder: Path, table, **more) -> Given:
    own = folder / "given"
    return Given(name="given", table=table, transform=VolumeTransform.load(own / "prepared.json"),
                 volume=open_volume(own / "prepared.mrc"), candidates=own / "candidates.csv",
                 truth=None, **more)  # fmt: skip


def test_a_hit_is_on_the_side_of_its_particle(tmp_path):
    tomogram(tmp_path, "given", 0)
    places = np.array([(10.0, 23, 10), (10, 25, 40), (30, 40, 20)])  # the border is at 24
    labels = label_table(annotation_table(places, ["a"] * 3), source="t")
    made = labelled(given(tmp_path, labels), classes=["background", "a"], radii={"a": 40.0},
                    settings=FinetuneSettings(held_out_part=0.5))  # fmt: skip
    candidates = np.array([(10.0, 25, 10), (10, 23, 40), (30, 10, 20), (30, 30, 44)])
    assert made.is_held(candidates).tolist() == [False, True, False, True]
    assert made.learnt_volume.shape == (40, 24, 56)


def test_labels_outside_are_refused_and_contradictions_teach_nothing(tmp_path):
    tomogram(tmp_path, "given", 0)
    places = np.array([(10.0, 10, 10), (10, 12, 11), (30, 10, 40)])
    table = annotation_table(places, ["a", "", ""]).assign(verdict=["yes", "no", "no"])
    table = label_table(table, source="t")
    how = {"classes": ["background", "a"], "radii": {"a": 40.0}, "settings": FinetuneSettings()}
    made = labelled(given(tmp_path, table), **how)
    assert made.learnt.negatives.tolist() == [[30, 10, 40]]  # the other lies at the particle
    table.loc[2, "x_vox"] = 57.5
    with pytest.raises(InputError, match="1 of 3 outside; id 3"):
        labelled(given(tmp_path, table), **how)


def test_places_and_radii_are_those_of_the_prepared_volume(tmp_path):
    """A tomogram of 5 angstrom that was rescaled to 10, and begins between two voxels."""
    tomogram(tmp_path, "given", 0)
    (tmp_path / "given" / "prepared.json").unlink()
    VolumeTransform(
        source="t.mrc", file_shape=(80, 96, 112), given_shape_zyx=(80, 96, 112),
        prepared_shape_zyx=SHAPE, given_voxel_size_angstrom=5.0,
        prepared_voxel_size_angstrom=10.0, scale_zyx=(2.0, 2.0, 2.0), offset_zyx=(0.5, 0.5, 0.5),
    ).save(tmp_path / "given" / "prepared.json")  # fmt: skip
    places = np.array([(20.5, 20.5, 100.5), (20.5, 40.5, 60.5)])
    table = annotation_table(places, ["a", "B"], radius_vox=[12.0, np.nan])
    settings = FinetuneSettings(radius_angstrom={"b": 90})
    radii = radii_of(["a", "B"], settings, lambda name: None, need=True)
    made = labelled(given(tmp_path, label_table(table, source="t")),
                    classes=["background", "a", "B"], radii=radii, settings=settings)  # fmt: skip
    assert made.learnt.centres.tolist() == [[10, 10, 50], [10, 20, 30]]
    assert made.learnt.radii.tolist() == [6.0, 9.0]


def test_where_a_held_out_particle_may_reach_nothing_is_background():
    volume = np.zeros(SHAPE, np.float32)
    known = points(centres=[(20, 25, 20)], complete=True)
    made = point_volume(volume, known, probability=None, low_score=0.05)
    cut = unknown_near(made, 30.0, known)
    for before, after in ((made.core, cut.core), (made.classes, cut.classes)):
        assert (after[:, :25] == before[:, :25]).all()
        assert not (after[:, 25:] == 0).any()
        assert ((after == 1) == (before == 1)).all()
    assert unknown_near(made, np.inf, known) is made


def test_a_killed_training_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch):
    how = {"epochs": 4, "steps_per_epoch": 3, "batch_size": 16}
    teach(files, tmp_path / "whole", **how)
    loss, calls = TuneRecipe.loss, iter(range(100))

    def dying(self, network, batch):
        if network.training and next(calls) == 7:
            raise KeyboardInterrupt
        return loss(self, network, batch)

    monkeypatch.setattr(TuneRecipe, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        teach(files, tmp_path / "killed", **how)
    assert not (tmp_path / "killed" / "mine-classifier").exists()
    monkeypatch.undo()
    teach(files, tmp_path / "killed", **how)
    (rows,) = (tmp_path / "killed" / "work" / "classifier").glob("*/curves.jsonl")
    assert len(rows.read_text().splitlines()) == 4
    for name in ("mine-classifier/card.yaml", "finetune.json", "finetune.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "whole" / name).read_bytes()  # fmt: skip
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_tomogram_prepared_anew_is_learnt_anew(files, tmp_path):
    teach(files, tmp_path / "out", **SHORT)
    before = weights(tmp_path / "out")
    for volume in files["volumes"]:
        write_volume(volume, -np.array(open_volume(volume)), VOXEL_SIZE)
    teach(files, tmp_path / "out", **SHORT)
    assert weights(tmp_path / "out") != before


def test_what_is_measured_of_the_old_model_is_not_told_of_the_new(files, tmp_path):
    folder = tmp_path / "classifier"
    card = load_card(folder)
    sift = {"localizer_sha256": load_card(tmp_path / "localizer").weights_sha256, "least": 0.4,
            "threshold": 0.5, "intercept": 1.0, "score": 1.0, "background": 1.0}  # fmt: skip
    write_card(folder, ModelCard.model_validate(
        {**card.model_dump(), "sift": sift, "metrics": {"validation": {"val_class_accuracy": 0.9}}}
    ))  # fmt: skip
    told = teach(files, tmp_path / "out", truths={"c": files["labels"][0]}, **SHORT)
    made = load_card(tmp_path / "out" / "mine-classifier")
    assert set(made.metrics) == {"finetune"}
    # The truth measures; nothing is fitted to it, which nobody with few labels has.
    assert told["complete"] and told["after"]["precision"] is not None
    assert made.sift == load_card(folder).sift and "not every particle" in told["sift"]


def test_a_network_of_voxels_learns_a_class_of_few_labels(files, tmp_path):
    save_threshold_network(tmp_path / "classifier", "classifier", ["background", "ball", "cube"],
                           width=4, depth=2)  # fmt: skip
    told = teach(files, tmp_path / "out", epochs=3, steps_per_epoch=4, learning_rate=1e-3)
    card = load_card(tmp_path / "out" / "mine-classifier")
    assert card.classes == ["background", "ball", "cube", "speck"]
    assert told["after"]["picks"] > 0 and told["learnt"]["classifier"]["parts"] > 0


def test_what_it_cost_the_known_classes_is_told(files, tmp_path):
    """On simulated particles of them, mixed in and held out."""
    save_whole(tmp_path / "classifier", ["background", "1bxn", "4v94"])
    files["densities"] = str(ROOT / "resources" / "densities")
    told = teach(files, tmp_path / "out", simulated_tomograms=4, **{**SHORT, "layers": "head"})
    known = told["known_before"]
    assert known["classes"] == 2 and known["boxes"] > 10
    assert known["before"] == 0.5  # everything is called the first
    assert 0 <= known["after"] <= 1
    assert f"{known['after']:.3f}" in (tmp_path / "out" / "finetune.html").read_text()
    made = load_card(tmp_path / "out" / "mine-classifier")
    assert made.metrics["finetune"]["known_before"] == known
    assert not any("forgotten" in note for note in told["notes"])


def test_one_label_and_a_tomogram_without_candidates_suffice(files, tmp_path):
    for k, (labels, candidates) in enumerate(
        zip(files["labels"], files["candidates"], strict=True)
    ):
        table = read_labels(labels)
        write_labels(labels, table.iloc[-1:] if k == 0 else table.iloc[:0])
        write_candidates(candidates, read_candidates(candidates).iloc[:0])
    told = teach(files, tmp_path / "out", **SHORT)
    assert told["learnt"]["classifier"]["labels"] == 1
    assert "nothing was held out, so nothing was measured" in told["notes"]


def test_what_cannot_be_learnt_is_refused(files, tmp_path):
    with pytest.raises(InputError, match="none to learn"):
        teach(files, tmp_path / "out", held_out=["a", "b", "c"])
    with pytest.raises(InputError, match="held_out: d"):
        teach(files, tmp_path / "out", held_out=["d"])


def test_it_does_not_start_from_what_it_makes():
    models = {"classifier": "results/models/mine-classifier"}
    raw = {"models": models, "finetune": {"name": "mine"}}
    with pytest.raises(InputError, match="another name"):
        start_of(validated(Config, raw, source="config"), "classifier")
    raw["finetune"] |= {"classifier": "dsmnet-classifier", "localizer": "another"}
    with pytest.raises(InputError, match=r"models\.localizer too"):  # the candidates are its own
        start_of(validated(Config, raw, source="config"), "localizer")
    start = start_of(validated(Config, raw, source="config"), "classifier")
    assert start == Path("resources/models/dsmnet-classifier")
