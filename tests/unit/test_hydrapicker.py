"""HydraPicker: shapes, losses by hand, heads that learn apart, rotations, and that it learns."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tomoline.errors import InputError
from tomoline.evaluation.detection import Ranked, detection
from tomoline.networks.blocks import count_parameters
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.ops.micrographs import EXTENT_PX, PickRules, Prepared, anchors, decoded
from tomoline.stages.picking import Picking, picks_in
from tomoline.training.hydrapicker import (
    HydraOptions,
    HydraRecipe,
    Labelled,
    assigned,
    background_of,
    bias_loss,
    detection_loss,
    focal_loss,
    noise_padded,
    only_head_learns,
    rotated,
    targets,
)
from tomoline.training.loop import Trainer
from tomoline.training.options import TrainOptions

SMALL = {"body": 8, "width": 1 / 16, "stem": "strided", "dropout": 0.0}


def discs(seed: int, edge: int = 160, number: int = 12) -> Labelled:
    """Bright discs of the model's extent in noise, apart from each other."""
    rng = np.random.default_rng(seed)
    image, places = np.zeros((edge, edge)), []
    while len(places) < number:
        place = rng.uniform(6, edge - 7, 2)
        if all(np.linalg.norm(place - other) > EXTENT_PX for other in places):
            places.append(place)
    y, x = np.indices(image.shape)
    for cy, cx in places:
        image += np.hypot(y - cy, x - cx) < EXTENT_PX / 2
    noisy = 2 * gaussian_filter(image, 1) + rng.normal(0, 0.7, image.shape)
    return Labelled((noisy - noisy.mean()).astype(np.float32), np.asarray(places))


def test_a_network_of_the_published_size() -> None:
    network = HydraPicker()
    # 3x3 kernels: 1 to 64, 13 of 64 to 64; two numbers a channel in each of 7 normalizations.
    assert count_parameters(network.body) == 9 * 64 + 13 * 9 * 64 * 64 + 7 * 2 * 64
    channels = (64, 128, 256, 512, 1024)
    blocks = sum(9 * a * b + 3 * b for a, b in itertools.pairwise(channels))
    assert count_parameters(network.head(GENERAL)) == blocks + 9 * 1024 * 3 + 3
    assert 6.2e6 < count_parameters(network.head(GENERAL)) < 6.4e6
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32}


@pytest.mark.parametrize("stem", ["full", "strided"])
def test_three_numbers_a_cell_and_offsets_within_reach(stem: str) -> None:
    torch.manual_seed(3)  # what is not learnt yet is random
    network = HydraPicker(body=8, width=1 / 32, stem=stem).eval()
    output = network(50 * torch.randn(2, 1, 64, 96))
    assert output.shape == (2, 3, 4, 6)
    assert output[:, :2].abs().max() <= 12
    untouched = HydraPicker(body=8, width=1 / 32, stem=stem).eval()(torch.zeros(1, 1, 32, 32))
    # The class bias of -4 at the start: about two particles in a hundred cells.
    assert torch.allclose(torch.sigmoid(untouched[:, 2]), torch.tensor(0.018), atol=0.005)


def test_an_unknown_head_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="general, mine"):
        HydraPicker(heads=["mine"], **SMALL)(torch.zeros(1, 1, 32, 32), "other")


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, np.log(3.0), np.log(3.0)])
    target = torch.tensor([1.0, 1.0, 0.0])
    # probabilities of the right class: 1/2, 3/4, 1/4
    expected = -0.5 * (
        0.25 * 0.25 * np.log(0.5) + 0.25 * 0.0625 * np.log(0.75) + 0.75 * 0.5625 * np.log(0.25)
    )
    assert focal_loss(logits.float(), target).item() == pytest.approx(expected, rel=1e-5)


def test_bias_loss_by_hand() -> None:
    network = HydraPicker(heads=["a", "b"], **SMALL)
    for name in ("a", "b"):
        network.head(name).load_state_dict(network.head(GENERAL).state_dict())
    assert bias_loss(network).item() == 0
    count = count_parameters(network.head("a"))
    with torch.no_grad():
        for p in network.head("a").parameters():
            p.add_(0.5)
        first = next(network.head("b").parameters())
        first[0, 0, 0, :2] += torch.tensor([3.0, 4.0])
    # norms of all weights' differences: 0.5 sqrt(n) and 5, and their mean
    assert bias_loss(network).item() == pytest.approx((0.5 * count**0.5 + 5) / 2, rel=1e-4)


def test_localisation_loss_by_hand() -> None:
    output, offsets = torch.zeros(1, 3, 1, 2), torch.zeros(1, 2, 1, 2)
    output[0, 2] = torch.tensor([[50.0, -50.0]])  # surely right: no classification loss
    output[0, :2, 0, 0] = torch.tensor([3.0, -2.0])
    offsets[0, :2, 0, 0] = torch.tensor([-1.0, 2.0])
    output[0, :2, 0, 1] = 9.0  # where there is no particle offsets do not count
    classes = torch.tensor([[[1.0, 0.0]]])
    assert float(detection_loss(output, offsets, classes)) == pytest.approx((4 + 4) / 16)


def step(network: HydraPicker, phase: str, bias: float, new_head: str = "") -> None:
    """One step of SGD with a batch of the data set `a`."""
    sets = {"a": [discs(1, 96, 4)]}
    options = HydraOptions(phase=phase, new_head=new_head, crop_px=64, batch_size=1,
                           steps_per_epoch=1, bias_weight=bias)  # fmt: skip
    recipe = HydraRecipe(sets, {}, options)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for batch in recipe.epoch(0):
        recipe.loss(network, batch).backward()
        optimiser.step()


def changed(before: dict[str, torch.Tensor], network: HydraPicker) -> set[str]:
    """Parts of the network (body, and heads by name) that are no longer as before."""
    parts = {key for key, value in network.state_dict().items() if not value.equal(before[key])}
    return {key.split(".")[1] if key.startswith("heads.") else "body" for key in parts}


def test_a_batch_changes_its_own_head_and_others_only_by_the_bias_term() -> None:
    torch.manual_seed(2)
    network = HydraPicker(heads=["a", "b"], **SMALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    step(network, "heads", bias=0.0)
    assert changed(before, network) == {"body", "a"}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    step(network, "heads", bias=0.1)
    assert changed(before, network) == {"body", "a", "b", GENERAL}
    # The other head moves along the line to `general`, and by the bias term's weight / heads.
    moved = torch.cat([(v - before[k]).reshape(-1) for k, v in network.head("b").state_dict(
        prefix="heads.b.").items()])  # fmt: skip
    towards = torch.cat([
        (before[k.replace("heads.b.", f"heads.{GENERAL}.")] - before[k]).reshape(-1)
        for k in before if k.startswith("heads.b.")
    ])  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity(moved, towards, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-3)
    assert float(moved.norm()) == pytest.approx(0.1 * 0.1 / 2, rel=1e-2)


def test_a_new_head_learns_while_everything_else_is_frozen() -> None:
    torch.manual_seed(2)
    network = HydraPicker(heads=["old"], **SMALL)
    network.add_head("a")
    assert all(
        v.equal(network.head(GENERAL).state_dict()[k])
        for k, v in network.head("a").state_dict().items()
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    only_head_learns(network, "a")
    step(network, "new_head", bias=0.1, new_head="a")
    assert changed(before, network) == {"a"}


def test_every_particle_has_a_cell_of_its_own_even_two_in_one() -> None:
    cells = (4, 4)
    # In a cell's middle; at a corner of four; and two in one cell, 9 pixels apart.
    yx = np.array([[7.5, 7.5], [31.5, 31.5], [50.0, 50.0], [50.0, 59.0]])
    owner = assigned(yx, cells)
    assert set(owner[owner >= 0]) == {0, 1, 2, 3}
    offsets, classes = targets(yx, cells)
    assert classes.sum() == (owner >= 0).sum()
    found = anchors(cells) + np.moveaxis(offsets, 0, -1)
    for k, place in enumerate(yx):
        assert np.allclose(found[owner == k], place)
    assert np.abs(offsets).max() <= 12
    assert (assigned(np.empty((0, 2)), cells) == -1).all()


def test_targets_decode_to_the_particles() -> None:
    item = discs(3)
    offsets, classes = targets(item.yx, (10, 10))
    yx, score = decoded(np.concatenate([offsets, np.where(classes, 9.0, -9.0)[None]]))
    kept = yx[score > 0.5]
    apart = np.linalg.norm(item.yx[:, None] - kept[None], axis=-1)
    assert apart.min(1).max() < 1e-4


@pytest.mark.parametrize("angle_deg", [0, 90, 37, 211])
@pytest.mark.parametrize("mirror", [1, -1])
def test_rotations_move_particles_with_their_image(angle_deg: float, mirror: int) -> None:
    """The blobs of the turned image are where the turned coordinates say."""
    places = np.array([[60.0, 80.0], [100.0, 70.5], [83.25, 120.0]])
    y, x = np.indices((170, 190))
    image = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 18) for a, b in places)
    turn = np.deg2rad(angle_deg)
    matrix = 1.1 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.diag([1, mirror])
    made = rotated(Labelled(image.astype(np.float32), places), np.array([84.0, 90.0]), matrix, 160)
    assert len(made.yx) == 3
    rows, columns = np.indices(made.image.shape)
    for a, b in made.yx:
        weight = made.image * (np.hypot(rows - a, columns - b) < 9)
        centre = np.array([(weight * rows).sum(), (weight * columns).sum()]) / weight.sum()
        assert np.linalg.norm(centre - [a, b]) < 0.1


def test_small_micrographs_are_padded_with_the_background() -> None:
    item = discs(5)
    wide = noise_padded(item, 520, np.random.default_rng(1))
    assert wide.image.shape == (520, 520)
    y, x = np.rint(wide.yx[0]).astype(int)
    assert wide.image[y, x] == item.image[tuple(np.rint(item.yx[0]).astype(int))]
    mean, sd = background_of(item)
    rim = wide.image[:170]
    assert rim.mean() == pytest.approx(mean, abs=0.02)
    assert rim.std() == pytest.approx(sd, rel=0.02)
    assert mean < item.image.mean()  # particles are bright, and are not background


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> HydraPicker:
    """A small picker after some seconds of training on discs, killed once on the way."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("learnt")
    sets = {"discs": [discs(seed) for seed in range(10)]}
    options = HydraOptions(crop_px=112, batch_size=4, steps_per_epoch=20)
    recipe = HydraRecipe(sets, {"discs": [discs(90)]}, options)
    plan = TrainOptions(optimiser="muon", learning_rate=5e-3, schedule="restarts", step_epochs=10,
                        max_epochs=10, validate_every=5, average_decay=0.9)  # fmt: skip
    network = HydraPicker(**SMALL)
    trainer = Trainer(network, recipe, plan, folder)
    trainer.run()
    network.load_state_dict(trainer.average)
    return network.eval()


def found_in(network: HydraPicker, item: Labelled, shifts: int = 4) -> float:
    prepared = Prepared(values=item.image, scale_yx=(1, 1), given_shape=(160, 160))
    rules = PickRules(threshold=0.01, floor=0.01, edge=0)
    found = picks_in(network, prepared, Picking(shifts=shifts), rules)
    own = found["reason"] == ""
    return detection([Ranked(yx=found["yx"][own], score=found["score"][own], true_yx=item.yx,
                             diameter_px=EXTENT_PX)]).ap  # fmt: skip


def test_it_learns_to_find_discs(learnt: HydraPicker) -> None:
    assert np.mean([found_in(learnt, discs(seed)) for seed in (201, 202, 203)]) > 0.85


def test_training_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    sets = {"a": [discs(1, 96, 4)], "b": [discs(2, 96, 4)]}
    options = HydraOptions(phase="heads", crop_px=64, batch_size=1, steps_per_epoch=2)

    def trained(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        for stop in stops:
            torch.manual_seed(4)
            network = HydraPicker(heads=["a", "b"], **SMALL)
            plan = TrainOptions(optimiser="sgd", learning_rate=0.05, schedule="cosine",
                                max_epochs=4, stop_epochs=stop)  # fmt: skip
            trainer = Trainer(network, HydraRecipe(sets, sets, options), plan, folder)
            trainer.run()
        return network.state_dict()

    whole, parts = trained(tmp_path / "whole", 4), trained(tmp_path / "parts", 2, 4)
    assert all(torch.allclose(whole[key], parts[key], atol=1e-6) for key in whole)
