"""3D-Dilated-DenseNet and 3D-DenseNet (Gao et al. 2020, sections 2.1 to 2.3).

A subtomogram is named as a whole: a first convolution, three dense blocks of four layers, whose
maps are averaged over space, and one linear layer. In a block each layer sees the maps of all
layers before it: batch normalization, ReLU and a 1x1x1 convolution to four times the growth, then
batch normalization, ReLU and a 3x3x3 convolution that adds `growth` maps. Between blocks a batch
normalization, a 1x1x1 convolution to half of the maps and an average pooling by 2. The dilations of
a block's 3x3x3 convolutions are 1, 2, 3, 1 (hybrid dilated convolution: no common divisor, the
dilated layers in the middle), or all 1, which is the paper's 3D-DenseNet. Weights are drawn as the
paper says (Glorot and Bengio's uniform distribution), biases are 0.

As the class's weights of the last layer belong to maps, they say where in the subtomogram the
evidence for the class lies (`tomoline.networks.activation`).

What the paper leaves open: 24 maps of the first convolution, the 1x1x1 convolutions' sizes, and a
batch normalization and ReLU before the averaging, as DenseNet has them. The first convolution is of
3x3x3 at the full edge (`stem: plain`), or of 5x5x5 and stride 2 (`stem: strided`), with which all
blocks work on an eighth of the voxels: a processor takes a ninth of the time.

Axes: B batch, C channels, Z, Y, X voxels. Input `(B, 1, Z, Y, X)`, output logits `(B, classes)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.networks.blocks import Convolve, autocast_like, plain_convolve
from tomoline.networks.schedule import check_hybrid_dilation

Stem = Literal["plain", "strided"]
Layers = Literal["head", "last_block", "all"]  # what is learnt anew when a network is tuned

COMPRESSED = 4  # maps of a layer's 1x1x1 convolution, in growths


class DenseNet(nn.Module):
    """Densely connected classifier of whole subtomograms; see the module's legend for shapes.

    Parameters
    ----------
    in_channels, classes:
        Channels of the input, and classes named (background is one).
    growth:
        Maps that each layer adds (k in the paper).
    dilations:
        Of the layers of a block, each block alike; all 1 makes the undilated network. An InputError
        where they leave holes in what is seen.
    blocks:
        Number of dense blocks.
    first:
        Maps of the first convolution.
    stem:
        Whether the first convolution keeps the edge or halves it; see the module's text.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        growth: int = 12,
        dilations: Sequence[int] = (1, 2, 3, 1),
        blocks: int = 3,
        first: int = 24,
        stem: Stem = "plain",
    ) -> None:
        super().__init__()
        check_hybrid_dilation(list(dilations))
        self.in_channels, self.classes, self.dilations = in_channels, classes, tuple(dilations)
        edge, stride = (5, 2) if stem == "strided" else (3, 1)
        self.first = nn.Conv3d(in_channels, first, edge, stride, edge // 2)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        maps = first
        for k in range(blocks):
            if k:
                self.transitions.append(Transition(maps, maps // 2))
                maps //= 2
            self.blocks.append(DenseBlock(maps, growth, dilations))
            maps += growth * len(dilations)
        self.last_norm = nn.BatchNorm3d(maps)
        self.last = nn.Linear(maps, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of subtomograms `(B, in_channels, Z, Y, X)`."""
        with autocast_like(x):
            logits: Tensor = self.last(self.maps(x).mean((2, 3, 4)))
            return logits

    def maps(self, x: Tensor) -> Tensor:
        """The last maps `(B, K, z, y, x)`, whose means over space are classified."""
        return self._last_maps(self._before_last_block(x))

    @property
    def map_grid(self) -> tuple[float, float]:
        """Voxels from one place of the last maps to the next, and the first place's."""
        step, first = float(self.first.stride[0]), 0.0
        for _ in self.transitions:  # an average lies between what it is of
            step, first = 2 * step, first + step / 2
        return step, first

    def of_means(self, means: Tensor) -> Tensor:
        """Logits `(B, classes)` of the last maps' means `(B, K)`."""
        logits: Tensor = self.last(means)
        return logits

    def below(self, x: Tensor, layers: Layers) -> Tensor:
        """What the layers that stay as they are make of subtomograms `(B, in_channels, Z, Y, X)`.

        `head`: maps averaged over space `(B, K)`; `last_block`: maps before the last transition;
        `all`: the subtomograms themselves.
        """
        with autocast_like(x):
            if layers == "head":
                return self.maps(x).mean((2, 3, 4))
            return x if layers == "all" else self._before_last_block(x)

    def above(self, x: Tensor, layers: Layers) -> Tensor:
        """Logits `(B, classes)` of what `below` gave; both together are `forward`."""
        if layers == "all":
            x = self.maps(x).mean((2, 3, 4))
        elif layers == "last_block":
            x = self._last_maps(x).mean((2, 3, 4))
        logits: Tensor = self.last(x)
        return logits

    def learnt(self, layers: Layers) -> list[nn.Parameter]:
        """The parameters that `above` uses."""
        parts: list[nn.Module] = [self.last]
        if layers == "last_block":
            parts += [*self.transitions[-1:], self.blocks[-1], self.last_norm]
        return list((self if layers == "all" else nn.ModuleList(parts)).parameters())

    def use(self, convolve: Convolve) -> None:
        """Run the 3x3x3 convolutions by other code."""
        for module in self.modules():
            if isinstance(module, DenseLayer):
                module.convolve = convolve

    def _before_last_block(self, x: Tensor) -> Tensor:
        """Maps that the last block, or the transition before it, takes."""
        x = self.first(x)
        for k, block in enumerate(list(self.blocks)[:-1]):
            x = block(self.transitions[k - 1](x) if k else x)
        return x

    def _last_maps(self, x: Tensor) -> Tensor:
        x = self.transitions[-1](x) if len(self.transitions) else x
        return F.relu(self.last_norm(self.blocks[-1](x)))


class DenseBlock(nn.Module):
    """Layers of which each sees the block's input and the maps of all layers before it."""

    def __init__(self, maps: int, growth: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(maps + k * growth, growth, dilation) for k, dilation in enumerate(dilations)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, maps, Z, Y, X)` and, behind them, the maps that the layers add."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseLayer(nn.Module):
    """Figure 1B: normalization, ReLU, 1x1x1 convolution; the same with a 3x3x3 convolution."""

    def __init__(self, maps: int, growth: int, dilation: int) -> None:
        super().__init__()
        inner = COMPRESSED * growth
        self.first_norm, self.first = nn.BatchNorm3d(maps), nn.Conv3d(maps, inner, 1)
        self.second_norm = nn.BatchNorm3d(inner)
        self.second = nn.Conv3d(inner, growth, 3, padding=dilation, dilation=dilation)
        self.dilation = dilation
        self.convolve: Convolve = plain_convolve

    def forward(self, x: Tensor) -> Tensor:
        """`growth` new maps `(B, growth, Z, Y, X)`."""
        x = self.first(F.relu(self.first_norm(x)))
        x, second = F.relu(self.second_norm(x)), self.second
        assert second.bias is not None
        return self.convolve(x, second.weight, second.bias, self.dilation)


class Transition(nn.Module):
    """Figure 1C: fewer maps, at half of the edge."""

    def __init__(self, maps: int, fewer: int) -> None:
        super().__init__()
        self.norm, self.convolution = nn.BatchNorm3d(maps), nn.Conv3d(maps, fewer, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, fewer, Z / 2, Y / 2, X / 2)`."""
        # Averaged first, which comes to the same and leaves an eighth of the work.
        fewer: Tensor = self.convolution(F.avg_pool3d(self.norm(x), 2))
        return fewer
