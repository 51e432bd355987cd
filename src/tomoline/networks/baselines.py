"""Two plain networks that the papers compare themselves with; written anew from their descriptions.

`VGG` names a subtomogram as a whole, as DSRF3D-v2 does (Che et al. 2018, Mach Vis Appl 29): three
times two 3x3x3 convolutions and a max-pooling, two linear layers with dropout, a linear layer.
`EncoderDecoder` names each voxel, as SSN3D-ED does (Liu et al. 2018): convolutions and
max-pooling down to an eighth of the edge, up-sampling and convolutions back, no skip connections.
Smaller than the originals where those give every layer hundreds of maps; ReLU throughout.

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, in_channels, Z, Y, X)`; output logits
`(B, classes)` of `VGG`, `(B, classes, Z, Y, X)` of `EncoderDecoder`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.networks.blocks import autocast_like


def _convolutions(before: int, maps: int) -> nn.Sequential:
    """Two 3x3x3 convolutions, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for k in (before, maps):
        layers += [nn.Conv3d(k, maps, 3, padding=1, bias=False), nn.BatchNorm3d(maps), nn.ReLU()]
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Plain classifier of whole subtomograms; see the module's legend for shapes.

    Parameters
    ----------
    maps:
        Maps of the convolutions at each level.
    features, dropout:
        Size of the two linear layers before the last, and the share of it that training leaves out.
    edge:
        What the last maps are averaged to, so that subtomograms of any size fit the linear layers.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        maps: Sequence[int] = (16, 32, 64),
        features: int = 512,
        dropout: float = 0.5,
        edge: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.edge = in_channels, classes, edge
        sizes = [in_channels, *maps]
        self.levels = nn.ModuleList(_convolutions(a, b) for a, b in itertools.pairwise(sizes))
        self.to_features = nn.Sequential(
            nn.Linear(maps[-1] * edge**3, features), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(features, features), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.last = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of subtomograms `(B, in_channels, Z, Y, X)`."""
        with autocast_like(x):
            for level in self.levels:
                x = F.max_pool3d(level(x), 2)
            logits: Tensor = self.last(self.to_features(_averaged(x, self.edge).flatten(1)))
            return logits


def _averaged(x: Tensor, edge: int) -> Tensor:
    """Maps averaged to `(B, C, edge, edge, edge)`."""
    return F.adaptive_avg_pool3d(x, edge)


class EncoderDecoder(nn.Module):
    """Encoder-decoder that names voxels; see the module's legend for shapes.

    Edges that are no multiple of 8 are padded with zeros at their far end and cut back.
    """

    def __init__(
        self, *, in_channels: int = 1, classes: int = 2, maps: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        sizes = [in_channels, *maps]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in itertools.pairwise(sizes))
        back = [*maps[::-1], maps[0]]
        self.up = nn.ModuleList(_convolutions(a, b) for a, b in itertools.pairwise(back))
        # Named as MSDNet's, so that a network that learns new classes is extended alike.
        self.last_weight = nn.Parameter(torch.randn(classes, maps[0]) / math.sqrt(maps[0]))
        self.last_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)` of volumes `(B, in_channels, Z, Y, X)`."""
        with autocast_like(x):
            return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        nz, ny, nx = x.shape[2:]
        step = 2 ** len(self.down)
        x = F.pad(x, [n for edge in (nx, ny, nz) for n in (0, -edge % step)])
        for level in self.down:
            x = F.max_pool3d(level(x), 2)
        for level in self.up:
            x = level(F.interpolate(x, scale_factor=2, mode="nearest"))
        x = x[:, :, :nz, :ny, :nx]
        return F.conv3d(x, self.last_weight[:, :, None, None, None], self.last_bias)
