"""Three-dimensional mixed-scale dense network (MSDNet) of VP-Detector, section 2.2 and 2.3.

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, in_channels, Z, Y, X)`, output logits
`(B, classes, Z, Y, X)`. Layer i sees the input and the maps of all earlier layers:
`in_channels + i * width` channels; it adds `width` maps. The last layer is a 1x1x1 convolution
over the input and all maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tomoline.networks.blocks import Convolve, Kernel, plain_convolve
from tomoline.networks.schedule import (
    KERNEL,
    Dilation,
    check_hybrid_dilation,
    dilations,
    receptive_field,
)

SLOPE = 0.01


class MSDNet(nn.Module):
    """Mixed-scale dense network; see the module's legend for shapes.

    Parameters
    ----------
    in_channels, classes:
        Channels of the input and of the output.
    depth, width:
        Number of layers (d in the paper) and maps each layer adds (w).
    max_dilation, dilation:
        Largest dilation, and whether each channel or each layer has its own.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        depth: int = 49,
        width: int = 2,
        max_dilation: int = 7,
        dilation: Dilation = "per_channel",
    ) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        self.depth, self.width = depth, width
        self.schedule = dilations(depth, width, max_dilation, dilation)
        check_hybrid_dilation(list(range(1, min(max_dilation, depth * width) + 1)))
        self.convolve: Convolve = plain_convolve
        self.kernel: Kernel | None = None  # stands in for all that follows
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for i in range(depth):
            fan_in = in_channels + i * width
            weight = torch.empty(width, fan_in, KERNEL, KERNEL, KERNEL)
            nn.init.kaiming_normal_(weight, a=SLOPE, nonlinearity="leaky_relu")
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(width)))
        features = in_channels + depth * width
        self.last_weight = nn.Parameter(torch.randn(classes, features) / math.sqrt(features))
        self.last_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)` of volumes `(B, in_channels, Z, Y, X)`."""
        if self.kernel is not None:
            return self.kernel(self, x)
        for weight, bias, schedule in zip(self.weights, self.biases, self.schedule, strict=True):
            maps = self._layer(x, weight, bias, schedule)
            x = torch.cat([x, nn.functional.leaky_relu(maps, SLOPE)], 1)
        last = self.last_weight.to(x.dtype)[:, :, None, None, None]
        return nn.functional.conv3d(x, last, self.last_bias.to(x.dtype))

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor, schedule: list[int]) -> Tensor:
        """One layer: channels that share a dilation go through one convolution."""
        if len(set(schedule)) == 1:
            return self.convolve(x, weight, bias, schedule[0])
        parts: list[Tensor | None] = [None] * len(schedule)
        for step in sorted(set(schedule)):
            channels = [j for j, s in enumerate(schedule) if s == step]
            maps = self.convolve(x, weight[channels], bias[channels], step)
            for k, j in enumerate(channels):
                parts[j] = maps[:, k : k + 1]
        return torch.cat([p for p in parts if p is not None], 1)

    @property
    def receptive_field_vox(self) -> int:
        """Edge of the cube of input voxels that one output voxel can depend on."""
        return receptive_field(self.schedule)
