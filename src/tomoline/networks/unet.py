"""Three-dimensional U-Net of DeepFinder's layers: what a user would otherwise train.

Layers as published for DeepFinder (Moebel et al., Nature Methods 18, 1386-1394, 2021, figure 2):
3x3x3 convolutions, two at each of two levels going down (32 and 48 maps), four at the lowest (64),
max-pooling by 2 between; going up, voxels are doubled, smoothed by a 2x2x2 convolution and joined
with the maps of their level, two convolutions each; ReLU throughout; last a 1x1x1 convolution.
Written anew from that description. With 13 classes it has 903,357 parameters.

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, in_channels, Z, Y, X)`, output logits
`(B, classes, Z, Y, X)`. Edges that are no multiple of 4 are padded with zeros at their far end and
cut back; a window gives the whole volume's values where it begins at a multiple of 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.networks.blocks import autocast_like

DOWN, LOWEST, UP = 2, 4, 2  # convolutions at a level going down, at the lowest, going up


class UNet(nn.Module):
    """U-Net; see the module's legend for shapes.

    Parameters
    ----------
    in_channels, classes:
        Channels of the input and of the output.
    filters:
        Maps at each level, from the voxels' own downwards; (32, 48, 64) is DeepFinder.
    """

    def __init__(
        self, *, in_channels: int = 1, classes: int = 2, filters: Sequence[int] = (32, 48, 64)
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.filters = in_channels, classes, tuple(filters)
        *levels, lowest = self.filters
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.widen = nn.ModuleList()  # after doubling
        before = in_channels
        for maps in levels:
            self.down.append(_convolutions(before, maps, DOWN))
            before = maps
        self.lowest = _convolutions(before, lowest, LOWEST)
        for above, maps in pairwise(reversed(self.filters)):
            self.widen.append(nn.Conv3d(above, above, 2))
            self.up.append(_convolutions(above + maps, maps, UP))
        # Named as MSDNet's, so that a network trained for both tasks is cut in two alike.
        first = self.filters[0]
        self.last_weight = nn.Parameter(torch.randn(classes, first) / math.sqrt(first))
        self.last_bias = nn.Parameter(torch.zeros(classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)` of volumes `(B, in_channels, Z, Y, X)`."""
        with autocast_like(x):
            return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        step = 2 ** len(self.down)
        fill = [n for edge in reversed(size) for n in (0, -edge % step)]
        x = F.pad(x, fill)
        kept = []
        for convolutions in self.down:
            x = convolutions(x)
            kept.append(x)
            x = F.max_pool3d(x, 2)
        x = self.lowest(x)
        for widen, convolutions, maps in zip(self.widen, self.up, reversed(kept), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.relu(widen(F.pad(x, [0, 1] * 3)))
            x = convolutions(torch.cat([x, maps], 1))
        z, y, v = size
        x = x[:, :, :z, :y, :v]
        return F.conv3d(x, self.last_weight[:, :, None, None, None], self.last_bias)

    @property
    def receptive_field_vox(self) -> int:
        """Edge of a cube of input voxels that holds all that one output voxel can depend on.

        Counted along the path through the lowest level, at each level in its own voxels; where a
        voxel lies within its block of 4 shifts the field, so this is the widest of all places.
        """
        depth = len(self.down)
        reach: int = LOWEST * 2**depth
        for level in range(depth):
            # Convolutions down and up, the pooling's other voxel, and the 2x2x2 convolution's.
            reach += (DOWN + UP) * 2**level + 2**level + 2**level
        return 1 + 2 * reach


def _convolutions(before: int, maps: int, number: int) -> nn.Sequential:
    """`number` 3x3x3 convolutions with ReLU."""
    layers: list[nn.Module] = []
    for k in range(number):
        layers += [nn.Conv3d(before if k == 0 else maps, maps, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
