"""DSM-Net's residual backbone and classification subnet (Liu et al. 2018, section 2.1).

A subtomogram is named as a whole: the backbone halves its edge three times (32, 64 and 128 maps,
a residual block at each level), its maps are averaged over space and go through a linear layer of
1,024 features, the ones that the discovery of structures works on.

The backbone is the paper's but for three things. Convolutions are followed by batch normalization,
without which training is slow. The first halving is the paper's convolution and max-pooling
(`stem: pooled`), or one 5x5x5 convolution of stride 2 (`stem: strided`), which has the same reach
and none of the work on full-size maps, which on a processor takes half of the time. Dropout of the
features is a setting (0.7 in the paper).

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, 1, Z, Y, X)`, output logits `(B, classes)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.networks.blocks import autocast_like

Stem = Literal["pooled", "strided"]
Layers = Literal["head", "last_block", "all"]  # what is learnt anew when a network is tuned


class DSMNet(nn.Module):
    """Residual classifier of whole subtomograms; see the module's legend for shapes.

    Parameters
    ----------
    in_channels, classes:
        Channels of the input, and classes named (background is one).
    maps:
        Maps at each level of the backbone.
    features, dropout:
        Size of the layer before the last, and the share of it that training leaves out.
    stem:
        How the first halving is done; see the module's text.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        maps: Sequence[int] = (32, 64, 128),
        features: int = 1024,
        dropout: float = 0.7,
        stem: Stem = "pooled",
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.stem = in_channels, classes, stem
        edge, stride = (5, 2) if stem == "strided" else (3, 1)
        self.first = nn.Conv3d(in_channels, maps[0], edge, stride, edge // 2, bias=False)
        self.first_norm = nn.BatchNorm3d(maps[0])
        self.blocks = nn.ModuleList(ResidualBlock(count) for count in maps)
        self.halve = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, 2, 1, bias=False), nn.BatchNorm3d(b), nn.ReLU())
            for a, b in pairwise(maps)
        )
        self.to_features = nn.Linear(maps[-1], features)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of subtomograms `(B, in_channels, Z, Y, X)`."""
        with autocast_like(x):
            return self._logits(x)

    def features(self, x: Tensor) -> Tensor:
        """Feature vectors `(B, features)` of subtomograms."""
        return self._features(self._backbone(x, len(self.blocks)))

    def below(self, x: Tensor, layers: Layers) -> Tensor:
        """What the layers that stay as they are make of subtomograms `(B, in_channels, Z, Y, X)`.

        `head`: maps averaged over space `(B, maps[-1])`; `last_block`: maps `(B, maps[-2], ...)`
        before the last halving; `all`: the subtomograms themselves.
        """
        with autocast_like(x):
            if layers == "head":
                return self._backbone(x, len(self.blocks)).mean((2, 3, 4))
            return x if layers == "all" else self._backbone(x, len(self.blocks) - 1)

    def above(self, x: Tensor, layers: Layers) -> Tensor:
        """Logits `(B, classes)` of what `below` gave; both together are `forward`."""
        if layers == "all":
            return self._logits(x)
        if layers == "last_block":
            x = self.blocks[-1](self.halve[-1](x)).mean((2, 3, 4))
        logits: Tensor = self.last(self.dropout(F.relu(self.to_features(x))))
        return logits

    def learnt(self, layers: Layers) -> list[nn.Parameter]:
        """The parameters that `above` uses."""
        parts: list[nn.Module] = [self.to_features, self.last]
        if layers == "last_block":
            parts += [self.halve[-1], self.blocks[-1]]
        return list((self if layers == "all" else nn.ModuleList(parts)).parameters())

    def _backbone(self, x: Tensor, levels: int) -> Tensor:
        """Maps after so many levels."""
        x = F.relu(self.first_norm(self.first(x)))
        x = F.max_pool3d(x, 2) if self.stem == "pooled" else x
        for k in range(levels):
            x = self.blocks[k](self.halve[k - 1](x) if k else x)
        return x

    def _features(self, maps: Tensor) -> Tensor:
        return F.relu(self.to_features(maps.mean((2, 3, 4))))

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.features(x)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions and the way past them."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(maps, maps, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(maps)
        self.second = nn.Conv3d(maps, maps, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape `(B, maps, Z, Y, X)`."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))
