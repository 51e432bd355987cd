"""Which code runs a network on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tomoline.kernels.dilated import cpu_convolve
from tomoline.log import get_logger
from tomoline.networks.blocks import Kernel, plain_convolve
from tomoline.networks.densenet import DenseNet
from tomoline.networks.msdnet import MSDNet

if TYPE_CHECKING:
    from tomoline.kernels.cpu_msdnet import CpuMSDNet
    from tomoline.kernels.triton_msdnet import TritonMSDNet

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
    if isinstance(network, DenseNet) and trains and device.type == "cpu":
        network.use(cpu_convolve)
        return "cpu-onednn"
    if not isinstance(network, MSDNet):
        return "plain"
    network.kernel, network.convolve = None, plain_convolve
    if device.type != "cpu":
        return use_triton(network, device, dtype, trains=trains)
    if _suits_cpu(network, dtype, trains=trains) and _tried(
        network, lambda: _cpu_kernel(network, dtype, trains=trains), device, dtype, SMALL_TRIAL,
        trains=trains,
    ):  # fmt: skip
        return "cpu"
    network.convolve = cpu_convolve
    return "cpu-onednn"


def use_triton(
    network: MSDNet, device: torch.device, dtype: torch.dtype, *, trains: bool = False
) -> str:
    """Use the Triton kernels, or the plain layers where those fail their trial."""
    used = _tried(
        network, lambda: _triton_kernel(network, device, dtype, trains=trains), device, dtype,
        TRIAL, trains=trains,
    )  # fmt: skip
    return "triton" if used else "plain"


def _suits_cpu(network: MSDNet, dtype: torch.dtype, *, trains: bool) -> bool:
    """Whether the CPU kernel can run a network here, and is the fastest."""
    # Loaded where it is needed: numba takes a second.
    from tomoline.kernels import cpu_loops  # noqa: PLC0415

    # oneDNN takes gradients of wide layers three times as fast (benchmarks/bench_msdnet.py).
    wide = trains and network.width >= WIDE
    low = dtype == torch.bfloat16 and not cpu_loops.has_pairs()
    many = network.classes > cpu_loops.MOST_CLASSES
    return not (wide or low or many) and cpu_loops.has_vectors()


@dataclass(frozen=True)
class Packed:
    """A network whose weights were packed once, in place of its layers."""

    model: CpuMSDNet | TritonMSDNet

    def __call__(self, network: MSDNet, x: Tensor) -> Tensor:
        """Logits, float32."""
        return self.model.logits(x)


def _cpu_kernel(network: MSDNet, dtype: torch.dtype, *, trains: bool) -> Kernel:
    from tomoline.kernels.cpu_msdnet import CpuMSDNet, cpu_msdnet  # noqa: PLC0415

    if trains:
        return lambda network, x: cpu_msdnet(network, x, dtype)
    return Packed(CpuMSDNet(network, dtype=dtype))


def _triton_kernel(
    network: MSDNet, device: torch.device, dtype: torch.dtype, *, trains: bool
) -> Kernel:
    from tomoline.kernels.triton_msdnet import TritonMSDNet, triton_msdnet  # noqa: PLC0415

    if trains:
        return lambda network, x: triton_msdnet(network, x.to(dtype))
    return Packed(TritonMSDNet(network, dtype=dtype, device=device))


def _tried(
    network: MSDNet, make: Callable[[], Kernel], device: torch.device, dtype: torch.dtype,
    shape: tuple[int, ...], *, trains: bool,
) -> bool:  # fmt: skip
    """Give a network a kernel, if on a small trial it does what the plain layers do.

    GPUs, drivers, compilers and caches of compiled code that others share lie outside of what tests
    can promise. The reason for not using a kernel is logged.
    """
    try:
        kernel = make()
        off = _difference(network, kernel, device, shape, trains=trains)
    except Exception as error:  # whatever a compiler, a driver or a full disk may say
        log.warning("the kernel for this %s is not used: %s", device.type, error)
        return False
    if not off <= NEAR[dtype]:
        log.warning("the kernel for this %s is not used: it is off by %.2g", device.type, off)
        return False
    network.kernel = kernel
    return True


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
