"""Class activation maps against hand-computed ones, and the stage that writes them."""

import re

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tomoline.contracts import PARTICLE_COLUMNS, VolumeTransform
from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.io.tables import write_particles
from tomoline.networks.activation import class_activation
from tomoline.networks.cards import ModelCard
from tomoline.networks.densenet import DenseNet
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.registry import build
from tomoline.networks.weights import save_model
from tomoline.settings import ActivationSettings
from tomoline.stages import activation

CLASSES = ["background", "ball", "cube"]
SIZE = {"classes": 3, "growth": 2, "first": 4, "stem": "strided"}


class Given(nn.Module):
    """A network whose last maps are given; its last layer is by hand."""

    def __init__(self, maps, weight, grid=(1.0, 0.0)):
        super().__init__()
        self.given, self.weight, self.map_grid = maps, weight, grid

    def maps(self, x):
        return self.given

    def of_means(self, means):
        return means @ self.weight.T + 7.0


def test_the_map_is_the_weighted_sum_of_the_maps():
    f = torch.zeros(1, 2, 2, 2, 2)
    f[0, 0, 0, 0, 0], f[0, 1, 1, 1, 1] = 3.0, 5.0
    network = Given(f, torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 4.0]]))
    x = torch.zeros(1, 1, 2, 2, 2)  # of the maps' size, so that nothing is up-sampled
    for label, (first, last) in {1: (6.0, -5.0), 2: (1.5, 20.0)}.items():
        wanted = torch.zeros(1, 2, 2, 2)
        wanted[0, 0, 0, 0], wanted[0, 1, 1, 1] = first, last
        torch.testing.assert_close(class_activation(network, x, torch.tensor([label])), wanted)


def test_it_is_up_sampled_to_the_input():
    f = torch.zeros(1, 1, 2, 2, 2)
    f[0, 0, 0] = 4.0  # the lower half
    network = Given(f, torch.tensor([[0.0], [1.0]]), (4.0, 1.5))
    cam = class_activation(network, torch.zeros(1, 1, 8, 8, 8), torch.tensor([1]))
    assert cam.shape == (1, 8, 8, 8)
    # Between the middles of the two voxels, at 1.5 and 5.5, it falls evenly.
    expected = [4, 4, 3.5, 2.5, 1.5, 0.5, 0, 0]
    np.testing.assert_allclose(cam[0, :, 3, 3], expected, atol=1e-6)


def test_the_maps_mean_and_the_bias_are_the_logit():
    torch.manual_seed(0)
    network = DenseNet(**{**SIZE, "stem": "plain"}).eval()
    nn.init.normal_(network.last.bias)
    x = torch.randn(3, 1, 16, 16, 16)
    label = torch.tensor([2, 0, 1])
    with torch.no_grad():
        logits = network(x)
        small = torch.einsum("bk,bkzyx->bzyx", network.last.weight[label], network.maps(x))
    chosen = logits[torch.arange(3), label] - network.last.bias[label]
    torch.testing.assert_close(small.mean((1, 2, 3)), chosen.detach())
    cam = class_activation(network, x, label)
    # Its maps are averages of equal parts of the subtomogram.
    torch.testing.assert_close(
        nn.functional.interpolate(
            small[:, None], size=x.shape[2:], mode="trilinear", align_corners=False
        )[:, 0],
        cam,
        rtol=1e-4,
        atol=1e-5,
    )


def test_behind_several_layers_the_weights_are_those_near_the_subtomogram():
    torch.manual_seed(0)
    network = DSMNet(classes=3, maps=(4, 6, 8), features=10).eval()
    x, label = torch.randn(2, 1, 16, 16, 16), torch.tensor([1, 2])
    cam = class_activation(network, x, label)
    maps = network.maps(x).detach()
    slopes = torch.empty(2, 8)
    for k in range(8):  # by small steps of each map's mean
        step = torch.zeros(8)
        step[k] = 1e-3
        with torch.no_grad():
            up, down = (network.of_means(maps.mean((2, 3, 4)) + s * step) for s in (1, -1))
        slopes[:, k] = (up - down)[torch.arange(2), label] / 2e-3
    small = torch.einsum("bk,bkzyx->bzyx", slopes, maps)
    # Its places are voxels 0.5 and 8.5, so that the first one's value holds at voxel 0.
    torch.testing.assert_close(cam[:, 0, 0, 0], small[:, 0, 0, 0], rtol=2e-2, atol=1e-4)
    torch.testing.assert_close(cam[:, 15, 15, 15], small[:, 1, 1, 1], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("network", [
    DSMNet(classes=3, maps=(2, 2, 2)), DSMNet(classes=3, maps=(2, 2, 2), stem="strided"),
    DenseNet(classes=3, growth=2, first=2), DenseNet(classes=3, growth=2, first=2, stem="strided"),
])  # fmt: skip
def test_a_place_of_the_maps_lies_about_its_voxel(network):
    """What a place depends on, by the gradient's weight, has its middle where the grid says."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    x = torch.ones(1, 1, 64, 4, 4, requires_grad=True)
    maps = network.eval().maps(torch.cat([x] * 4, 3)[:, :, :, :16].repeat(1, 1, 1, 1, 4))
    step, first = network.map_grid
    place = maps.shape[2] // 2
    maps[0, :, place].sum().backward()
    weight = x.grad.abs().sum((0, 1, 3, 4))
    middle = float((weight * torch.arange(64)).sum() / weight.sum())
    assert middle == pytest.approx(first + step * place, abs=0.51)


def save(folder, network="densenet", parameters=None, **fields):
    torch.manual_seed(3)
    parameters = parameters or SIZE
    card = ModelCard(
        name=folder.name, network=network, parameters=parameters, role="classifier",
        classes=CLASSES, voxel_size_angstrom=10.0, voxel_size_range_angstrom=(9.0, 11.0),
        box_vox=16, receptive_field_vox=16, n_parameters=1, **fields,
    )  # fmt: skip
    save_model(folder, card, build(network, parameters).state_dict())
    return str(folder / "card.yaml")


@pytest.fixture
def line(tmp_path):
    """A tomogram with a dark bar, three particles and two networks."""
    shape = (24, 28, 32)
    volume = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    volume[12, 14, 10:20] = -8
    write_volume(tmp_path / "prepared.mrc", volume, 10.0)
    VolumeTransform(
        source="t.mrc", file_shape=shape, given_shape_zyx=shape, prepared_shape_zyx=shape,
        given_voxel_size_angstrom=10.0, prepared_voxel_size_angstrom=10.0,
        scale_zyx=(1.0,) * 3, offset_zyx=(0.0,) * 3,
    ).save(tmp_path / "prepared.json")  # fmt: skip
    rows = [("ball", 0.9, 12, 14, 15), ("ball", 0.7, 6, 8, 9), ("cube", 0.8, 23, 27, 31),
            ("", 0.1, 3, 3, 3)]  # fmt: skip
    table = pd.DataFrame(
        {column: [0] * len(rows) for column in PARTICLE_COLUMNS}
        | {
            "tomogram": "one", "particle_id": range(1, 5), "class": [r[0] for r in rows],
            "score": [r[1] for r in rows], "z_vox": [float(r[2]) for r in rows],
            "y_vox": [float(r[3]) for r in rows], "x_vox": [float(r[4]) for r in rows],
            "voxel_size_angstrom": 10.0, "tomogram_nz": 24, "tomogram_ny": 28, "tomogram_nx": 32,
            "binning": 1.0, "size_vox": 9, "status": ["accepted"] * 3 + ["rejected"],
            "reason": [""] * 3 + ["small"], "p_ball": 0.5, "p_cube": 0.5,
        }
    )  # fmt: skip
    write_particles(tmp_path / "particles.csv", table)
    return tmp_path


def run(line, cards, **settings):
    inputs = {"particles": line / "particles.csv", "transform": line / "prepared.json",
              "volume": line / "prepared.mrc", **cards}  # fmt: skip
    if (line / "truth.csv").exists():
        inputs |= {"truth": line / "truth.csv"}
    outputs = {"page": line / "activation.html", "maps": line / "activation.h5"}
    activation.run(
        inputs, outputs, settings=ActivationSettings(**settings), tomogram="one",
        dataset={"name": "set", "sheet": "set.tsv"}, evaluate={},
    )  # fmt: skip
    return outputs


def test_the_page_shows_what_was_asked_for(line):
    cards = {
        "card": save(line / "dilated"),
        "card_2": save(line / "undilated", parameters={**SIZE, "dilations": [1, 1, 1, 1]}),
    }
    (line / "truth.csv").write_text("x,y,z,cls\n15,14,12,ball\n9,8,6,cube\n")
    made = run(line, cards, per_class=1, particles={"one": [2], "other": [77]})
    html = made["page"].read_text()
    numbers = [int(n) for n in re.findall(r"number (\d+)", html)]
    assert numbers == [1, 3, 2]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', html)
    assert heads == ["Particle", "Subtomogram", "dilated", "undilated"]
    assert re.findall(r"truly (\w+( \w+)?)", html) == [
        ("ball", ""), ("no particle", " particle"), ("cube", "")
    ]  # fmt: skip
    assert html.count("<img") == 3 * 3
    with h5py.File(made["maps"]) as file:
        assert list(file["particle_id"]) == [1, 3, 2]
        for name in ("dilated", "undilated"):
            assert file[name]["maps"].shape == (3, 16, 16, 16)
            assert set(file[name]["named"].asstr()) <= {"ball", "cube"}
        assert not np.allclose(file["dilated"]["maps"], file["undilated"]["maps"])
    again = run(line, cards, per_class=1, particles={"one": [2]})
    assert again["page"].read_text() == html


def test_the_stages_map_is_the_networks(line):
    made = run(line, {"card": save(line / "net")}, per_class=3)
    network = activation.load_network(line / "net")[1]
    volume = np.asarray(activation.open_volume(line / "prepared.mrc"), np.float32)
    box = volume[4:20, 6:22, 7:23]
    x = torch.from_numpy(box.copy())[None, None]
    with torch.no_grad():
        label = network(x)[:, 1:].argmax(1) + 1
    with h5py.File(made["maps"]) as file:
        assert file["net"]["named"].asstr()[0] == CLASSES[int(label)]
        found = file["net"]["maps"][0]
    np.testing.assert_allclose(
        found, class_activation(network, x, label)[0].numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_network_of_voxels_shows_its_probability(line):
    card = save(line / "voxels", "msdnet", {"classes": 3, "depth": 3, "width": 2})
    made = run(line, {"card": card}, per_class=1)
    with h5py.File(made["maps"]) as file:
        maps = np.asarray(file["voxels"]["maps"])
    assert maps.shape == (2, 16, 16, 16) and (maps >= 0).all() and (maps <= 1).all()


def test_what_cannot_be_shown_is_refused(line):
    with pytest.raises(InputError, match=r"activation.particles.*found 4, 99"):
        run(line, {"card": save(line / "net")}, particles={"one": [1, 4, 99]})
    vgg = save(line / "vgg", "vgg", {"classes": 3, "maps": [2, 2, 2], "features": 4})
    with pytest.raises(InputError, match="averages its last maps"):
        run(line, {"card": vgg}, per_class=1)


def test_nothing_to_show_is_a_page_that_says_so(line):
    made = run(line, {"card": save(line / "net")}, per_class=0)
    assert "No particle was accepted" in made["page"].read_text()
    assert not ActivationSettings().wanted and ActivationSettings(per_class=1).wanted
    assert ActivationSettings(particles={"one": [3]}).wanted
