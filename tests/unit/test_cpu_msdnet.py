"""The CPU kernel equals the plain network, forward and backward, wherever windows are cut."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tomoline.errors import DeviceError
from tomoline.kernels.cpu_loops import ROWS, has_pairs
from tomoline.kernels.cpu_msdnet import CpuMSDNet, chains, cpu_msdnet
from tomoline.networks.msdnet import MSDNet

LOCALIZER = {"depth": 49, "width": 2, "max_dilation": 7}
CLASSIFIER = {"depth": 100, "width": 2, "max_dilation": 5, "classes": 13}
WIDE = {"depth": 3, "width": 16, "max_dilation": 3, "dilation": "per_layer"}
ODD = {"depth": 5, "width": 3, "max_dilation": 4, "in_channels": 2, "classes": 3}
NETWORKS = {"localizer": LOCALIZER, "classifier": CLASSIFIER, "wide": WIDE, "odd": ODD}
SHORT = {"depth": 4, "width": 2, "max_dilation": 4}


def network(shape, seed=1):
    torch.manual_seed(seed)
    made = MSDNet(**shape)
    for bias in (*made.biases, made.last_bias):
        torch.nn.init.normal_(bias, std=0.1)
    return made


def volumes(shape, *size, batch=1):
    return torch.randn(batch, shape.get("in_channels", 1), *size)


def error(found, reference):
    """Largest difference beside the largest value."""
    return ((found - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(9, 13, 17), (8, 6, 33)])
def test_logits_are_those_of_the_plain_network(name, size):
    shape = NETWORKS[name]
    made, x = network(shape), volumes(shape, *size)
    assert error(CpuMSDNet(made).logits(x), made(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 40), (30, 1, 1), (2, 35, 3), (16, 16, 16)])
def test_any_shape_will_do(size):
    made, x = network(SHORT), volumes(SHORT, *size)
    assert error(CpuMSDNet(made).logits(x), made(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near_or_refused(name):
    shape = NETWORKS[name]
    made, x = network(shape), volumes(shape, 12, 11, 19)
    if not has_pairs():
        with pytest.raises(DeviceError, match="avx512_bf16"):
            CpuMSDNet(made, dtype=torch.bfloat16)
        return
    assert error(CpuMSDNet(made, dtype=torch.bfloat16).logits(x), made(x)) < 1e-2


KINDS = [torch.float32, *([torch.bfloat16] if has_pairs() else [])]


@torch.no_grad()
@pytest.mark.parametrize("dtype", KINDS)
def test_a_window_gives_the_very_same_where_it_sees_all(dtype):
    made, x = network(SHORT), volumes(SHORT, 44, 40, 60)
    model, reach = CpuMSDNet(made, dtype=dtype), made.receptive_field_vox // 2
    whole = model.logits(x)
    part = model.logits(x[:, :, 3:42, 1:40, 5:58])
    inner = tuple(slice(reach, n - reach) for n in (39, 39, 53))
    outer = tuple(slice(s.start + o, s.stop + o) for s, o in zip(inner, (3, 1, 5), strict=True))
    assert part[0, 0][inner].numel() > 0
    assert torch.equal(part[0, :, *inner], whole[0, :, *outer])


@torch.no_grad()
@pytest.mark.parametrize("dtype", KINDS)
def test_threads_and_batches_change_nothing(dtype):
    made, x = network(ODD), volumes(ODD, 12, 14, 20, batch=5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        reference = CpuMSDNet(made, dtype=dtype).logits(x)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            model = CpuMSDNet(made, dtype=dtype)
            assert torch.equal(model.logits(x), reference)
            for k in range(5):
                assert torch.equal(model.logits(x[k : k + 1])[0], reference[k])
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_memory_of_an_earlier_window_leaves_no_trace():
    made = network(SHORT)
    model, x = CpuMSDNet(made), volumes(SHORT, 9, 8, 18)
    reference = model.logits(x)
    model.logits(1e3 * volumes(SHORT, 9, 8, 18))
    assert torch.equal(model.logits(x), reference)
    model.logits(volumes(SHORT, 20, 8, 18))
    assert torch.equal(model.logits(x), reference)


def test_probabilities_are_the_softmax():
    made, x = network(ODD), volumes(ODD, 6, 7, 8)
    with torch.inference_mode():
        model = CpuMSDNet(made)
        assert torch.equal(model.probabilities(x), model.logits(x).softmax(1))


def gradients(made, x, weight, logits):
    """Gradients of the input and of all parameters."""
    made.zero_grad()
    x = x.clone().requires_grad_()
    (logits(x) * weight).sum().backward()
    return [x.grad, *(p.grad.clone() for p in made.parameters())]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_plain_network(name):
    shape = NETWORKS[name]
    made, x = network(shape), volumes(shape, 7, 9, 18, batch=2)
    weight = torch.randn(2, made.classes, 7, 9, 18)
    plain = gradients(made, x, weight, made)
    fast = gradients(made, x, weight, lambda x: cpu_msdnet(made, x))
    for one, other in zip(plain, fast, strict=True):
        # Where a map is as good as zero either side of the ReLU may be right: the norm decides.
        assert (one - other).norm() <= 1e-4 * one.norm()


@pytest.mark.parametrize("name", ["localizer", "wide"])
@pytest.mark.parametrize("dtype", KINDS)
def test_gradients_are_at_least_as_near_as_plain_ones_in_bfloat16(name, dtype):
    shape = NETWORKS[name]
    made, x = network(shape), volumes(shape, 10, 11, 20)
    weight = torch.randn(1, made.classes, 10, 11, 20)
    exact = gradients(made, x, weight, made)
    plain = gradients(made, x, weight, lambda x: made(x.bfloat16()).float())
    fast = gradients(made, x, weight, lambda x: cpu_msdnet(made, x, dtype))
    reference, one, other = (
        torch.cat([g.flatten() for g in all_]) for all_ in (exact, plain, fast)
    )
    assert (other - reference).norm() <= 1.3 * (one - reference).norm()


def test_only_what_is_asked_for_gets_a_gradient():
    made, x = network(SHORT), volumes(SHORT, 6, 6, 6)
    for weight in made.weights[:3]:
        weight.requires_grad_(requires_grad=False)
    cpu_msdnet(made, x).sum().backward()
    assert x.grad is None
    assert made.weights[0].grad is None
    assert made.weights[3].grad is not None


@given(st.integers(1, 60), st.integers(1, 12))
def test_chains_hold_each_row_once(length, step):
    blocks = chains(length, step)
    rows = [first + k * step for first, count in blocks for k in range(count)]
    assert sorted(rows) == list(range(length))
    assert all(1 <= count <= ROWS for _, count in blocks)


@pytest.mark.parametrize("shape", [(5, 9, 33), (40, 11, 20)])
def test_bytes_are_the_rounded_probability_of_class_1(shape):
    x = torch.randn(2, 1, *shape)
    for kind in (SHORT, {**SHORT, "classes": 3}):
        for dtype in KINDS:
            model = CpuMSDNet(network(kind), dtype=dtype)
            p = model.probabilities(x)[:, 1]
            assert (model.particle_probability(x) - p).abs().max() < 1e-6
            found = model.particle_bytes(x)
            assert found.dtype == torch.uint8
            assert (found - 255 * p).abs().max() < 0.501
            assert found.float().std() > 1


def test_too_many_classes_are_refused():
    with pytest.raises(DeviceError, match="kernel: plain"):
        CpuMSDNet(network({**SHORT, "classes": 40}))


def test_memory_is_what_was_said():
    made = network(LOCALIZER)
    for dtype in KINDS:
        model = CpuMSDNet(made, dtype=dtype)
        buffer = model.buffer((64, 64, 64))
        voxels = np.prod(buffer.shape)
        said = model.bytes_per_voxel * voxels
        assert 4 * len(buffer.words) <= 1.6 * said


def test_nowhere_to_keep_compiled_code_is_no_fault(tmp_path):
    """As in an image that is read-only, for a user without a home."""
    (tmp_path / "file").touch()
    code = (
        "import torch; from tomoline.kernels.cpu_msdnet import CpuMSDNet\n"
        "from tomoline.networks.msdnet import MSDNet\n"
        "net = MSDNet(depth=2); x = torch.ones(1, 1, 5, 5, 5)\n"
        "print((CpuMSDNet(net).logits(x) - net(x)).abs().max().item() < 1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "file")},
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


@torch.no_grad()
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [SHORT, ODD, {"depth": 3, "width": 1, "max_dilation": 2}])
def test_a_window_of_nans_does_not_spoil_the_next(shape, dtype):
    model, x = CpuMSDNet(network(shape), dtype=dtype), volumes(shape, 9, 8, 18)
    reference = model.logits(x)
    assert model.logits(torch.full_like(x, float("nan"))).isnan().any()
    assert torch.equal(model.logits(x), reference)


def test_too_little_memory_is_said_as_such():
    with pytest.raises(MemoryError, match="can't allocate"):
        CpuMSDNet(network(SHORT)).buffer((200_000,) * 3)


def test_a_forked_process_has_maps_of_its_own():
    code = (
        "import os, torch; from tomoline.kernels.cpu_msdnet import CpuMSDNet\n"
        "from tomoline.networks.msdnet import MSDNet\n"
        "torch.set_num_threads(1); torch.manual_seed(0); model = CpuMSDNet(MSDNet(depth=9))\n"
        "x = torch.randn(2, 1, 20, 20, 20); right = [model.logits(x[k : k + 1]) for k in (0, 1)]\n"
        "child = os.fork()\n"
        "k = int(child == 0)\n"
        "same = all(torch.equal(model.logits(x[k : k + 1]), right[k]) for _ in range(30))\n"
        "if child == 0: os._exit(int(not same))\n"
        "print(same, os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_wrong_channels_are_refused():
    made = network(ODD)
    for channels in (1, 3):
        x = torch.zeros(1, channels, 4, 4, 4)
        with pytest.raises(ValueError, match=r"expected \(B, 2"):
            CpuMSDNet(made).logits(x)
        with pytest.raises(ValueError, match=r"expected \(B, 2"):
            cpu_msdnet(made, x)


def test_gradients_of_changed_weights_and_second_ones_are_refused():
    made, x = network(SHORT), volumes(SHORT, 6, 6, 6)
    logits = cpu_msdnet(made, x)
    with torch.no_grad():
        made.last_weight.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()
    logits = cpu_msdnet(made, x)
    logits.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        logits.sum().backward()
