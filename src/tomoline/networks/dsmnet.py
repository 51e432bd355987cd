"""DSM-Net: classification, segmentation and coarse recovery of subtomograms (Liu et al. 2018).

One backbone serves three subnets (section 2), of which any may be there. The backbone halves the
edge three times (32, 64 and 128 maps, a residual block at each level). Classification: its maps are
averaged over space and go through a linear layer of 1,024 features, the ones that the discovery of
structures works on. Segmentation and recovery share a decoder: two transposed convolutions of
stride 2, to each of which the backbone's maps of its level are added, a residual block, one more
transposed convolution to the full edge; then each has a 1x1x1 convolution of its own, to particle
and surroundings, and to the particle's density.

The layers are the paper's but for three things. Convolutions are followed by batch normalization,
without which training is slow. The first halving is the paper's convolution and max-pooling
(`stem: pooled`), or one 5x5x5 convolution of stride 2 (`stem: strided`), which has the same reach
and none of the work on full-size maps, which on a processor takes half of the time. Dropout of the
features is a setting (0.7 in the paper). The last transposed convolution has half as many maps as
the first level, as the paper does not say.

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, 1, Z, Y, X)`, output logits `(B, classes)`;
`outputs` gives those of all subnets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.errors import InputError
from tomoline.networks.blocks import autocast_like
from tomoline.networks.outputs import Outputs

Stem = Literal["pooled", "strided"]
Subnet = Literal["classification", "segmentation", "recovery"]
Layers = Literal["head", "last_block", "all"]  # what is learnt anew when a network is tuned


class DSMNet(nn.Module):
    """Residual multi-task network for whole subtomograms; see the module's legend for shapes.

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
    subnets:
        Which tasks it has; each alone, each pair and all are legal.
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
        subnets: Sequence[Subnet] = ("classification",),
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.stem = in_channels, classes, stem
        self.subnets = tuple(subnets)
        edge, stride = (5, 2) if stem == "strided" else (3, 1)
        self.first = nn.Conv3d(in_channels, maps[0], edge, stride, edge // 2, bias=False)
        self.first_norm = nn.BatchNorm3d(maps[0])
        self.blocks = nn.ModuleList(ResidualBlock(count) for count in maps)
        self.halve = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, 2, 1, bias=False), nn.BatchNorm3d(b), nn.ReLU())
            for a, b in pairwise(maps)
        )
        if "classification" in self.subnets:
            self.to_features = nn.Linear(maps[-1], features)
            self.dropout = nn.Dropout(dropout)
            self.last = nn.Linear(features, classes)
        if set(self.subnets) - {"classification"}:
            self.decoder = Decoder(maps)
        if "segmentation" in self.subnets:
            self.to_mask = nn.Conv3d(self.decoder.maps, 2, 1)
        if "recovery" in self.subnets:
            self.to_density = nn.Conv3d(self.decoder.maps, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of subtomograms `(B, in_channels, Z, Y, X)`.

        Without a classification subnet the logits of the segmentation, or the recovered density.
        """
        if "classification" not in self.subnets:
            found = self.outputs(x)
            only = found.recovery if found.segmentation is None else found.segmentation
            assert only is not None
            return only
        with autocast_like(x):
            return self._logits(x)

    def outputs(self, x: Tensor) -> Outputs:
        """Results of all subnets, the backbone run once.

        Raises
        ------
        InputError
            For an odd edge, where a mask or density of the same size is asked for.
        """
        return self.described(x)[1]

    def described(self, x: Tensor) -> tuple[Tensor | None, Outputs]:
        """Feature vectors `(B, features)`, None without classification, and `outputs`."""
        with autocast_like(x):
            levels = self._levels(x)
            features = classes = mask = density = None
            if "classification" in self.subnets:
                features = self._features(levels[-1])
                classes = self.last(self.dropout(features))
            if set(self.subnets) - {"classification"}:
                maps = self.decoder(levels, _even(x))
                mask = self.to_mask(maps) if "segmentation" in self.subnets else None
                density = self.to_density(maps) if "recovery" in self.subnets else None
        return features, Outputs(classes, mask, density)

    def features(self, x: Tensor) -> Tensor:
        """Feature vectors `(B, features)` of subtomograms."""
        return self._features(self._backbone(x, len(self.blocks)))

    def maps(self, x: Tensor) -> Tensor:
        """The last maps `(B, maps[-1], z, y, x)`, whose means over space are classified."""
        return self._backbone(x, len(self.blocks))

    @property
    def map_grid(self) -> tuple[float, float]:
        """Voxels from one place of the last maps to the next, and the first place's."""
        return 2.0 ** len(self.blocks), 0.5 if self.stem == "pooled" else 0.0

    def of_means(self, means: Tensor) -> Tensor:
        """Logits `(B, classes)` of the last maps' means `(B, maps[-1])`."""
        return self.above(means, "head")

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
        return self._levels(x, levels)[-1]

    def _levels(self, x: Tensor, levels: int | None = None) -> list[Tensor]:
        """Maps after each level, all or the first ones."""
        x = F.relu(self.first_norm(self.first(x)))
        x = F.max_pool3d(x, 2) if self.stem == "pooled" else x
        found: list[Tensor] = []
        for k in range(len(self.blocks) if levels is None else levels):
            x = self.blocks[k](self.halve[k - 1](x) if k else x)
            found.append(x)
        return found

    def _features(self, maps: Tensor) -> Tensor:
        return F.relu(self.to_features(maps.mean((2, 3, 4))))

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.features(x)))
        return logits


def _even(x: Tensor) -> tuple[int, ...]:
    size = tuple(x.shape[2:])
    if any(edge % 2 for edge in size):
        raise InputError(
            "subtomograms", expected="boxes of even edges for segmentation and recovery",
            found=f"{size} voxels", remedy="cut boxes of an even edge, such as the card's box_vox",
        )  # fmt: skip
    return size


class Decoder(nn.Module):
    """From the backbone's levels back to the full edge; `maps` of its output."""

    def __init__(self, maps: Sequence[int]) -> None:
        super().__init__()
        self.maps = max(1, maps[0] // 2)
        self.widen = nn.ModuleList(
            _widening(a, b) for a, b in pairwise([*reversed(maps), self.maps])
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(n) for n in [*reversed(maps[:-1]), self.maps])
        self.block = ResidualBlock(maps[0])

    def forward(self, levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Maps `(B, maps, *size)` of the backbone's levels, the finest first."""
        x = levels[-1]
        for k, skip in enumerate(reversed(levels[:-1])):
            x = F.relu(self.norms[k](self.widen[k](x, output_size=skip.shape[2:]))) + skip
        x = self.block(x)
        return F.relu(self.norms[-1](self.widen[-1](x, output_size=size)))


def _widening(before: int, maps: int) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(before, maps, 3, 2, 1, bias=False)


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
