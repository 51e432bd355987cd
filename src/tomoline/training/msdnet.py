"""Recipe for MSDNet: voxel labels from tomogram windows, by weighted focal loss.

`task` says what is learnt: `localizer` (core against background), `classifier` (structures against
background) or `joint`, one network with both sets of outputs (2 + classes), which `split_joint`
cuts into a localizer and a classifier that share their layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tomoline.training.augment import random_crop, random_flip, random_intensity
from tomoline.training.data import TrainingVolume
from tomoline.training.forward import logits_of
from tomoline.training.losses import (
    UNKNOWN,
    radius_weights,
    tversky_loss,
    weighted_focal_loss,
)

Task = Literal["localizer", "classifier", "joint"]


class Source(Protocol):
    """Where training tomograms come from."""

    def volumes(self, epoch: int, count: int, pool: int = 0) -> list[TrainingVolume]: ...

    def validation(self, count: int) -> list[TrainingVolume]: ...


@dataclass(frozen=True, kw_only=True)
class MSDNetRecipeOptions:
    """Batches and loss."""

    task: Task = "joint"
    crop_vox: int = 64
    centred: bool = False  # crops about particles (as the classifier's input) or anywhere
    batch_size: int = 1
    steps_per_epoch: int = 32
    volumes_per_epoch: int = 4  # new ones
    pool_volumes: int = 0  # with those of earlier epochs; 0: only the new ones
    validation_volumes: int = 2
    loss: Literal["focal", "tversky"] = "focal"
    gamma: float = 2.0
    core_alpha: float = 4.0  # weight of the localizer's particle class
    background_alpha: float = 0.3  # weight of the classifier's background
    radius_power: float = 1.0  # alpha_c = (mean(R_e) / R_e,c) ** this
    core_loss_weight: float = 2.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
    rank: int = 0  # of this process among `processes`; each sees tomograms of its own
    processes: int = 1


class MSDNetRecipe:
    """Batches, loss and validation figures; see the module's text."""

    def __init__(
        self, source: Source, effective_radii: list[float], options: MSDNetRecipeOptions
    ) -> None:
        self.source, self.options = source, options
        self.alpha = radius_weights(effective_radii, options.background_alpha, options.radius_power)
        self.core_alpha = torch.tensor([1.0, options.core_alpha])
        self._held_out: list[TrainingVolume] | None = None

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.options.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Random windows of the epoch's tomograms."""
        o = self.options
        volumes = self.source.volumes(
            epoch * o.processes + o.rank, o.volumes_per_epoch, o.pool_volumes
        )
        rng = np.random.default_rng([o.seed, epoch, 4, *([o.rank] if o.rank else [])])
        for _ in range(o.steps_per_epoch):
            items = [self._window(volumes[rng.integers(len(volumes))], rng)
                     for _ in range(o.batch_size)]  # fmt: skip
            yield {
                "volume": torch.from_numpy(np.stack([i[0] for i in items])[:, None]),
                "core": torch.from_numpy(np.stack([i[1] for i in items])),
                "classes": torch.from_numpy(np.stack([i[2] for i in items])),
            }

    def _window(self, volume: TrainingVolume, rng: np.random.Generator) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
        size = self.options.crop_vox
        if self.options.centred and len(volume.labels):
            cut = _about_particle(volume, size, rng)
        else:
            cut = random_crop(rng, volume.volume.shape, size)
        arrays = [_cut(a, cut, size) for a in (volume.volume, volume.core, volume.classes)]
        grey, core, classes = random_flip(rng, *arrays)
        return (
            random_intensity(rng, grey), np.ascontiguousarray(core),
            np.ascontiguousarray(classes),
        )  # fmt: skip

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Weighted focal loss, or Tversky's, of the task's outputs."""
        o = self.options
        logits = self._logits(network, batch["volume"])
        core, classes = batch["core"].to(o.device), batch["classes"].to(o.device)
        loss = torch.zeros((), device=o.device)
        if o.task != "classifier":
            found = logits[:, :2]
            loss = loss + o.core_loss_weight * self._of(found, core, self.core_alpha)
        if o.task != "localizer":
            named = logits[:, 2:] if o.task == "joint" else logits
            loss = loss + self._of(named, classes, self.alpha)
        return loss

    def _of(self, logits: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
        if self.options.loss == "tversky":
            return tversky_loss(logits, target)
        return weighted_focal_loss(logits, target, alpha, self.options.gamma)

    def _logits(self, network: nn.Module, volume: Tensor) -> Tensor:
        o = self.options
        return logits_of(network, volume, device=o.device, precision=o.precision)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss, core overlap (Dice) and class accuracy at the true masks, on held-out tomograms."""
        o = self.options
        if self._held_out is None:
            self._held_out = self.source.validation(o.validation_volumes)
        losses, overlap, right = [], [0.0, 0.0], []
        for volume in self._held_out:
            for cut in _grid(volume.volume.shape, o.crop_vox):
                batch = {
                    "volume": torch.from_numpy(volume.volume[cut][None, None].copy()),
                    "core": torch.from_numpy(volume.core[cut][None].copy()),
                    "classes": torch.from_numpy(volume.classes[cut][None].copy()),
                }
                logits = self._logits(network, batch["volume"]).cpu()
                losses.append(float(self.loss(lambda _, x=logits: x, batch)))  # type: ignore[arg-type,misc]
                if o.task != "classifier":
                    known = batch["core"][0] != UNKNOWN
                    marked = (logits[0, :2].softmax(0)[1] > 0.5) & known
                    truth = (batch["core"][0] > 0) & known
                    overlap[0] += 2.0 * float((marked & truth).sum())
                    overlap[1] += float(marked.sum() + truth.sum())
                if o.task != "localizer":
                    named = logits[0, 2:] if o.task == "joint" else logits[0]
                    right += _class_hits(named, volume, cut)
        figures = {"loss": float(np.mean(losses))}
        if o.task != "classifier":
            figures["core_dice"] = overlap[0] / max(overlap[1], 1.0)
        if o.task != "localizer":
            by_class: dict[int, list[bool]] = {}
            for label, hit in right:
                by_class.setdefault(label, []).append(hit)
            shares = [float(np.mean(hits)) for hits in by_class.values()]
            figures["class_accuracy"] = float(np.mean(shares)) if shares else float("nan")
        return figures


def _class_hits(
    logits: Tensor, volume: TrainingVolume, cut: tuple[slice, ...]
) -> list[tuple[int, bool]]:
    """For each particle whose centre is in the window: its label, and whether the mean class
    probability over its true voxels there is largest for it."""
    probability = logits[1:].softmax(0).numpy()
    instances, hits = volume.instances[cut], []
    low = np.array([s.start for s in cut])
    for k, (centre, label) in enumerate(zip(volume.centres_zyx, volume.labels, strict=True)):
        if ((centre >= low) & (centre < low + instances.shape)).all():
            voxels = instances == k + 1
            if voxels.any():
                guess = int(probability[:, voxels].mean(1).argmax()) + 1
                hits.append((int(label), guess == int(label)))
    return hits


def _grid(shape: tuple[int, ...], size: int) -> Iterator[tuple[slice, slice, slice]]:
    for z in range(0, max(shape[0] - size // 2, 1), size):
        for y in range(0, max(shape[1] - size // 2, 1), size):
            for x in range(0, max(shape[2] - size // 2, 1), size):
                starts = [min(s, max(n - size, 0)) for s, n in zip((z, y, x), shape, strict=True)]
                yield tuple(slice(s, min(s + size, n)) for s, n in zip(starts, shape, strict=True))  # type: ignore[misc]


def _about_particle(
    volume: TrainingVolume, size: int, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """Window about a random particle, every class equally likely, off by up to two voxels."""
    label = rng.choice(np.unique(volume.labels))
    centre = volume.centres_zyx[rng.choice(np.flatnonzero(volume.labels == label))]
    start = np.rint(centre + rng.uniform(-2, 2, 3)).astype(int) - size // 2
    return tuple(slice(int(s), int(s) + size) for s in start)  # type: ignore[return-value]


def _cut(array: np.ndarray, cut: tuple[slice, ...], size: int) -> np.ndarray:  # type: ignore[type-arg]
    """A window, filled with zeros (the normalised mean; background) outside the volume."""
    low = [max(s.start, 0) for s in cut]
    high = [min(s.stop, n) for s, n in zip(cut, array.shape, strict=True)]
    inner = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    fill = [(a - s.start, s.start + size - b) for a, b, s in zip(low, high, cut, strict=True)]
    return np.pad(inner, fill)


def split_joint(
    state: Mapping[str, Tensor], part: Literal["localizer", "classifier"]
) -> dict[str, Tensor]:
    """Weights of the localizer or the classifier within a network trained for both."""
    rows = slice(0, 2) if part == "localizer" else slice(2, None)
    own = {k: v.clone() for k, v in state.items()}
    for key in ("last_weight", "last_bias"):
        own[key] = own[key][rows].clone()
    return own
