"""A network's logits while it is trained or validated."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def logits_of(network: nn.Module, volume: Tensor, *, device: str, precision: str) -> Tensor:
    """Logits, float32, of `(B, 1, Z, Y, X)`, which is moved to the device in the precision."""
    moved = volume.to(device, getattr(torch, precision))
    logits: Tensor = network(moved.contiguous(memory_format=torch.channels_last_3d))
    return logits.float()
