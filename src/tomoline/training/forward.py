"""What a network makes of a batch while it is trained or validated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tomoline.networks.outputs import Outputs, outputs_of


def logits_of(network: nn.Module, volume: Tensor, *, device: str, precision: str) -> Tensor:
    """Logits, float32, of `(B, 1, Z, Y, X)`, which is moved to the device in the precision."""
    logits: Tensor = network(_moved(volume, device, precision))
    return logits.float()


def all_outputs(network: nn.Module, volume: Tensor, *, device: str, precision: str) -> Outputs:
    """Results of every task, float32, of `(B, 1, Z, Y, X)`, as `logits_of`."""
    found = outputs_of(network, _moved(volume, device, precision))
    return Outputs(*(None if part is None else part.float() for part in found))


def _moved(volume: Tensor, device: str, precision: str) -> Tensor:
    moved = volume.to(device, getattr(torch, precision))
    return moved.contiguous(memory_format=torch.channels_last_3d)
