"""3D-Dilated-DenseNet and 3D-DenseNet, and the papers' plain networks beside them."""

import numpy as np
import pytest
import torch
from torch import nn

from tomoline.errors import InputError
from tomoline.kernels.choose import speed_up
from tomoline.networks.baselines import VGG, EncoderDecoder
from tomoline.networks.blocks import count_parameters
from tomoline.networks.cards import NAME_WHOLE
from tomoline.networks.densenet import DenseNet
from tomoline.networks.registry import build
from tomoline.settings import TrainSettings

UNDILATED = (1, 1, 1, 1)


def small(**given):
    torch.manual_seed(0)
    return DenseNet(**{"classes": 3, "growth": 4, "first": 6, **given}).eval()


def counted(growth, first, classes, kernel):
    """Parameters by the paper's text: BN has 2 a map, every convolution a bias."""
    inner, maps = 4 * growth, first
    total = first * kernel**3 + first
    for block in range(3):
        if block:
            total += 2 * maps + maps * (maps // 2) + maps // 2
            maps //= 2
        for _ in range(4):
            total += 2 * maps + maps * inner + inner
            total += 2 * inner + inner * growth * 27 + growth
            maps += growth
    return total + 2 * maps + maps * classes + classes


@pytest.mark.parametrize("stem,kernel", [("plain", 3), ("strided", 5)])
@pytest.mark.parametrize("dilations", [(1, 2, 3, 1), UNDILATED])
def test_it_has_the_papers_layers(stem, kernel, dilations):
    network = build("densenet", {"classes": 13, "stem": stem, "dilations": dilations})
    assert count_parameters(network) == counted(12, 24, 13, kernel)
    dilated = [m.dilation for block in network.blocks for m in block.layers]
    assert dilated == 3 * list(dilations)


def test_the_sizes_that_the_cards_print():
    assert count_parameters(DenseNet(classes=13)) == 228_241
    assert count_parameters(DenseNet(classes=13, stem="strided")) == 230_593
    assert count_parameters(DenseNet(classes=12)) == 228_150


def test_weights_are_drawn_as_glorot_and_bengio_and_biases_are_nothing():
    torch.manual_seed(0)
    network = DenseNet(classes=13)
    layer = network.blocks[1].layers[2].second
    fan = 27 * (layer.in_channels + layer.out_channels)
    bound = (6 / fan) ** 0.5
    assert 0.95 * bound < layer.weight.detach().abs().max() <= bound
    assert abs(float(layer.weight.detach().std()) - bound / 3**0.5) < 0.05 * bound
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name


@pytest.mark.parametrize("stem", ["plain", "strided"])
def test_one_result_for_a_subtomogram_of_any_size_whatever_lies_beside_it_in_the_batch(stem):
    network, x = small(stem=stem), torch.randn(4, 1, 16, 20, 24)
    with torch.no_grad():
        together, turned = network(x), network(x.flip(0)).flip(0)
        alone = torch.cat([network(one[None]) for one in x])
    assert together.shape == (4, 3)
    torch.testing.assert_close(together, turned)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_weight_gets_a_gradient():
    network = small().train()
    network(torch.randn(4, 1, 16, 16, 16)).square().sum().backward()
    for name, p in network.named_parameters():
        # What a batch normalization follows has no use for a bias.
        useless = name.endswith(("layers.0.first.bias", ".first.bias", "convolution.bias"))
        assert p.grad is not None and (useless or p.grad.abs().max() > 0), name


def test_dilated_layers_see_farther_and_only_they_do():
    """The layer of dilation 3 of the first block sees three voxels away and not two."""
    network = small()
    layer = network.blocks[0].layers[2]
    x = torch.zeros(1, layer.first.in_channels, 9, 9, 9)
    base = layer(x)
    x[:, :, 4, 4, 4] = 5.0
    changed = (layer(x) - base).abs().amax((0, 1)) > 1e-7
    rows = sorted({int(z) for z in torch.nonzero(changed)[:, 0]})
    assert rows == [1, 4, 7]


def test_below_and_above_are_forward():
    network, x = small(), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        whole = network(x)
        for layers in ("head", "last_block", "all"):
            torch.testing.assert_close(network.above(network.below(x, layers), layers), whole)
    counts = [sum(p.numel() for p in network.learnt(k)) for k in ("head", "last_block", "all")]
    assert counts[0] < counts[1] < counts[2] == count_parameters(network)


def test_the_faster_gradients_are_the_plain_ones():
    network, x = small().train(), torch.randn(3, 1, 16, 16, 16)
    found = []
    for fast in (False, True):
        if fast:
            assert speed_up(network, torch.device("cpu"), torch.float32, trains=True) != "plain"
        network.zero_grad()
        network(x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_bfloat16_names_what_float32_names():
    network, x = small(), torch.randn(6, 1, 16, 16, 16)
    with torch.no_grad():
        exact, rounded = network(x).softmax(1), network(x.bfloat16()).float().softmax(1)
    assert (exact - rounded).abs().max() < 0.03


def test_dilations_that_leave_holes_are_refused():
    with pytest.raises(InputError, match="hybrid dilation"):
        DenseNet(classes=3, dilations=(1, 5, 5, 1))
    with pytest.raises(ValueError, match="densenet learns nothing else"):
        TrainSettings(network="densenet", task="joint")


def test_the_plain_classifier_names_wholes_and_the_segmenter_voxels():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 18, 16, 20)
    vgg = VGG(classes=5, maps=(4, 6, 8), features=16).eval()
    segmenter = EncoderDecoder(classes=5, maps=(4, 6, 8)).eval()
    with torch.no_grad():
        assert vgg(x).shape == (2, 5) and segmenter(x).shape == (2, 5, 18, 16, 20)
        torch.testing.assert_close(vgg(x)[:1], vgg(x[:1]))
    assert {"vgg", "densenet"} <= NAME_WHOLE and "encoder_decoder" not in NAME_WHOLE
    for network in (vgg, segmenter):
        network.train()(x).square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())


def test_the_segmenter_has_no_way_past_its_narrowest_maps():
    """Without skip connections nothing of the input is left once the lowest maps are nothing."""
    segmenter = EncoderDecoder(classes=3, maps=(4, 6, 8)).eval()
    last = segmenter.down[-1]
    nn.init.zeros_(last[-2].weight)
    nn.init.zeros_(last[-2].bias)
    with torch.no_grad():
        one, other = (segmenter(torch.randn(1, 1, 16, 16, 16)) for _ in range(2))
    np.testing.assert_array_equal(one, other)
