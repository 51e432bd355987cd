"""Training on simulated sets of subtomograms: reading, losses, figures, the whole stage."""

import json
import math

import numpy as np
import pytest
import torch
from planted_sets import CLASSES, EDGE, write_set
from pydantic import ValidationError

from tomoline.errors import InputError
from tomoline.io.subtomograms import open_simulated
from tomoline.networks.cards import load_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.outputs import Outputs
from tomoline.networks.unet import UNet
from tomoline.networks.weights import load_network
from tomoline.settings import TrainSettings
from tomoline.stages import train
from tomoline.stages.train_sets import class_figures
from tomoline.training.loop import Trainer
from tomoline.training.options import TrainOptions
from tomoline.training.sets import (
    Choice,
    SetOptions,
    SetRecipe,
    batch_of,
    losses_of,
    measure,
    read_sets,
    total_loss,
)

ALL = ["classification", "segmentation", "recovery"]
TINY = {"maps": (4, 6, 8), "features": 10, "stem": "strided", "dropout": 0.0}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set") / "subtomograms.h5")


def test_a_set_is_read_by_split_and_class(planted):
    with open_simulated(planted) as boxes:
        names, splits = np.array(boxes.classes)[boxes.label], boxes.split
        values = boxes.values[()]
    everything = [read_sets([planted], s, Choice()) for s in ("train", "validation", "test")]
    assert [len(part) for part in everything] == [int((splits == s).sum()) for s in np.unique(
        splits)[[1, 2, 0]]]  # fmt: skip
    assert not set(everything[0].tomogram) & set(everything[2].tomogram)
    without = read_sets([planted], "train", Choice(leave_out=("cube",)))
    assert without.classes == ("background", "ball", "shell")
    chosen = (splits == "train") & (names != "cube")
    np.testing.assert_array_equal(without.values, values[chosen].astype(np.float16))
    assert [without.classes[k] for k in without.labels] == list(names[chosen])


def test_fewer_are_drawn_from_all_sets_alike(planted, tmp_path):
    other = write_set(tmp_path / "b.h5", seed=9)
    whole = len(read_sets([planted, other], "train", Choice(truth=())))
    few = read_sets([planted, other], "train", Choice(truth=(), most=20, seed=3))
    again = read_sets([planted, other], "train", Choice(truth=(), most=20, seed=3))
    assert len(few) == 20 < whole and few.masks is None and few.clean is None
    np.testing.assert_array_equal(few.values, again.values)
    assert len({number >= 1_000_000 for number in few.tomogram}) == 2


@pytest.mark.parametrize(
    "choice,split,words",
    [
        (Choice(classes=("virus",)), "train", "ball, cube, shell"),
        (Choice(leave_out=CLASSES), "train", "one that is learnt"),
    ],
)
def test_what_a_set_has_not_is_refused(planted, choice, split, words):
    with pytest.raises(InputError, match=words):
        read_sets([planted], split, choice)


def test_sets_that_do_not_go_together_are_refused(planted, tmp_path):
    larger = write_set(tmp_path / "large.h5", edge=20)
    with pytest.raises(InputError, match="one edge"):
        read_sets([planted, larger], "train", Choice())
    nothing = tmp_path / "nothing.h5"
    nothing.write_text("no")
    with pytest.raises(InputError, match="HDF5"):
        read_sets([nothing], "train", Choice())
    with pytest.raises(InputError, match=r"train\.sets"):
        read_sets([], "train", Choice())


def test_losses_at_weight_one_are_the_three_by_hand():
    """Two subtomograms of 1 x 1 x 2 voxels."""
    found = Outputs(
        torch.tensor([[0.0, 2.0], [1.0, 0.0]]),
        torch.tensor([[[[[0.0, 0.0]]], [[[0.0, 3.0]]]], [[[[1.0, 0.0]]], [[[0.0, 0.0]]]]]),
        torch.tensor([[[[[1.0, 0.5]]]], [[[[0.0, 2.0]]]]]),
    )
    batch = {
        "labels": torch.tensor([1, 1]),
        "mask": torch.tensor([[[[0, 1]]], [[[0, 0]]]], dtype=torch.uint8),
        "clean": torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]], dtype=torch.float16),
    }
    losses = losses_of(found, batch)
    named = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    voxels = math.log(2) + math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1)) + math.log(2)
    assert losses["classification"].item() == pytest.approx(named, rel=1e-6)
    assert losses["segmentation"].item() == pytest.approx(voxels / 4, rel=1e-6)
    assert losses["recovery"].item() == pytest.approx((0.25 + 4.0) / 4, rel=1e-6)
    both = named + voxels / 4 + 4.25 / 4
    assert total_loss(losses, None).item() == pytest.approx(both, rel=1e-6)
    weights = {"classification": 1.0, "segmentation": 10.0, "recovery": 1.0}
    weighted = named + 10 * voxels / 4 + 4.25 / 4
    assert total_loss(losses, weights).item() == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize("subnets", [ALL[:1], ALL[1:2], ALL[2:], ALL[:2], ALL[::2], ALL[1:], ALL])
def test_gradients_reach_the_chosen_subnets_and_no_other(planted, subnets):
    network = DSMNet(classes=4, subnets=ALL, **TINY).train()
    recipe = SetRecipe(*[read_sets([planted], "train", Choice(most=6))] * 2, SetOptions())
    batch = batch_of(recipe.learnt, np.arange(6), SetOptions())
    found = network.outputs(batch["volume"])
    total_loss({k: v for k, v in losses_of(found, batch).items() if k in subnets}, None).backward()
    of = {"classification": ("to_features.", "last."), "segmentation": ("to_mask.",),
          "recovery": ("to_density.",)}  # fmt: skip
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    for task, names in of.items():
        own = {n for n, _ in network.named_parameters() if n.startswith(names)}
        assert own and (own <= reached if task in subnets else not own & reached), task
    decoder = {n for n, _ in network.named_parameters() if n.startswith("decoder.")}
    assert decoder <= reached if set(subnets) - {"classification"} else not decoder & reached
    alone = DSMNet(classes=4, subnets=subnets, **TINY).train()
    recipe.loss(alone, batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in alone.parameters())


def test_a_training_learns_all_three_and_resumes_exactly(planted, tmp_path):
    def trainer(name, stop=0):
        torch.manual_seed(1)
        choice = Choice()
        recipe = SetRecipe(read_sets([planted], "train", choice),
                           read_sets([planted], "validation", choice),
                           SetOptions(batch_size=12, seed=2))  # fmt: skip
        network = DSMNet(classes=4, subnets=ALL, **TINY)
        options = TrainOptions(max_epochs=6, learning_rate=1e-2, schedule="cosine",
                               stop_epochs=stop, average_decay=0.8, betas=(0.9, 0.99))  # fmt: skip
        return Trainer(network, recipe, options, tmp_path / name)

    whole = trainer("whole")
    before = whole.recipe.validate(whole.network.eval())
    whole.run()
    assert whole.optimiser.param_groups[0]["betas"] == (0.9, 0.99)
    whole.network.load_state_dict(whole.best_weights())
    after = whole.recipe.validate(whole.network.eval())
    assert after["object_accuracy"] > 0.8 > before["object_accuracy"]
    assert after["mean_iou"] > 0.7 and after["recovery_correlation"] > 0.7
    trainer("broken", stop=3).run()
    torch.rand(5)
    again = trainer("broken")
    again.run()
    state = whole.folder / "checkpoint.pt", again.folder / "checkpoint.pt"
    one, two = (torch.load(p, weights_only=True)["network"] for p in state)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_epoch_shows_every_subtomogram_once_and_flips_all_alike(planted):
    boxes = read_sets([planted], "train", Choice())
    recipe = SetRecipe(boxes, boxes, SetOptions(batch_size=8, seed=4))
    batches = list(recipe.epoch(3))
    assert len(batches) == recipe.steps == len(boxes) // 8
    plain = SetRecipe(boxes, boxes, SetOptions(batch_size=8, seed=4, augment=False))
    seen = torch.cat([b["volume"][:, 0] for b in plain.epoch(3)]).numpy()
    rows = {values.tobytes() for values in boxes.values.astype(np.float32)}
    assert len({values.tobytes() for values in seen} & rows) == len(seen)
    for batch in batches:  # what is recovered lies where the mask is
        outside = batch["clean"][batch["mask"] == 0]
        assert outside.abs().max() < 0.2 < batch["clean"].max()


def test_what_is_cut_keeps_its_middle_or_moves_with_its_truth(planted):
    boxes = read_sets([planted], "train", Choice(most=30))
    middle = batch_of(boxes, np.arange(30), SetOptions(box_vox=10))
    cut = slice(3, 13)  # voxel 8 of 16 comes to 5 of 10
    np.testing.assert_array_equal(middle["mask"].numpy(), boxes.masks[:, cut, cut, cut])
    options = SetOptions(box_vox=10, off_centre_vox=2.0, augment=False)
    moved = batch_of(boxes, np.arange(30), options, np.random.default_rng(0))
    assert not torch.equal(moved["mask"], middle["mask"])
    for k, true in enumerate(boxes.masks):
        fits = [
            (z, y, x)
            for z in range(7) for y in range(7) for x in range(7)
            if np.array_equal(true[z : z + 10, y : y + 10, x : x + 10], moved["mask"][k])
            and np.array_equal(boxes.values[k, z : z + 10, y : y + 10, x : x + 10],
                               moved["volume"][k, 0].numpy().astype(np.float16))
        ]  # fmt: skip
        assert len(fits) == 1


def test_other_networks_learn_from_sets_too(planted):
    boxes = read_sets([planted], "train", Choice(most=8))
    found = measure(UNet(filters=(4, 6, 8)).eval(), boxes, SetOptions())
    assert set(found.figures) == {"loss", "voxel_accuracy", "mean_iou"} and found.logits is None


def test_figures_of_a_hand_made_case(planted):
    boxes = read_sets([planted], "train", Choice(truth=("segmentation",)))

    class Knows(torch.nn.Module):
        def forward(self, x):
            mask = torch.zeros(x.shape[0], 2, *x.shape[2:])
            mask[:, 0] = 1  # everything is surroundings
            return mask

    inside = boxes.masks.mean()
    figures = measure(Knows(), boxes, SetOptions()).figures
    assert figures["voxel_accuracy"] == pytest.approx(1 - inside, rel=1e-6)
    assert figures["mean_iou"] == pytest.approx((1 - inside) / 2, rel=1e-6)
    # TP, FP, FN of ball: 1, 1, 2
    boxes = boxes.__class__(boxes.values[:4], np.array([1, 1, 1, 2]), boxes.tomogram[:4],
                            boxes.classes)  # fmt: skip
    made = class_figures(np.array([1, 2, 0, 1]), boxes)
    assert made["classes"]["ball"]["f1"] == pytest.approx(2 / (2 + 1 + 2), abs=1e-5)
    assert made["classes"]["cube"]["f1"] == 0.0 and made["mean_f1"] == pytest.approx(0.2, abs=1e-5)


@pytest.mark.parametrize("subnets,part", [(ALL, "classifier"), (["segmentation"], "segmenter")])
def test_the_stage_writes_a_model_and_its_figures(planted, tmp_path, subnets, part):
    settings = TrainSettings(
        name="mine", network="dsmnet", task=part, source="subtomograms", batch_size=12,
        sets={"files": [str(planted)], "leave_out": ["cube"]}, max_epochs=2, device="cpu",
        dsmnet={**TINY, "subnets": subnets}, precision="float32",
    )  # fmt: skip
    outputs = train.output_paths(settings, tmp_path)
    train.run({}, outputs, settings=settings, work=str(tmp_path / "work"))
    figures = json.loads(outputs["figures"].read_text())
    card, network = load_network(outputs[part])
    assert card.box_vox == EDGE and card.role == part and network.subnets == tuple(subnets)
    assert figures["test"]["loss"] > 0 and figures["subtomograms"]["test"] > 0
    assert ("object_accuracy" in figures["test"]) == (part == "classifier")
    if part == "classifier":
        assert card.classes == ["background", "ball", "shell"] == figures["names"]
        assert card.temperature and np.sum(figures["confusion"]) == figures["subtomograms"]["test"]
    assert load_card(outputs[part]).metrics["test"] == figures["test"]


def test_settings_that_cannot_be_are_refused():
    for wrong in (
        {"network": "dsmnet", "task": "classifier", "dsmnet": {"subnets": ALL}},
        {"network": "dsmnet", "task": "classifier", "source": "subtomograms",
         "dsmnet": {"subnets": ["recovery"]}},
        {"network": "unet", "task": "segmenter"},
        {"network": "unet", "task": "joint", "source": "subtomograms"},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            TrainSettings(**wrong)
    voxels = TrainSettings(network="unet", task="classifier", source="subtomograms")
    with pytest.raises(InputError, match="dsmnet"):
        train.run({}, {}, settings=voxels, work="")
