"""HydraPicker: one body that sees, one head a data set that says where particles are.

Masoumzadeh and Brubaker, "HydraPicker: Fully Automated Particle Picking in Cryo-EM by Utilizing
Dataset Bias in Single Shot Detection" (BMVC 2019), section 3.1. The body is two 3x3 convolutions
and three residual blocks of two pairs of stacked 3x3 convolutions, with nothing between the two of
a pair. A head is four 3x3 convolutions of stride 2, each with ReLU, group normalization and
dropout, and a last 3x3 convolution to three numbers for each cell of 16 x 16 pixels. The head
`general` is for structures that were never seen; it learns from the other heads' weights alone.

What the paper leaves out is as in the authors' code: dropout 0.3, two channels a group (32 groups
of 64), the class bias -4 at the start, offsets 0.75 x cell x tanh. `width`, `body` and `stem` are
ours: a head of the published size has 6.3 million weights and the body half a million, too many for
few micrographs or a processor without GPU. With the stem `strided` the second convolution halves
the resolution, so that the body takes a quarter of the time; the first block of a head then does
not halve it.

Axes: B batch, C channels, Y, X pixels; cells I, J of 16 x 16 pixels. Input `(B, 1, Y, X)`, Y and X
multiples of 16; output `(B, 3, I, J)`: offset from the cell's centre along y and along x (pixels),
logit of there being a particle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoline.errors import InputError
from tomoline.networks.blocks import autocast_like

GENERAL = "general"
CELL_PX = 16
REACH = 0.75  # of a cell: how far an offset can go
HEAD_CHANNELS = (128, 256, 512, 1024)
CLASS_BIAS = -4.0


class HydraPicker(nn.Module):
    """Body and heads; see the module's legend for shapes.

    Parameters
    ----------
    heads:
        Names of the data sets' heads. There is always `general` too.
    body:
        Channels of the body; the paper's are 64.
    width:
        Factor of the heads' channels; 1 for the paper's 128, 256, 512, 1024.
    dropout:
        Share of a head's channels that training leaves out.
    stem:
        `full` as in the paper, or `strided`.
    """

    def __init__(
        self,
        *,
        heads: Sequence[str] = (),
        body: int = 64,
        width: float = 1.0,
        dropout: float = 0.3,
        stem: Literal["full", "strided"] = "full",
    ) -> None:
        super().__init__()
        self.body_channels, self.width, self.dropout = body, width, dropout
        self.stem_stride = 2 if stem == "strided" else 1
        self.body = nn.Sequential(
            *_pair(1, body, self.stem_stride), nn.ReLU(), *(_Residual(body) for _ in range(3))
        )
        self.heads = nn.ModuleDict({name: self._head() for name in (GENERAL, *heads)})
        # A fifth faster on processors; the stubs of torch do not know the argument.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, head: str = GENERAL) -> Tensor:
        """Offsets (pixels) and logits `(B, 3, I, J)` by one head."""
        with autocast_like(x):
            raw = self.head(head)(self.body(x))
        offsets = REACH * CELL_PX * torch.tanh(raw[:, :2].float())
        return torch.cat([offsets, raw[:, 2:].float()], 1)

    def head(self, name: str) -> nn.Module:
        """A head by name; InputError, with the known ones, where there is none."""
        if name not in self.heads:
            raise InputError(
                "micrographs.head", expected=f"a head out of {', '.join(self.heads)}", found=name,
                remedy="correct the name, or train a head of that name",
            )  # fmt: skip
        return self.heads[name]

    def add_head(self, name: str, start: str = GENERAL) -> None:
        """Add a head that begins as a copy of another."""
        made = self._head()
        made.load_state_dict(self.head(start).state_dict())
        device = next(self.parameters()).device
        self.heads[name] = made.to(device)

    def specialised(self) -> list[str]:
        """Names of the heads other than `general`."""
        return [name for name in self.heads if name != GENERAL]

    def _head(self) -> nn.Sequential:
        channels = [max(4, round(self.width * c)) for c in HEAD_CHANNELS]
        layers: list[nn.Module] = []
        before = self.body_channels
        for k, after in enumerate(channels):
            stride = 1 if k == 0 and self.stem_stride == 2 else 2
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU(), _norm(after),
                nn.Dropout2d(self.dropout),
            ]  # fmt: skip
            before = after
        last = nn.Conv2d(before, 3, 3, padding=1)
        nn.init.normal_(last.weight, std=0.01)
        assert last.bias is not None
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 0.0, CLASS_BIAS]))
        return nn.Sequential(*layers, last)


class _Residual(nn.Module):
    """Two pairs of stacked 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_pair(channels, channels), nn.ReLU(), *_pair(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _pair(before: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """Two 3x3 convolutions with nothing between, as one of 5x5 with fewer weights (the paper)."""
    return [
        nn.Conv2d(before, channels, 3, padding=1, bias=False),
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
        _norm(channels),
    ]


def _norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of two channels or more."""
    groups = min(32, channels // 2)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)
