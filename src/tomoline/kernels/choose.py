"""Which code runs a network on a device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tomoline.kernels.dilated import cpu_convolve
from tomoline.networks.msdnet import MSDNet

WIDE = 8


def speed_up(
    network: nn.Module, device: torch.device, dtype: torch.dtype, *, trains: bool = False
) -> str:
    """Give a network the fastest code there is for it here, and return that code's name.

    Unless it `trains`, its weights are read now and changes to them have no effect.
    """
    if not isinstance(network, MSDNet) or device.type != "cpu":
        return "plain"
    # Loaded where it is needed: numba takes a second.
    from tomoline.kernels.cpu_loops import MOST_CLASSES, has_pairs  # noqa: PLC0415
    from tomoline.kernels.cpu_msdnet import CpuMSDNet, cpu_msdnet  # noqa: PLC0415

    # oneDNN takes gradients of wide layers three times as fast (benchmarks/bench_msdnet.py).
    wide = trains and network.width >= WIDE
    if wide or network.classes > MOST_CLASSES or (dtype == torch.bfloat16 and not has_pairs()):
        network.convolve = cpu_convolve
        return "cpu-onednn"
    if trains:

        def kernel(network: MSDNet, x: Tensor) -> Tensor:
            return cpu_msdnet(network, x, dtype)
    else:
        model = CpuMSDNet(network, dtype=dtype)

        def kernel(network: MSDNet, x: Tensor) -> Tensor:
            return model.logits(x)

    network.kernel = kernel
    return "cpu"
