"""DSM-Net's classification subnet, the recipe that trains it, and how it is run."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tomoline.infer import FLIP_AXES, Runner, batched, default_batch
from tomoline.networks.cards import ModelCard
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.registry import build
from tomoline.settings import TrainSettings
from tomoline.training.data import TrainingVolume
from tomoline.training.loop import Trainer
from tomoline.training.options import TrainOptions
from tomoline.training.subtomogram import (
    BESIDE,
    SubtomogramOptions,
    SubtomogramRecipe,
    candidates_of,
    chunk,
    cut_boxes,
    picked_candidates,
)

SHAPE, RADIUS = (40, 56, 56), 4.0


def small(**given):
    torch.manual_seed(0)
    return DSMNet(**{"classes": 3, "maps": (4, 6, 8), "features": 10, **given}).eval()


class Balls:
    """Tomograms of dark balls of two classes, solid and hollow; none where `count` is 0."""

    def __init__(self, count: int = 6) -> None:
        self.count = count

    def volumes(self, epoch, count, pool=0):
        return [self._make(epoch * count + k) for k in range(count)]

    def validation(self, count):
        return [self._make(10_000 + k) for k in range(count)]

    def _make(self, seed):
        rng = np.random.default_rng(seed)
        places = rng.permutation([(z, y, x) for z in (8, 30) for y in (9, 44) for x in (9, 28, 46)])
        centres = places[: self.count] + rng.uniform(-1, 1, (self.count, 3))
        labels = rng.integers(1, 3, self.count)
        volume, grid = rng.normal(0, 0.3, SHAPE).astype(np.float32), np.indices(SHAPE)
        for centre, label in zip(centres, labels, strict=True):
            square = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
            inside = (square <= RADIUS**2) & (square >= (0 if label == 1 else 3.0**2))
            volume[inside] -= 4
        nothing = np.zeros(SHAPE, np.uint8)
        return TrainingVolume(
            volume, nothing, nothing, nothing.astype(np.uint16), centres, labels.astype(np.int64)
        )


OPTIONS = SubtomogramOptions(
    box_vox=16, batch_size=8, steps_per_epoch=3, validation_volumes=2, chunk_volumes=2, workers=0,
    seed=3,
)  # fmt: skip


@pytest.mark.parametrize("stem,first", [("pooled", 27), ("strided", 125)])
def test_it_has_the_papers_layers(stem, first):
    network = build("dsmnet", {"classes": 22, "stem": stem})
    convolutions = first * 32 + sum(2 * 27 * n * n for n in (32, 64, 128)) + 27 * 64 * (32 + 128)
    normal = 2 * (32 + sum(2 * n for n in (32, 64, 128)) + 64 + 128)
    linear = 128 * 1024 + 1024 + 1024 * 22 + 22
    count = sum(p.numel() for p in network.parameters())
    assert count == convolutions + normal + linear
    assert network.features(torch.zeros(2, 1, 40, 40, 40)).shape == (2, 1024)


@pytest.mark.parametrize("stem", ["pooled", "strided"])
def test_one_result_for_a_subtomogram_of_any_size_whatever_lies_beside_it_in_the_batch(stem):
    network = small(stem=stem)
    x = torch.randn(5, 1, 16, 18, 20)
    with torch.no_grad():
        together = network(x)
        turned = network(x.flip(0)).flip(0)
        alone = torch.cat([network(one[None]) for one in x])
    assert together.shape == (5, 3)
    torch.testing.assert_close(together, turned)
    torch.testing.assert_close(together, alone)


def test_every_weight_gets_a_gradient():
    network = small().train()
    network(torch.randn(4, 1, 16, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_bfloat16_names_what_float32_names():
    network, x = small(), torch.randn(6, 1, 16, 16, 16)
    with torch.no_grad():
        exact, rounded = network(x).softmax(1), network(x.bfloat16()).float().softmax(1)
    assert (exact - rounded).abs().max() < 0.02


def test_views_are_the_flips_one_by_one():
    card = ModelCard(
        name="c", network="dsmnet", parameters={"classes": 3}, role="classifier",
        classes=["background", "a", "b"], voxel_size_angstrom=10.0, box_vox=16,
        voxel_size_range_angstrom=(9.0, 11.0), receptive_field_vox=1, n_parameters=1,
    )  # fmt: skip
    network = small()
    runner = Runner(card, network, torch.device("cpu"), torch.float32, "plain", 4)
    assert default_batch(runner, 0) == 64 and default_batch(runner, 3) == 3
    boxes = np.random.default_rng(0).normal(size=(5, 16, 16, 16)).astype(np.float32)
    found = np.array([np.array(v) for v in batched(runner, boxes, batch_size=2)])
    assert found.shape == (5, 4, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    with torch.no_grad():
        x = torch.from_numpy(boxes)[:, None]
        one = network(x.flip(FLIP_AXES[3])).softmax(1).numpy()
    np.testing.assert_allclose(found[:, 3], one, atol=1e-5)


def test_candidates_are_labelled_by_what_is_there():
    volume, rng = Balls()._make(5), np.random.default_rng(0)
    picked = picked_candidates(volume, OPTIONS, rng)
    assert len(picked.labels) >= len(volume.labels)
    seen = {0: 0, 1: 0, 2: 0}
    for _ in range(20):
        drawn = candidates_of(volume, picked, OPTIONS, rng)
        for place, label in zip(drawn.places, drawn.labels, strict=True):
            distance = np.linalg.norm(volume.centres_zyx - place, axis=1)
            seen[label] += 1
            if label:
                # Not farther than a third more than the hit distance, in no direction.
                assert distance.min() < OPTIONS.hit_vox * np.sqrt(3) * 2 / 3
                assert label == volume.labels[distance.argmin()]
            else:
                assert distance.min() > OPTIONS.hit_vox
        assert ((drawn.places > -0.5) & (drawn.places < np.array(SHAPE) - 0.5)).all()
    assert min(seen.values()) > 20


def test_background_comes_from_anywhere_as_often_as_asked():
    volume = Balls()._make(5)
    shares = []
    for anywhere in (0.0, 20.0):
        rng = np.random.default_rng(0)
        options = SubtomogramOptions(**{**OPTIONS.__dict__, "anywhere": anywhere})
        picked = picked_candidates(volume, options, rng)
        drawn = candidates_of(volume, picked, options, rng)
        background = drawn.places[drawn.labels == 0]
        apart = np.linalg.norm(background[:, None] - volume.centres_zyx[None], axis=-1).min(1)
        shares.append(np.mean(apart > BESIDE[1] * options.hit_vox))
    assert shares[1] > shares[0] + 0.3


def test_boxes_have_their_candidate_in_the_middle():
    volume, rng = Balls()._make(6), np.random.default_rng(0)
    drawn = candidates_of(volume, picked_candidates(volume, OPTIONS, rng), OPTIONS, rng)
    boxes = cut_boxes(volume, drawn, 16)
    for values, place, label in zip(boxes.values, drawn.places, boxes.labels, strict=True):
        z, y, x = np.floor(place + 0.5).astype(int)
        assert values[8, 8, 8] == np.float16(volume.volume[z, y, x])
        if label == 1:  # solid: its middle is dark wherever it is within its box
            assert values[4:12, 4:12, 4:12].mean() < -1


def test_a_tomogram_without_particles_gives_background():
    volume, rng = Balls(0)._make(7), np.random.default_rng(0)
    drawn = candidates_of(volume, picked_candidates(volume, OPTIONS, rng), OPTIONS, rng)
    assert len(drawn.labels) >= 3 and not drawn.labels.any()


def test_the_same_number_gives_the_same_boxes_in_any_process():
    one, again = chunk(Balls(), OPTIONS, 4), chunk(Balls(), OPTIONS, 4)
    np.testing.assert_array_equal(one.values, again.values)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert not np.array_equal(chunk(Balls(), OPTIONS, 5).labels[:8], one.labels[:8])
    here = list(SubtomogramRecipe(Balls(), 3, OPTIONS).epoch(2))
    elsewhere = SubtomogramOptions(**{**OPTIONS.__dict__, "workers": 1})
    there = list(SubtomogramRecipe(Balls(), 3, elsewhere).epoch(2))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert a["volume"].shape == (8, 1, 16, 16, 16)
        assert torch.equal(a["volume"], b["volume"]) and torch.equal(a["labels"], b["labels"])


def train(folder, *, epochs=3, rate=2e-3, **given):
    torch.manual_seed(1)
    options = TrainOptions(
        max_epochs=epochs, learning_rate=rate, schedule="cosine", validate_every=epochs,
        average_decay=0.8,
    )  # fmt: skip
    recipe = SubtomogramRecipe(Balls(), 3, SubtomogramOptions(**{**OPTIONS.__dict__, **given}))
    network = DSMNet(classes=3, maps=(4, 6, 8), features=10, dropout=0.3, stem="strided")
    return Trainer(network, recipe, options, folder)


def test_it_learns_to_tell_structures_and_background(tmp_path):
    trainer = train(tmp_path, epochs=4, rate=6e-3, batch_size=16, steps_per_epoch=30)
    before = trainer.recipe.validate(trainer.network.eval())
    trainer.run()
    trainer.network.load_state_dict(trainer.best_weights())
    after = trainer.recipe.validate(trainer.network.eval())
    assert after["loss"] < 0.5 * before["loss"]
    assert after["class_accuracy"] > 0.9
    assert after["sifted_background"] > 0.8 and after["lost_particles"] < 0.2


def test_a_resumed_training_leaves_out_the_same(tmp_path):
    train(tmp_path / "whole").run()
    first = train(tmp_path / "broken")
    first.options = TrainOptions(**{**first.options.__dict__, "stop_epochs": 2})
    first.run()
    torch.rand(7)  # whatever else happened meanwhile
    train(tmp_path / "broken").run()
    whole, broken = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_it_is_trained_as_a_classifier_only():
    with pytest.raises(ValidationError, match="task: classifier"):
        TrainSettings(network="dsmnet", task="joint")
    assert TrainSettings(network="dsmnet", task="classifier").dsmnet.maps == (32, 64, 128)
