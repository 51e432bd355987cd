"""PyConvU-Net (Li, Fan and Cai, BMC Bioinformatics 22, 14, 2021), and the U-Net beside it.

A U-Net whose 3x3 convolutions are pyramidal ones (Duta et al., arXiv 2006.11538): the output maps
of a convolution are divided among kernels of 3, 5, 7 and 9 pixels, which see the input maps in 1,
4, 8 and 16 separate groups, so that the larger cost no more. "Same" padding, then batch
normalisation and ReLU (figure 5); max-pooling by 2; going up, a 2x2 up-convolution, concatenation
with the maps of the level, two convolutions; at last a 1x1 convolution and a sigmoid.

The paper prints neither widths nor levels, but 3.7 million parameters and 10.65 GMac at 512 x 512.
Here five levels of 16, 32, 64, 96 and 256 maps with 4, 4, 3, 2 and 1 kernel sizes (images of 32
pixels, the lowest level, have no room for more) stay below both, with 1.45 million and 10.48 GMac:
`tomoline.networks.cost` counts.

Axes: B batch, C channels, Y, X pixels. Input `(B, in_channels, Y, X)`, output logits
`(B, classes, Y, X)`, of which the first, the background's, is 0: with two classes the softmax over
them is the sigmoid of the second. Edges that are no multiple of 16 are padded at their far end with
zeros and cut back. A volume `(B, 1, Z, Y, X)` is taken slice by slice (`tomoline.networks.slices`),
for which `in_channels` counts the slice and its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.networks.blocks import autocast_like
from tomoline.networks.slices import over_slices

KERNELS, GROUPS = (3, 5, 7, 9), (1, 4, 8, 16)
# Inputs up to which a processor runs kernels merged, and all of them as one.
MERGED_INPUTS, ONE_KERNEL_INPUTS = 32, 16
# Of a convolution's maps, those of each kernel, by the number of kernels (Duta et al., table 1).
SHARES = {1: (1.0,), 2: (0.5, 0.5), 3: (0.25, 0.25, 0.5), 4: (0.25, 0.25, 0.25, 0.25)}


class PyramidalConvolution(nn.Module):
    """`(B, inputs, Y, X) -> (B, outputs, Y, X)` by kernels of several sizes, "same" padding.

    Where inputs or outputs cannot be divided into as many groups, there are fewer.
    """

    def __init__(self, inputs: int, outputs: int, levels: int) -> None:
        super().__init__()
        maps = [int(outputs * share) for share in SHARES[levels]]
        maps[-1] = outputs - sum(maps[:-1])
        self.levels = nn.ModuleList(
            nn.Conv2d(inputs, own, kernel, padding=kernel // 2, bias=False,
                      groups=math.gcd(groups, inputs, own))
            for own, kernel, groups in zip(maps, KERNELS, GROUPS, strict=False)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Maps of all kernels, the smallest first."""
        if len(self.levels) == 1:
            return self.levels[0](x)  # type: ignore[no-any-return]
        if x.device.type == "cpu" and x.shape[1] <= MERGED_INPUTS:
            return self._merged(x)
        return torch.cat([level(x) for level in self.levels], 1)

    def _merged(self, x: Tensor) -> Tensor:
        """The same by fewer dense convolutions, the kernels filled up with zeros.

        Processors run few maps in many groups at a few hundredths of their speed: dense kernels
        with up to twelve times the products took two thirds of the time of groups (measured on an
        EPYC with bfloat16, forwards and backwards, 16 and 32 maps).
        """
        step = len(self.levels) if x.shape[1] <= ONE_KERNEL_INPUTS else 2
        parts = []
        for start in range(0, len(self.levels), step):
            layers = [cast(nn.Conv2d, layer) for layer in self.levels[start : start + step]]
            edge = layers[-1].kernel_size[0]
            weight = torch.cat([_dense(layer, edge) for layer in layers])
            parts.append(F.conv2d(x, weight.to(x.dtype), padding=edge // 2))
        return torch.cat(parts, 1)


class PyConvUNet(nn.Module):
    """PyConvU-Net; see the module's legend for shapes.

    Parameters
    ----------
    in_channels, classes:
        Channels of the input; classes of the output, the background included.
    filters, pyramid:
        Maps and number of kernel sizes at each level, from the full image downwards.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        filters: Sequence[int] = (16, 32, 64, 96, 256),
        pyramid: Sequence[int] = (4, 4, 3, 2, 1),
    ) -> None:
        super().__init__()
        if len(filters) != len(pyramid) or not set(pyramid) <= set(SHARES):
            raise TypeError("as many numbers in pyramid, from 1 to 4, as in filters")
        self.in_channels, self.classes = in_channels, classes
        self.filters, self.pyramid = tuple(filters), tuple(pyramid)
        self.slice_axes: tuple[int, ...] = (0,)  # of a volume (z, y, x)
        self.down, self.up, self.widen = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for maps, levels in zip(self.filters, self.pyramid, strict=True):
            self.down.append(_pair(before, maps, levels))
            before = maps
        below = list(pairwise(reversed(self.filters)))
        for (deep, maps), levels in zip(below, reversed(self.pyramid[:-1]), strict=True):
            self.widen.append(nn.ConvTranspose2d(deep, maps, 2, stride=2))
            self.up.append(_pair(2 * maps, maps, levels))
        self.last = nn.Conv2d(self.filters[0], classes - 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Y, X)` of images `(B, in_channels, Y, X)`, or those of a volume."""
        if x.ndim == 5:
            return over_slices(self, x, in_channels=self.in_channels, axes=self.slice_axes)
        with autocast_like(x):
            z = self._logits(x)
        return torch.cat([torch.zeros_like(z[:, :1]), z], 1)

    def _logits(self, x: Tensor) -> Tensor:
        ny, nx = x.shape[2:]
        step = 2 ** (len(self.filters) - 1)
        x = F.pad(x, [0, -nx % step, 0, -ny % step])
        kept = []
        for k, convolutions in enumerate(self.down):
            x = convolutions(F.max_pool2d(x, 2) if k else x)
            kept.append(x)
        for widen, convolutions, maps in zip(self.widen, self.up, kept[-2::-1], strict=True):
            x = convolutions(torch.cat([widen(x), maps], 1))
        return self.last(x)[:, :, :ny, :nx]  # type: ignore[no-any-return]

    @property
    def receptive_field_vox(self) -> int:
        """Edge of a square of input pixels that holds all that one output pixel can depend on.

        Counted along the path through the lowest level, with each level's largest kernel; where a
        pixel lies within its block shifts the field, so this is the widest of all places.
        """
        reaches = [KERNELS[levels - 1] // 2 for levels in self.pyramid]
        deepest = len(self.filters) - 1
        reach: int = 2 * reaches[deepest] * 2**deepest
        for level in range(deepest):
            # Two convolutions down and two up, and the pooling's other pixel.
            reach += (4 * reaches[level] + 1) * 2**level
        return 1 + 2 * reach


class ImageUNet(PyConvUNet):
    """The baseline: the same network with plain 3x3 convolutions, from 32 maps on."""

    def __init__(
        self, *, in_channels: int = 1, classes: int = 2,
        filters: Sequence[int] = (32, 64, 128, 256, 512),
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels=in_channels, classes=classes, filters=filters, pyramid=[1] * len(filters)
        )


def _dense(layer: nn.Conv2d, edge: int) -> Tensor:
    """Weight `(outputs, inputs, edge, edge)` that does without groups what a layer does."""
    weight, groups = layer.weight, layer.groups
    outputs, own, kernel, _ = weight.shape
    rim = (edge - kernel) // 2
    blocks = F.pad(weight, [rim] * 4).reshape(groups, outputs // groups, own, edge, edge)
    wide = blocks.new_zeros(groups, outputs // groups, groups, own, edge, edge)
    group = torch.arange(groups, device=weight.device)[:, None]
    output = torch.arange(outputs // groups, device=weight.device)[None]
    wide = wide.index_put((group, output, group), blocks)
    return wide.reshape(outputs, groups * own, edge, edge)


def _pair(inputs: int, maps: int, levels: int) -> nn.Sequential:
    """Two convolutions, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for k in range(2):
        layers += [PyramidalConvolution(maps if k else inputs, maps, levels),
                   nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]  # fmt: skip
    return nn.Sequential(*layers)
