"""Which code runs a network here, and that it is the one that was named."""

import pytest
import torch

from tomoline.kernels import cpu_loops, cpu_msdnet, triton_msdnet
from tomoline.kernels.choose import speed_up, use_triton
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
        for parameter in made.parameters():
            parameter.zero_()
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
    assert speed_up(torch.nn.Identity(), CPU, torch.float32) == "plain"


# The interpreter stands for a GPU here (tests/conftest.py).
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_is_used_where_it_is_right(trains, dtype):
    made, x = MSDNet(**NARROW), torch.randn(1, 1, 6, 7, 8)
    with torch.no_grad():
        plain = made(x)
    assert use_triton(made, CPU, dtype, trains=trains) == "triton"
    assert made.kernel is not None
    assert all(p.grad is None for p in made.parameters())
    torch.testing.assert_close(made(x).detach(), plain, atol=0.05, rtol=0.05)


def test_triton_that_errs_or_fails_is_not_used(monkeypatch, caplog):
    made = MSDNet(**NARROW)
    right = triton_msdnet.TritonMSDNet.logits
    monkeypatch.setattr(triton_msdnet.TritonMSDNet, "logits", lambda self, x: 1.1 * right(self, x))
    assert use_triton(made, CPU, torch.float32) == "plain"
    assert "off by 0.1" in caplog.text

    def fail(self, x):
        raise ValueError("no ptxas")

    monkeypatch.setattr(triton_msdnet.TritonMSDNet, "logits", fail)
    assert speed_up(made, torch.device("meta"), torch.float32) == "plain"
    assert use_triton(made, CPU, torch.float32) == "plain"
    assert "no ptxas" in caplog.text
    assert (made.kernel, made.convolve) == (None, plain_convolve)


def test_gradients_that_err_are_noticed(monkeypatch, caplog):
    made = MSDNet(**NARROW)
    right = triton_msdnet.triton_msdnet

    def turned(network, x):
        logits = right(network, x)
        return logits.detach() * 2 - logits

    monkeypatch.setattr(triton_msdnet, "triton_msdnet", turned)
    assert use_triton(made, CPU, torch.float32, trains=True) == "plain"
    assert "off by" in caplog.text


@pytest.mark.parametrize("trains", [False, True])
def test_a_processor_on_which_the_kernel_errs_has_onednn(monkeypatch, caplog, trains):
    right = cpu_msdnet.run_passes

    def wrong(pairs, adds, table, biases, *rest):
        right(pairs, adds, table, biases + 0.5, *rest)

    monkeypatch.setattr(cpu_msdnet, "run_passes", wrong)
    made = MSDNet(**NARROW)
    assert speed_up(made, CPU, torch.float32, trains=trains) == "cpu-onednn"
    assert (made.kernel, made.convolve) == (None, cpu_convolve)
    assert "off by" in caplog.text

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(cpu_msdnet, "run_passes", full)
    assert speed_up(made, CPU, torch.float32, trains=trains) == "cpu-onednn"
    assert "No space left" in caplog.text


def test_processors_without_vectors_have_onednn(monkeypatch):
    monkeypatch.setattr(cpu_loops, "has_vectors", lambda: False)
    assert speed_up(MSDNet(**NARROW), CPU, torch.float32) == "cpu-onednn"
