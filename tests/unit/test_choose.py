"""Which code runs a network here, and that it is the one that was named."""

import pytest
import torch

from tomoline.kernels.choose import speed_up
from tomoline.kernels.cpu_loops import has_pairs
from tomoline.kernels.dilated import cpu_convolve
from tomoline.networks.blocks import plain_convolve
from tomoline.networks.msdnet import MSDNet

CPU = torch.device("cpu")
NARROW = {"depth": 2, "width": 2, "max_dilation": 2}
WIDE = {"depth": 2, "width": 8, "max_dilation": 2, "dilation": "per_layer"}


@pytest.mark.parametrize("shape", [NARROW, WIDE])
def test_networks_are_run_by_the_kernel(shape):
    made, x = MSDNet(**shape), torch.randn(1, 1, 6, 7, 8)
    with torch.no_grad():
        plain = made(x)
        assert speed_up(made, CPU, torch.float32) == "cpu"
        torch.testing.assert_close(made(x), plain)
        for weight in made.weights:
            weight.zero_()
        torch.testing.assert_close(made(x), plain)  # read once


def test_training_follows_the_weights():
    made, x = MSDNet(**NARROW), torch.randn(1, 1, 6, 7, 8)
    assert speed_up(made, CPU, torch.float32, trains=True) == "cpu"
    before = made(x)
    before.sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    with torch.no_grad():
        made.last_bias += 1
    torch.testing.assert_close(made(x), before + 1)


def test_wide_layers_are_trained_by_onednn():
    made = MSDNet(**WIDE)
    assert speed_up(made, CPU, torch.float32, trains=True) == "cpu-onednn"
    assert made.kernel is None
    assert made.convolve is cpu_convolve


def test_what_the_kernel_cannot_do_goes_another_way():
    made = MSDNet(**NARROW, classes=40)
    assert speed_up(made, CPU, torch.float32) == "cpu-onednn"
    low = speed_up(MSDNet(**NARROW), CPU, torch.bfloat16)
    assert low == ("cpu" if has_pairs() else "cpu-onednn")
    elsewhere = MSDNet(**NARROW)
    assert speed_up(elsewhere, torch.device("cuda"), torch.bfloat16) == "plain"
    assert (elsewhere.kernel, elsewhere.convolve) == (None, plain_convolve)
    assert speed_up(torch.nn.Identity(), CPU, torch.float32) == "plain"
