"""The U-Net: DeepFinder's size, what it sees, windows, memory, its loss and its training."""

import json
from pathlib import Path

import pytest
import torch

from tomoline.kernels.memory import bytes_per_voxel
from tomoline.networks.cards import ModelCard
from tomoline.networks.registry import build
from tomoline.networks.unet import UNet
from tomoline.training.losses import tversky_loss

# Layer by layer as published: kernel voxels, maps in, maps out; each map has a bias.
PUBLISHED = [
    (27, 1, 32), (27, 32, 32), (27, 32, 48), (27, 48, 48),
    (27, 48, 64), (27, 64, 64), (27, 64, 64), (27, 64, 64),
    (8, 64, 64), (27, 112, 48), (27, 48, 48), (8, 48, 48), (27, 80, 32), (27, 32, 32),
    (1, 32, 13),
]  # fmt: skip


def small(**given):
    torch.manual_seed(0)
    return UNet(**{"classes": 3, "filters": (3, 4, 5), **given}).eval()


def test_it_has_deepfinders_layers_and_their_parameters():
    network = build("unet", {"classes": 13})
    weights = sorted(p.shape for p in network.parameters() if p.dim() == 5)
    wanted = sorted((o, i, *[{27: 3, 8: 2}[k]] * 3) for k, i, o in PUBLISHED[:-1])
    assert [tuple(w) for w in weights] == wanted
    count = sum(k * i * o + o for k, i, o in PUBLISHED)
    assert sum(p.numel() for p in network.parameters()) == count == 903_357


def test_no_voxel_farther_than_its_field_matters():
    network = small().double()
    reach = network.receptive_field_vox // 2
    farthest = 0
    for place in range(48, 52):  # every place within a block of four
        x = torch.randn(1, 1, 100, 8, 8, dtype=torch.double, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x)[0, :, place, 4, 4].sum(), x)
        seen = gradient[0, 0].abs().amax((1, 2)).nonzero().flatten()
        farthest = max(farthest, place - int(seen.min()), int(seen.max()) - place)
    assert reach - 4 <= farthest <= reach


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 6, 7), (4, 9, 3)])
def test_any_size_comes_out_as_it_went_in(shape):
    assert small()(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)


def test_a_window_that_begins_at_a_multiple_of_four_gives_the_whole_volumes_values():
    network = small()
    x = torch.randn(1, 1, 104, 12, 12)
    with torch.no_grad():
        whole, part = network(x), network(x[:, :, 4:])
    inner = slice(network.receptive_field_vox // 2, None)
    torch.testing.assert_close(part[:, :, inner], whole[:, :, 4:][:, :, inner])


def test_sixteen_bits_give_nearly_the_same():
    network, x = small(), torch.randn(1, 1, 12, 12, 12)
    with torch.no_grad():
        exact, low = network(x), network(x.bfloat16())
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_memory_is_known_without_the_network():
    card = ModelCard(
        name="u", network="unet", parameters={"classes": 2}, role="classifier", box_vox=32,
        classes=["background", "a"], voxel_size_angstrom=10.0, receptive_field_vox=69,
        voxel_size_range_angstrom=(9, 11), n_parameters=1,
    )  # fmt: skip
    assert 4 * (32 + 48 + 48 + 80) < bytes_per_voxel(card, code="cpu") < 2000


def test_tversky_loss_is_one_less_the_mean_overlap():
    target = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2]]).repeat(1, 50)
    perfect = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 50.0
    assert float(tversky_loss(perfect, target)) < 1e-3
    # All voxels class 1: it has half of them, so its overlap is 2 * 200 / (400 + 200).
    wrong = torch.zeros(1, 3, 400)
    wrong[:, 1] = 50
    overlap = (1 / (100 / 2 + 1) + (200 + 1) / (300 + 1) + 1 / (100 / 2 + 1)) / 3
    assert float(tversky_loss(wrong, target)) == pytest.approx(1 - overlap, abs=1e-4)
    missed = float(tversky_loss(wrong, target, false_positives=0.0, false_negatives=1.0))
    assert missed != pytest.approx(float(tversky_loss(wrong, target)), abs=1e-2)


def test_a_training_learns_ends_with_its_budget_and_leaves_a_model(tmp_path: Path):
    from tomoline.networks.weights import load_network  # noqa: PLC0415
    from tomoline.settings import TrainSettings  # noqa: PLC0415
    from tomoline.stages import train  # noqa: PLC0415

    settings = TrainSettings(
        name="u", network="unet", filters=(4, 6, 8), task="classifier", loss="tversky",
        classes=["1bxn", "3qm1"], shape_zyx=(24, 40, 40), crop_vox=16, batch_size=2,
        steps_per_epoch=4, volumes_per_epoch=1, validation_volumes=1, max_epochs=5,
        learning_rate=1e-2, precision="float32", average_decay=0.5,
    )  # fmt: skip
    densities = Path(__file__).parents[2] / "resources" / "densities"
    outputs = train.output_paths(settings, tmp_path)
    train.run({"densities": densities}, outputs, settings=settings, work=str(tmp_path / "work"))
    rows = [json.loads(r) for r in outputs["curves"].read_text().splitlines()]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] < 1
    card, network = load_network(tmp_path / "u-classifier")
    assert isinstance(network, UNet)
    assert card.receptive_field_vox == network.receptive_field_vox
    assert card.training["voxels_seen"] == 5 * 4 * 2 * 16**3
    short = settings.model_copy(update={"name": "s", "stop_processor_hours": 1e-6})
    train.run({"densities": densities}, train.output_paths(short, tmp_path), settings=short,
              work=str(tmp_path / "short"))  # fmt: skip
    assert len((tmp_path / "s" / "curves.jsonl").read_text().splitlines()) == 1
