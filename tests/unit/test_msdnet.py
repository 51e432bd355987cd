"""MSDNet against the paper's sizes, formulas and a hand-made reference."""

import pytest
import torch
import torch.nn.functional as F

from tomoline.errors import InputError
from tomoline.networks.blocks import count_parameters
from tomoline.networks.msdnet import (
    MSDNet,
    check_hybrid_dilation,
    dilations,
    receptive_field,
)
from tomoline.networks.registry import build


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ({"depth": 49, "width": 2, "max_dilation": 7, "classes": 2}, 129_952),
        ({"depth": 100, "width": 2, "max_dilation": 5, "classes": 13}, 542_826),
    ],
)
def test_published_sizes_have_their_parameter_counts(parameters, count):
    assert count_parameters(MSDNet(**parameters)) == count


def test_each_channel_has_its_own_dilation():
    # ((i * w + j) mod s) + 1 with w = 2, s = 5
    assert dilations(4, 2, 5, "per_channel") == [[1, 2], [3, 4], [5, 1], [2, 3]]


def test_each_layer_has_its_own_dilation():
    assert dilations(5, 2, 3, "per_layer") == [[1, 1], [2, 2], [3, 3], [1, 1], [2, 2]]


def test_receptive_field_is_where_a_change_of_input_reaches():
    network = MSDNet(depth=3, width=2, max_dilation=3, classes=2)
    for weight in network.weights:
        torch.nn.init.constant_(weight, 0.1)
    torch.nn.init.constant_(network.last_weight, 0.1)
    x = torch.ones(1, 1, 25, 25, 25, requires_grad=True)
    network(x)[0, 0, 12, 12, 12].backward()
    reached = (x.grad[0, 0] != 0).nonzero()
    edge = int((reached.max(0).values - reached.min(0).values + 1).max())
    assert edge == network.receptive_field_vox == receptive_field(network.schedule)


@pytest.mark.parametrize("schedule", [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 5], list(range(1, 8))])
def test_schedules_without_holes_are_taken(schedule):
    check_hybrid_dilation(schedule)


@pytest.mark.parametrize("schedule", [[1, 2, 9], [2, 4, 8], [1, 5, 5]])
def test_schedules_with_holes_are_refused_with_their_values(schedule):
    with pytest.raises(InputError, match=r"M_2 = \d+"):
        check_hybrid_dilation(schedule)


def test_layers_see_the_input_and_all_earlier_maps():
    torch.manual_seed(0)
    network = MSDNet(depth=2, width=2, max_dilation=4, classes=3)
    x = torch.randn(2, 1, 7, 8, 9)
    maps = x
    for i in range(2):
        new = [
            F.conv3d(maps, network.weights[i][j : j + 1], network.biases[i][j : j + 1],
                     padding=s, dilation=s)
            for j, s in enumerate(network.schedule[i])
        ]  # fmt: skip
        maps = torch.cat([maps, F.leaky_relu(torch.cat(new, 1), 0.01)], 1)
    expected = torch.einsum("kc,bczyx->bkzyx", network.last_weight, maps)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_unknown_network_and_parameter_name_the_known_ones():
    with pytest.raises(InputError, match="msdnet"):
        build("resnet", {})
    with pytest.raises(InputError, match="depht"):
        build("msdnet", {"depht": 3})
