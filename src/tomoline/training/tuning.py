"""A trained classifier of whole subtomograms learns new labels, and classes it did not know.

The layers that stay as they are see each box once; what they make of it is kept, and only the
layers above learn from it (`below` and `above` of DSMNet and DenseNet), so that a hundred labels
take a minute. Batch normalizations keep the statistics of the first training, which few boxes of
one data set would spoil.

In a batch every class has the same share, new ones among them, and background the share that it had
in the first training: then the model's sift and temperature keep their meaning. A class that is
labelled and simulated is taken from both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.networks.densenet import DenseNet
from tomoline.networks.dsmnet import DSMNet, Layers

BACKGROUND_SHARE = 0.26  # 0.35 / 1.35, as `train.candidates.background_share` has it
LABEL_SMOOTHING = 0.02
PASS = 64  # boxes a pass of the layers that stay


def extended(state: Mapping[str, Tensor], more: int) -> dict[str, Tensor]:
    """Return weights with `more` outputs behind the old ones, which are not changed.

    A new class starts as the mean of the particles' outputs: as probable as an average particle,
    less so than background where background is.
    """
    own = {key: value.clone() for key, value in state.items()}
    names = ("last.weight", "last.bias") if "last.weight" in own else ("last_weight", "last_bias")
    for name in names:
        mean = own[name][1:].mean(0, keepdim=True)
        own[name] = torch.cat([own[name], mean.repeat(more, *[1] * (mean.ndim - 1))])
    return own


class Tuned(nn.Module):
    """A network of which only some layers learn; its input is what the others made of boxes."""

    def __init__(self, network: DSMNet | DenseNet, layers: Layers) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        learnt = {id(parameter) for parameter in network.learnt(layers)}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learnt)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)`."""
        return self.network.above(x, self.layers)

    def train(self, mode: bool = True) -> Tuned:
        """Batch normalizations stay as they are."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        return self


@dataclass(frozen=True)
class Seen:
    """What the layers that stay made of boxes `(N, ...)`, float16; `labels (N,)`, 0 background."""

    values: Tensor
    labels: NDArray[np.int64]


def seen(
    network: DSMNet | DenseNet,
    boxes: NDArray[Any],
    labels: NDArray[np.int64],
    layers: Layers,
    *,
    device: str,
) -> Seen:
    """Run the layers that stay on boxes `(N, b, b, b)`."""
    network = network.to(device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(boxes), PASS):
            x = torch.from_numpy(np.asarray(boxes[start : start + PASS], np.float32))[:, None]
            below = network.below(x.to(device).contiguous(memory_format=torch.channels_last_3d),
                                  layers)  # fmt: skip
            parts.append(below.to("cpu", torch.float16).contiguous())
    return Seen(torch.cat(parts) if parts else torch.empty(0), np.asarray(labels, np.int64))


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Batches of a tuning."""

    classes: int
    batch_size: int = 64
    steps_per_epoch: int = 20
    simulated_share: float = 0.5
    device: str = "cpu"
    seed: int = 0


class TuneRecipe:
    """Batches, loss and validation of a tuning; see the module's text.

    `validate` measures what is learnt on the labels themselves, as they are, and on simulated boxes
    that are not learnt from: held-out labels are for the figures alone, and choose nothing.
    """

    def __init__(
        self, own: Seen, simulated: Seen | None, options: TuneOptions, *,
        plain: Seen, held_out: Seen | None = None,
    ) -> None:  # fmt: skip
        self.options = options
        self.pools = [own] if simulated is None else [own, simulated]
        self.plain, self.held_out = plain, held_out
        self._rows = [_rows_of(pool.labels) for pool in self.pools]
        present = sorted({label for rows in self._rows for label in rows if label > 0})
        self._classes = np.array(present)
        self._has_background = any(0 in rows for rows in self._rows)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.options.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches in which classes are equally frequent."""
        o = self.options
        rng = np.random.default_rng([o.seed, epoch, 9])
        torch.manual_seed(o.seed * 1_000_003 + epoch)  # what dropout leaves out
        for _ in range(o.steps_per_epoch):
            wanted = rng.choice(self._classes, o.batch_size)
            if self._has_background:
                wanted[rng.random(o.batch_size) < BACKGROUND_SHARE] = 0
            drawn = [self._draw(int(label), rng) for label in wanted]
            yield {
                "volume": torch.stack([self.pools[pool].values[row] for pool, row in drawn]),
                "labels": torch.from_numpy(wanted.astype(np.int64)),
            }

    def _draw(self, label: int, rng: np.random.Generator) -> tuple[int, int]:
        """A box of a class: its pool and row."""
        holding = [k for k, rows in enumerate(self._rows) if label in rows]
        both = len(holding) > 1
        pool = holding[int(rng.random() < self.options.simulated_share)] if both else holding[0]
        rows = self._rows[pool][label]
        return pool, int(rows[rng.integers(len(rows))])

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the named classes, background among them."""
        device = self.options.device
        logits = network(batch["volume"].to(device, torch.float32))
        return F.cross_entropy(
            logits.float(), batch["labels"].to(device),
            label_smoothing=LABEL_SMOOTHING if network.training else 0.0,
        )  # fmt: skip

    def validate(self, network: nn.Module) -> dict[str, float]:
        """`loss`, the mean over classes; accuracies of the labels and of the held-out simulated."""
        figures: dict[str, float] = {}
        losses = []
        for name, pool in (("label", self.plain), ("simulated", self.held_out)):
            if pool is None or not len(pool.labels):
                continue
            logits = self._logits(network, pool)
            labels = torch.from_numpy(pool.labels)
            each = F.cross_entropy(logits, labels, reduction="none")
            kinds = np.unique(pool.labels)
            losses += [float(each[labels == int(k)].mean()) for k in kinds]
            right = logits.argmax(1) == labels
            shares = [float(right[labels == int(k)].float().mean()) for k in kinds if k > 0]
            figures[f"{name}_accuracy"] = float(np.mean(shares)) if shares else float("nan")
        return {"loss": float(np.mean(losses)), **figures}

    def _logits(self, network: nn.Module, pool: Seen) -> Tensor:
        parts: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(pool.labels), PASS):
                part = pool.values[start : start + PASS].to(self.options.device, torch.float32)
                parts.append(network(part).float().cpu())
        return torch.cat(parts)


def _rows_of(labels: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    return {int(k): np.flatnonzero(labels == k) for k in np.unique(labels)}


def joined_seen(parts: Sequence[Seen]) -> Seen:
    """Put sets of boxes behind each other; those without any are left out."""
    parts = [part for part in parts if len(part.labels)]
    return Seen(torch.cat([part.values for part in parts]),
                np.concatenate([part.labels for part in parts]))  # fmt: skip
