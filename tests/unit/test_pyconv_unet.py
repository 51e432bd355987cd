"""PyConvU-Net: its layers, cost by hand, slices of a volume; the U-Net beside it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tomoline.networks.cost import count_multiply_adds, count_parameters
from tomoline.networks.pyconv_unet import ImageUNet, PyConvUNet, PyramidalConvolution
from tomoline.networks.registry import build
from tomoline.networks.slices import over_slices


def small(**given):
    torch.manual_seed(0)
    return PyConvUNet(**{"filters": (8, 16, 32), "pyramid": (4, 3, 1), **given}).eval()


def test_a_convolution_and_its_cost_by_hand():
    # 3x3 kernels, 8 maps to 16: 16 x 8 x 9 weights, each used at 20 x 30 places.
    layer = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    assert count_parameters(layer) == 16 * 8 * 9
    assert count_multiply_adds(layer, (1, 8, 20, 30)) == 16 * 8 * 9 * 20 * 30
    # In 4 groups each output sees 2 inputs; with stride 2 there are 10 x 15 places.
    grouped = nn.Conv2d(8, 16, 5, stride=2, padding=2, groups=4)
    assert count_multiply_adds(grouped, (1, 8, 20, 30)) == 16 * 2 * 25 * 10 * 15
    # An up-convolution spreads every input pixel; a linear layer is its matrix.
    assert (
        count_multiply_adds(nn.ConvTranspose2d(8, 4, 2, stride=2), (1, 8, 5, 6)) == 8 * 4 * 4 * 30
    )
    assert count_multiply_adds(nn.Linear(7, 3), (5, 7)) == 5 * 21


def test_counting_leaves_a_network_as_it_was():
    network = small().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    count_multiply_adds(network, (1, 1, 32, 32))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not [m for m in network.modules() if m._forward_hooks]


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (32, 64), (64, 128), (1, 16)])
def test_a_pyramid_has_the_parameters_of_its_levels(inputs, outputs):
    layer = PyramidalConvolution(inputs, outputs, 4)
    groups = [1, 4, 8, 16] if inputs >= 16 else [1] * 4
    quarter = outputs // 4
    groups = [min(g, quarter) for g in groups]
    expected = sum(k * k * quarter * inputs // g for k, g in zip((3, 5, 7, 9), groups, strict=True))
    assert count_parameters(layer) == expected
    # Equation 7: no level costs more than a plain 3x3 kernel would for as many maps.
    if min(inputs, quarter) >= 16:
        assert count_parameters(layer) < 9 * inputs * outputs


@pytest.mark.parametrize("inputs", [1, 16, 32, 64])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_merged_kernels_do_what_the_groups_do_forwards_and_backwards(inputs, levels):
    torch.manual_seed(1)
    layer = PyramidalConvolution(inputs, 32, levels).double()
    x = torch.randn(2, inputs, 21, 18, dtype=torch.double, requires_grad=True)
    plain = torch.cat([
        F.conv2d(x, c.weight, padding=c.padding, groups=c.groups) for c in layer.levels
    ], 1)  # fmt: skip
    merged = layer._merged(x)
    torch.testing.assert_close(merged, plain)
    torch.testing.assert_close(layer(x), plain)
    weights = list(layer.parameters())
    away = torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(merged, [x, *weights], away),
        torch.autograd.grad(plain, [x, *weights], away),
    )


def _pair(inputs: int, maps: int, levels: int) -> int:
    """Parameters of two pyramidal convolutions with normalisations (equation 7)."""
    shares = {1: [1.0], 2: [0.5, 0.5], 3: [0.25, 0.25, 0.5], 4: [0.25] * 4}[levels]
    total = 4 * maps
    for before in (inputs, maps):
        for share, kernel, groups in zip(shares, (3, 5, 7, 9), (1, 4, 8, 16), strict=False):
            own = int(share * maps)
            total += kernel**2 * before // math.gcd(groups, before, own) * own
    return total


def test_the_network_is_as_light_as_the_paper_says():
    network = build("pyconv_unet", {})
    count, macs = count_parameters(network), count_multiply_adds(network, (1, 1, 512, 512))
    # By hand: each pair's two convolutions, normalisations, up-convolutions and the last layer.
    by_hand = sum(_pair(a, b, n) for a, b, n in [
        (1, 16, 4), (16, 32, 4), (32, 64, 3), (64, 96, 2), (96, 256, 1),
        (192, 96, 2), (128, 64, 3), (64, 32, 4), (32, 16, 4),
    ])  # fmt: skip
    by_hand += sum(4 * a * b + b for a, b in [(256, 96), (96, 64), (64, 32), (32, 16)]) + 17
    assert count == by_hand
    assert count <= 3.7e6
    assert macs <= 10.65e9


def test_the_baseline_is_the_papers_unet():
    # Table 3: 7.77 million parameters and 48.57 GMac.
    network = build("unet2d", {})
    assert count_parameters(network) == pytest.approx(7.77e6, rel=0.002)
    assert count_multiply_adds(network, (1, 1, 512, 512)) == pytest.approx(48.57e9, rel=0.01)


def test_every_convolution_of_the_path_is_pyramidal_with_normalisation_and_relu():
    network = PyConvUNet()
    pairs = [*network.down, *network.up]
    assert len(pairs) == 9
    for pair in pairs:
        kinds = [type(layer) for layer in pair]
        assert kinds == [PyramidalConvolution, nn.BatchNorm2d, nn.ReLU] * 2
    sizes = [[c.kernel_size[0] for c in pair[0].levels] for pair in network.down]
    assert sizes == [[3, 5, 7, 9], [3, 5, 7, 9], [3, 5, 7], [3, 5], [3]]


@pytest.mark.parametrize("shape", [(16, 16), (33, 50), (7, 9)])
def test_any_size_comes_out_as_it_went_in(shape):
    logits = small()(torch.randn(2, 1, *shape))
    assert logits.shape == (2, 2, *shape)
    # The softmax over a background of 0 is the sigmoid of the other class.
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())
    assert not logits[:, 0].any()


def test_no_pixel_farther_than_its_field_matters():
    network = PyConvUNet(filters=(4, 8), pyramid=(2, 1)).double().eval()
    reach = network.receptive_field_vox // 2
    farthest = 0
    for place in (40, 41):
        x = torch.randn(1, 1, 82, 8, dtype=torch.double, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x)[0, 1, place, 4].sum(), x)
        seen = gradient[0, 0].abs().amax(1).nonzero().flatten()
        farthest = max(farthest, place - int(seen.min()), int(seen.max()) - place)
    assert reach - 2 <= farthest <= reach


def test_bfloat16_stays_near():
    network = small()
    x = torch.randn(1, 1, 48, 48)
    with torch.no_grad():
        exact, low = network(x).softmax(1), network(x.bfloat16()).float().softmax(1)
    assert (exact - low).abs().max() < 0.05


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_axis_with_their_neighbours(axis):
    def look(images):  # channels: slice before, slice, slice after
        assert images.shape[1] == 3
        return images[:, [0, 2]]

    x = torch.randn(2, 1, 5, 6, 7)
    found = over_slices(look, x, in_channels=3, axes=(axis,))
    n = x.shape[axis + 2]
    for channel, step in ((0, -1), (1, 1)):
        index = (torch.arange(n) + step).clamp(0, n - 1)
        torch.testing.assert_close(found[:, channel], x[:, 0].index_select(axis + 1, index))


def test_three_axes_give_the_mean_of_the_probabilities():
    network = small()
    x = torch.randn(1, 1, 9, 12, 10)
    with torch.no_grad():
        single = [over_slices(network, x, axes=(axis,)).softmax(1) for axis in range(3)]
        network.slice_axes = (0, 1, 2)
        together = network(x).softmax(1)
    torch.testing.assert_close(together, sum(single) / 3, atol=1e-6, rtol=1e-5)
    network.slice_axes = (0,)
    torch.testing.assert_close(network(x).softmax(1), single[0])


def test_the_baseline_has_plain_kernels_only():
    kernels = {m.kernel_size for m in ImageUNet(filters=(4, 8)).modules()
               if isinstance(m, nn.Conv2d)}  # fmt: skip
    assert kernels == {(3, 3), (1, 1)}


def test_a_pyramid_of_other_length_than_the_filters_is_refused():
    with pytest.raises(ValueError, match="as many"):
        build("pyconv_unet", {"filters": [8, 16], "pyramid": [1]})
