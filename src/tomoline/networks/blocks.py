"""Convolution as the networks call it: the plain reference, replaceable by a faster equal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Convolve(Protocol):
    """A 3x3x3 convolution with zero "same" padding: `(B, C, Z, Y, X) -> (B, K, Z, Y, X)`."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor: ...


class Kernel(Protocol):
    """Faster code for a whole network: `(network, x) -> logits`, differentiable, float32."""

    def __call__(self, network: Any, x: Tensor) -> Tensor: ...


def plain_convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """PyTorch's own convolution; weight `(K, C, 3, 3, 3)` in the input's precision."""
    return F.conv3d(x, weight.to(x.dtype), bias.to(x.dtype), padding=dilation, dilation=dilation)


def autocast_like(x: Tensor) -> AbstractContextManager[Any]:
    """Layers within take their weights in the type of `x`, where that is a low precision."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(x.device.type, x.dtype)
    return nullcontext()


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
