"""Dilated convolution on processors, with a fast gradient of the weights.

oneDNN runs a dilated convolution forward at the speed of a dense one, but takes six times longer
for the gradient of its weights. Here that gradient is taken on the volume's dilation^3 sub-grids,
where the dilation is one; the gradient of the input is a forward convolution with turned weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def to_subgrids(x: Tensor, step: int) -> Tensor:
    """`(B, C, Z, Y, X) -> (B step^3, C, ceil(Z/step), ...)`: every `step`-th voxel, zero-filled."""
    if step == 1:
        return x
    b, c, *edges = x.shape
    last = x.permute(0, 2, 3, 4, 1)  # channels stay innermost, so that whole rows are copied
    fill = [-n % step for n in edges]
    if any(fill):
        last = F.pad(last, (0, 0, 0, fill[2], 0, fill[1], 0, fill[0]))
    z, y, w = (-(-n // step) for n in edges)
    grids = last.reshape(b, z, step, y, step, w, step, c).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return grids.reshape(b * step**3, z, y, w, c).permute(0, 4, 1, 2, 3)


class DilatedConvolution(torch.autograd.Function):
    """3x3x3 convolution, zero "same" padding, as `F.conv3d`; only the gradients differ in speed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        low = weight.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, low, bias.to(x.dtype), padding=dilation, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        step = ctx.dilation
        grad = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
        grad_x = None
        if ctx.needs_input_grad[0]:
            turned = weight.to(x.dtype).transpose(0, 1).flip(2, 3, 4)
            turned = turned.contiguous(memory_format=torch.channels_last_3d)
            grad_x = F.conv3d(grad, turned, padding=step, dilation=step)
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            to_subgrids(grad, step), to_subgrids(x, step), weight.to(x.dtype), [0],
            [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False],
        )  # fmt: skip
        grad_bias = grad.float().sum((0, 2, 3, 4))
        return grad_x, grad_weight.to(weight.dtype), grad_bias, None


def cpu_convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """`tomoline.networks.blocks.Convolve` for processors; equal to the plain one by test."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return DilatedConvolution.apply(x, weight, bias, dilation)  # type: ignore[no-any-return,no-untyped-call]
