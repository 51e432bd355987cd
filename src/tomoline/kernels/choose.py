"""Which code runs a network on a device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tomoline.kernels.dilated import cpu_convolve
from tomoline.log import get_logger
from tomoline.networks.blocks import Kernel, plain_convolve
from tomoline.networks.msdnet import MSDNet

log = get_logger(__name__)

WIDE = 8
# What a kernel may differ from the plain layers, as a part of the values, and the gradient in angle
# (1 less the cosine).
NEAR = {torch.bfloat16: 2e-2, torch.float32: 1e-3}
TURNED = 0.1
TRIAL, SMALL_TRIAL = (20, 24, 37), (6, 7, 19)


def speed_up(
    network: nn.Module, device: torch.device, dtype: torch.dtype, *, trains: bool = False
) -> str:
    """Give a network the fastest code there is for it here, and return that code's name.

    Unless it `trains`, its weights are read now and changes to them have no effect.
    """
    if not isinstance(network, MSDNet):
        return "plain"
    network.kernel, network.convolve = None, plain_convolve
    if device.type != "cpu":
        return use_triton(network, device, dtype, trains=trains)
    if use_vectors(network, dtype, trains=trains):
        return "cpu"
    network.convolve = cpu_convolve
    return "cpu-onednn"


def use_vectors(network: MSDNet, dtype: torch.dtype, *, trains: bool = False) -> bool:
    """Use the CPU kernel where it is the fastest, and gives on a small trial what it should.

    The trial is for what lies outside: a compiler, and a cache of compiled code that others share.
    """
    # Loaded where it is needed: numba takes a second.
    from tomoline.kernels.cpu_loops import (  # noqa: PLC0415
        MOST_CLASSES,
        has_pairs,
        has_vectors,
    )  # fmt: skip
    from tomoline.kernels.cpu_msdnet import CpuMSDNet, cpu_msdnet  # noqa: PLC0415

    # oneDNN takes gradients of wide layers three times as fast (benchmarks/bench_msdnet.py).
    wide = trains and network.width >= WIDE
    low = dtype == torch.bfloat16 and not has_pairs()
    if wide or low or network.classes > MOST_CLASSES or not has_vectors():
        return False
    kernel: Kernel
    try:
        if trains:

            def kernel(network: MSDNet, x: Tensor) -> Tensor:
                return cpu_msdnet(network, x, dtype)
        else:
            model = CpuMSDNet(network, dtype=dtype)

            def kernel(network: MSDNet, x: Tensor) -> Tensor:
                return model.logits(x)

        off = _difference(network, kernel, torch.device("cpu"), SMALL_TRIAL, trains=trains)
    except Exception as error:  # a full disk under the cache of compiled code, for one
        log.warning("the CPU kernel is not used: %s", error)
        return False
    if not off <= NEAR[dtype]:
        log.warning("the CPU kernel is not used: on this processor it is off by %.2g", off)
        return False
    network.kernel = kernel
    return True


def use_triton(
    network: MSDNet, device: torch.device, dtype: torch.dtype, *, trains: bool = False
) -> str:
    """Use the Triton kernels if they give here, on a small trial, what the plain layers give.

    GPUs, drivers and compilers differ more than processors do. Where the kernels cannot be had,
    or err, the reason is logged and the plain layers do the work.
    """
    kernel: Kernel
    try:
        from tomoline.kernels.triton_msdnet import TritonMSDNet, triton_msdnet  # noqa: PLC0415

        if trains:

            def kernel(network: MSDNet, x: Tensor) -> Tensor:
                return triton_msdnet(network, x.to(dtype))
        else:
            model = TritonMSDNet(network, dtype=dtype, device=device)

            def kernel(network: MSDNet, x: Tensor) -> Tensor:
                return model.logits(x)

        off = _difference(network, kernel, device, TRIAL, trains=trains)
    except Exception as error:  # whatever a compiler or a driver may say
        log.warning("the Triton kernels are not used: %s", error)
        return "plain"
    if not off <= NEAR[dtype]:
        log.warning("the Triton kernels are not used: on this GPU they are off by %.2g", off)
        return "plain"
    network.kernel = kernel
    return "triton"


def _difference(
    network: MSDNet, kernel: Kernel, device: torch.device, shape: tuple[int, ...], *, trains: bool
) -> float:
    """How far a kernel is from plain float32 layers: in logits, and in the gradient's direction."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, network.in_channels, *shape, generator=generator).to(device)
    found = []
    for run in (network, lambda x: kernel(network, x)):
        network.zero_grad()
        with torch.set_grad_enabled(trains):
            logits = run(x).float()
            gradients = torch.zeros(1)
            if trains:
                logits.square().mean().backward()
                rows = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                gradients = torch.cat(rows).float()
        found.append((logits.detach(), gradients))
    network.zero_grad()
    (plain, one), (fast, other) = found
    off = float((plain - fast).abs().max() / plain.abs().max())
    if trains:
        # Leaky ReLUs turn rounding into larger differences of single weights: the angle decides.
        turned = 1.0 - float(nn.functional.cosine_similarity(one, other, dim=0))
        off = max(off, turned if turned > TURNED else 0.0)
    return off
