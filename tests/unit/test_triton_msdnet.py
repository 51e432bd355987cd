"""The Triton kernels equal the plain network; here under Triton's interpreter, on the processor.

`tests/conftest.py` chooses the interpreter before anything imports Triton.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from needed import absent

from tomoline.errors import DeviceError
from tomoline.kernels import streaming, triton_kernels, triton_msdnet
from tomoline.kernels.triton_msdnet import Launch, TritonMSDNet
from tomoline.networks.msdnet import MSDNet

CPU = torch.device("cpu")
LOCALIZER = {"depth": 49, "width": 2, "max_dilation": 7, "classes": 2}
CLASSIFIER = {"depth": 100, "width": 2, "max_dilation": 5, "classes": 13}
SHIPPED = {"depth": 8, "width": 16, "max_dilation": 4, "dilation": "per_layer", "classes": 14}
SHORT = {"depth": 5, "width": 2, "max_dilation": 7}
ODD = {"depth": 3, "width": 3, "max_dilation": 7, "classes": 5, "in_channels": 2}
WIDE = {"depth": 2, "width": 16, "max_dilation": 4, "dilation": "per_layer"}
FLOAT32, BF16 = (torch.float32, 1e-5), (torch.bfloat16, 1e-2)


def make(kind):
    """A network with random weights and biases."""
    torch.manual_seed(1)
    network = MSDNet(**kind)
    with torch.no_grad():
        for bias in [*network.biases, network.last_bias]:
            bias.normal_(std=0.1)
    return network


def volumes(network, *shape):
    torch.manual_seed(2)
    return torch.randn(shape[0], network.in_channels, *shape[1:])


def far(found, wanted):
    """Greatest difference over the greatest magnitude."""
    assert torch.isfinite(found).all()
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.fixture(autouse=True)
def interpreted():
    assert triton_msdnet.is_interpreted(), "Triton was imported before its interpreter was chosen"


@pytest.mark.parametrize("kind", [SHORT, ODD, WIDE], ids=["short", "odd", "wide"])
@pytest.mark.parametrize("pull", ["none", "x", "all"])
@pytest.mark.parametrize(("dtype", "bound"), [FLOAT32, BF16], ids=["float32", "bfloat16"])
def test_logits_equal_the_plain_networks(kind, pull, dtype, bound):
    network = make(kind)
    x = volumes(network, 2, 5, 9, 11)
    fast = TritonMSDNet(network, dtype=dtype, device=CPU, pull=pull)
    assert far(fast.logits(x), network(x)) < bound


@pytest.mark.parametrize(
    ("kind", "dtype", "bound"),
    [(LOCALIZER, *FLOAT32), (SHIPPED, *FLOAT32), (SHIPPED, *BF16)],
    ids=["localizer", "shipped", "shipped in bfloat16"],
)
def test_networks_in_use_at_full_depth(kind, dtype, bound):
    network = make(kind)
    x = volumes(network, 1, 3, 4, 5)
    fast = TritonMSDNet(network, dtype=dtype, device=CPU)
    assert far(fast.logits(x), network(x)) < bound


def test_the_published_classifier_at_full_depth():
    network = make(CLASSIFIER)
    x = volumes(network, 1, 2, 3, 4)
    fast = TritonMSDNet(network, dtype=torch.bfloat16, device=CPU)
    assert far(fast.logits(x), network(x)) < 1e-2


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 2, 17), (1, 8, 1, 1), (2, 3, 3, 3)])
def test_odd_shapes(shape):
    network = make(SHORT)
    x = volumes(network, *shape)
    for pull in ("none", "x", "all"):
        fast = TritonMSDNet(network, dtype=torch.float32, device=CPU, pull=pull)
        assert far(fast.logits(x), network(x)) < 1e-5


def test_probabilities_and_bytes():
    network = make(ODD)
    x = volumes(network, 2, 4, 5, 7)
    wanted = network(x).softmax(1)
    fast = TritonMSDNet(network, dtype=torch.float32, device=CPU)
    assert far(fast.probabilities(x), wanted) < 1e-5
    found = fast.particle_bytes(x)
    assert found.dtype == torch.uint8
    assert found.shape == (2, 4, 5, 7)
    assert (found.float() - 255 * wanted[:, 1]).abs().max() < 0.501


def test_launches_do_not_change_the_result(monkeypatch):
    network = make(SHORT)
    x = volumes(network, 1, 5, 6, 7)
    monkeypatch.setattr(triton_msdnet._Run, "voxel_block", lambda run, block: block)
    for launch in (Launch(64, 64), Launch(128, 32)):
        fast = TritonMSDNet(network, dtype=torch.float32, device=CPU, launch=launch)
        assert far(fast.logits(x), network(x)) < 1e-5


def test_the_fastest_launch_is_kept():
    fast = TritonMSDNet(make(SHORT), dtype=torch.float32, device=CPU)
    times = iter([3.0, 1.0, *[2.0] * len(triton_msdnet.LAUNCHES)])
    fast.tune(lambda work: next(times), volumes(make(SHORT), 1, 2, 2, 2))
    assert fast.launch == triton_msdnet.LAUNCHES[1]


def test_a_window_of_nan_leaves_nothing_behind():
    network = make(SHORT)
    x = volumes(network, 1, 4, 5, 6)
    fast = TritonMSDNet(network, dtype=torch.bfloat16, device=CPU)
    first = fast.logits(x)
    assert fast.logits(x * torch.nan).isnan().all()
    assert torch.equal(fast.logits(x), first)


def test_places_beyond_32_bits(monkeypatch):
    """Each group of channels longer than 2^31 values, in memory that is mapped but not used."""
    network = make({"depth": 6, "width": 2, "max_dilation": 7})
    x = volumes(network, 1, 2, 3, 4)
    lead = triton_msdnet.Geometry.lead.fget
    far_off = 2**31 // triton_msdnet.CHUNK + 12345
    monkeypatch.setattr(
        triton_msdnet.Geometry, "lead", property(lambda geometry: lead(geometry) + far_off)
    )

    def zeros(shape, dtype, device):
        # calloc maps pages only when they are written.
        return torch.from_numpy(np.zeros(shape, np.uint16)).view(dtype)

    monkeypatch.setattr(triton_msdnet, "_zeros", zeros)
    try:
        fast = TritonMSDNet(network, dtype=torch.bfloat16, device=CPU, pull="all")
        assert fast.plan.groups == 2
        assert far(fast.logits(x), network(x)) < 1e-2
    except MemoryError:
        absent("this machine does not map 9 GB of unused memory")
    finally:
        triton_msdnet._table.cache_clear()


@pytest.mark.parametrize("kind", [SHORT, ODD, WIDE], ids=["short", "odd", "wide"])
def test_gradients_equal_the_plain_networks(kind):
    network = make(kind)
    x = volumes(network, 2, 5, 7, 6)
    plain, fast = gradients(network, x, network), gradients(network, x, triton_msdnet.triton_msdnet)
    for wanted, found in zip(plain, fast, strict=True):
        assert far(found, wanted) < 1e-5


def test_gradients_of_a_deep_network():
    network = make(LOCALIZER | {"depth": 15})
    x = volumes(network, 1, 4, 5, 6)
    plain, fast = gradients(network, x, network), gradients(network, x, triton_msdnet.triton_msdnet)
    for wanted, found in zip(plain, fast, strict=True):
        assert far(found, wanted) < 1e-5


def test_low_precision_gradients_are_no_worse_than_the_plain_ones():
    network = make(SHORT)
    x = volumes(network, 2, 7, 8, 9)
    runs = [(x, network), (x.bfloat16(), network), (x.bfloat16(), triton_msdnet.triton_msdnet)]
    wanted, plain, fast = (
        torch.cat([g.flatten().float() for g in gradients(network, volume, run)])
        for volume, run in runs
    )
    assert (fast - wanted).norm() < 1.2 * (plain - wanted).norm()


def gradients(network, x, run):
    """Of the input and of all parameters, for a fixed gradient of the logits."""
    x = x.clone().requires_grad_()
    network.zero_grad()
    logits = network(x) if run is network else run(network, x)
    torch.manual_seed(3)
    logits.backward(torch.randn(logits.shape).to(logits.dtype))
    return [x.grad.clone(), *(p.grad.clone() for p in network.parameters())]


def test_the_gradient_of_the_input_is_optional():
    network = make(SHORT)
    x = volumes(network, 1, 3, 4, 5)
    triton_msdnet.triton_msdnet(network, x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert x.grad is None


def test_planned_ways_are_those_of_the_estimate():
    assert triton_msdnet.plan_of(make(LOCALIZER), 2).pull == "x"
    assert triton_msdnet.plan_of(make(SHIPPED), 2).pull == "all"


def test_memory_is_that_of_the_buffers():
    fast = TritonMSDNet(make(LOCALIZER), dtype=torch.bfloat16, device=CPU)
    # 104 channels of 2 bytes with a margin of 7 in x; 18 columns, the input, and a byte.
    maps = 208 * (10 * 11 * (12 + 7) + 7)
    assert fast.memory_bytes(1, (10, 11, 12)) == maps + (72 + 4 + 1) * 10 * 11 * 12
    assert 280 < fast.bytes_per_voxel < 320


def test_largest_window_just_fits():
    fast = TritonMSDNet(make(LOCALIZER), dtype=torch.bfloat16, device=CPU)
    size = fast.largest_window((40, 200, 300), 5e8)
    assert fast.memory_bytes(1, (40, min(size, 200), size)) <= 5e8
    assert fast.memory_bytes(1, (40, min(size + 1, 200), size + 1)) > 5e8
    assert fast.largest_window((64, 64, 64), 1e12) == 64
    assert fast.largest_window((64, 64, 64), 100) == 0


def test_windows_come_back_in_order(tmp_path):
    volume = np.random.default_rng(0).standard_normal((9, 10, 11), dtype=np.float32)
    np.save(tmp_path / "volume.npy", volume)
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="r")
    boxes = [(slice(z, z + 4), slice(y, y + 5), slice(0, 11)) for z in (0, 5) for y in (0, 5)]
    boxes.append((slice(0, 9), slice(0, 3), slice(4, 6)))
    fast = TritonMSDNet(make(SHORT), dtype=torch.float32, device=CPU)
    found = [
        r.copy() for r in streaming.stream_windows(fast.particle_bytes, mapped, boxes, device=CPU)
    ]
    assert len(found) == len(boxes)
    for result, box in zip(found, boxes, strict=True):
        x = torch.from_numpy(volume[box].copy())[None, None]
        np.testing.assert_array_equal(result, fast.particle_bytes(x).numpy())


def test_a_result_outlives_the_next_windows_computing():
    """What was handed out is not written over before the next one is asked for."""
    sources = [lambda k=k: np.full((1, 1, 2, 2, 2), k, np.float32) for k in range(7)]
    for k, result in enumerate(streaming.stream_arrays(lambda x: x + 1, sources, device=CPU)):
        assert (result == k + 1).all()
    assert k == 6
    assert list(streaming.stream_arrays(lambda x: x, [], device=CPU)) == []


def test_an_error_of_the_source_is_told():
    def broken():
        raise OSError("the disk is gone")

    good = lambda: np.zeros((1, 1, 1, 1, 1), np.float32)  # noqa: E731
    results = streaming.stream_arrays(lambda x: x, [good, broken, good], device=CPU)
    with pytest.raises(OSError, match="the disk is gone"):
        list(results)


def test_what_cannot_run_is_refused(monkeypatch):
    network = make(SHORT)
    with pytest.raises(DeviceError, match="bfloat16 or float32"):
        TritonMSDNet(network, dtype=torch.float16, device=CPU)
    with pytest.raises(DeviceError, match="classes"):
        TritonMSDNet(MSDNet(depth=1, classes=200), dtype=torch.float32, device=CPU)
    monkeypatch.setattr(triton_kernels, "INTERPRETED", False)
    with pytest.raises(DeviceError, match="NVIDIA GPU"):
        TritonMSDNet(network, dtype=torch.bfloat16, device=CPU)
    monkeypatch.setitem(sys.modules, "tomoline.kernels.triton_kernels", None)
    monkeypatch.delattr("tomoline.kernels.triton_kernels")
    with pytest.raises(DeviceError, match="Triton"):
        TritonMSDNet(network, dtype=torch.bfloat16, device=CPU)


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here(repository, tmp_path):
    done = run(repository, "tests/compile_triton.py", "90", TRITON_CACHE_DIR=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    names = ["product", "combine", "before_activation", "spread", "correlate"]
    assert {name for _, name, *_ in lines} == set(names)
    for _, name, stack, matrix in lines:
        assert stack == "0", f"{name} needs more registers than there are"
        assert (name in ("combine", "before_activation")) == (matrix == "0")


def test_the_benchmark_says_that_there_is_no_gpu(repository, tmp_path):
    done = run(
        repository, "benchmarks/bench_gpu.py", "--results", str(tmp_path), CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def run(repository, script, *arguments, **environment):
    """A script with Triton's compiler instead of its interpreter."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    kept |= {k: str(v) for k, v in environment.items()}
    kept["PYTHONPATH"] = os.pathsep.join([str(repository / "src"), kept.get("PYTHONPATH", "")])
    command = [sys.executable, repository / script, *arguments]
    return subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
