"""Recipe for classifiers of whole subtomograms: what the line's candidates look like, by class.

Boxes are cut where a localizer would put its candidates: at particles, a voxel or two off; at the
maxima of a difference of Gaussians, which are particles, noise, membranes and gold; beside
particles, where a second hit would be; and anywhere. What is farther than `hit_vox` from every
particle is background, so that the network also sifts the candidates.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tomoline.evaluation.picking import dog_picks
from tomoline.ops.patches import cut_patches, volume_mean
from tomoline.training.augment import random_flip, random_intensity
from tomoline.training.data import TrainingVolume
from tomoline.training.msdnet import Source

DOG_SCALES_VOX = (1.8, 3.6)
VALIDATION_BATCH = 64
AHEAD = 2  # chunks made while one is learnt from
MOST_CHUNKS = 64  # of an epoch; it needs far fewer


@dataclass(frozen=True, kw_only=True)
class SubtomogramOptions:
    """Boxes, batches and loss."""

    box_vox: int = 32
    batch_size: int = 64
    steps_per_epoch: int = 100
    validation_volumes: int = 16
    off_centre_vox: float = 1.3  # SD a direction of a candidate about its particle
    hit_vox: float = 4.5  # farther from every particle is background
    background_share: float = 0.35  # of background boxes to those of particles
    views_per_particle: int = 2  # boxes cut at each particle before its tomogram is dropped
    chunk_volumes: int = 12  # tomograms whose boxes are shuffled among each other
    label_smoothing: float = 0.02
    workers: int = 1  # processes that make tomograms beside the training
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
    rank: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Boxes:
    """Subtomograms `(N, b, b, b)`, float16 as they are many, and labels `(N,)`, 0 background."""

    values: NDArray[np.float16]
    labels: NDArray[np.int64]


def candidate_places(
    volume: TrainingVolume, options: SubtomogramOptions, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Places `(N, 3)` where boxes are cut, once, and what is there `(N,)`."""
    o, true = options, volume.centres_zyx
    shape, count = np.array(volume.volume.shape), len(volume.labels)
    jitter = rng.normal(0, o.off_centre_vox, (count, 3)).clip(-2.5, 2.5)
    picks = dog_picks(
        volume.volume, float(rng.uniform(*DOG_SCALES_VOX)),
        number=max(count, int(shape.prod() / 2e4)),
    ).zyx_vox  # fmt: skip
    beside = rng.normal(size=(count, 3))
    beside *= rng.uniform(5, 11, (count, 1)) / np.linalg.norm(beside, axis=1, keepdims=True)
    anywhere = rng.uniform(0, 1, (count // 4 + 3, 3)) * (shape - 1)
    beside = true.reshape(-1, 3) + beside
    beside = beside[((beside >= 0) & (beside <= shape - 1)).all(1)]
    others = rng.permutation(np.concatenate([picks, beside, anywhere]))
    if not count:
        return others, np.zeros(len(others), np.int64)
    distance, nearest = cKDTree(true).query(others)
    apart, hits = distance > o.hit_vox, distance < 0.7 * o.hit_vox
    background = others[apart][: int(count * o.background_share) + 3]
    # A maximum near a particle is a candidate as good as one that was made by chance.
    places = np.concatenate([true + jitter, others[hits], background])
    labels = np.concatenate(
        [volume.labels, volume.labels[nearest[hits]], np.zeros(len(background), np.int64)]
    )
    inside = ((places > -0.5) & (places < shape - 0.5)).all(1)
    return places[inside], labels[inside].astype(np.int64)


def boxes_of(
    volume: TrainingVolume, options: SubtomogramOptions, rng: np.random.Generator, *,
    augment: bool = True,
) -> Boxes:  # fmt: skip
    """Boxes at one draw of `candidate_places`, cut as the extract stage does, each turned over
    and its grey values changed at random."""
    places, labels = candidate_places(volume, options, rng)
    edge, values = options.box_vox, volume.volume
    patches = cut_patches(values, places, box_vox=edge, fill=volume_mean(values))
    found = np.empty((len(places), edge, edge, edge), np.float16)
    for k, patch in enumerate(patches):
        if augment:
            (turned,) = random_flip(rng, patch.values)
            found[k] = random_intensity(rng, np.ascontiguousarray(turned))
        else:
            found[k] = patch.values
    return Boxes(found, labels)


def chunk(source: Source, options: SubtomogramOptions, number: int) -> Boxes:
    """Shuffled boxes of the tomograms of one chunk; the same number gives the same boxes."""
    o = options
    rng = np.random.default_rng([o.seed, number, 7])
    parts = [
        boxes_of(volume, o, rng)
        for volume in source.volumes(number, o.chunk_volumes)
        for _ in range(o.views_per_particle)
    ]
    order = rng.permutation(sum(len(p.labels) for p in parts))
    values = np.concatenate([p.values for p in parts])[order]
    return Boxes(values, np.concatenate([p.labels for p in parts])[order])


class SubtomogramRecipe:
    """Batches, loss and validation figures; see the module's text."""

    def __init__(self, source: Source, classes: int, options: SubtomogramOptions) -> None:
        self.source, self.classes, self.options = source, classes, options
        self._held_out: Boxes | None = None

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of an epoch's own tomograms, made by other processes meanwhile."""
        o = self.options
        first = (epoch * o.processes + o.rank) * MOST_CHUNKS
        chunks = DataLoader(
            _Chunks(self.source, o), batch_size=None, sampler=range(first, first + MOST_CHUNKS),
            num_workers=o.workers, prefetch_factor=AHEAD if o.workers else None,
            worker_init_fn=_yielding,
        )  # fmt: skip
        batches = self._batches(iter(chunks))
        return itertools.islice(batches, o.steps_per_epoch)

    def _batches(self, chunks: Iterator[Boxes]) -> Iterator[Mapping[str, Tensor]]:
        """Full batches; what is left of a chunk goes into the next one's first."""
        size = self.options.batch_size
        values, labels = self._none()
        for more in chunks:
            values = np.concatenate([values, more.values])
            labels = np.concatenate([labels, more.labels])
            while len(labels) >= size:
                yield {
                    "volume": torch.from_numpy(values[:size].astype(np.float32))[:, None],
                    "labels": torch.from_numpy(labels[:size]),
                }
                values, labels = values[size:], labels[size:]

    def _none(self) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        return np.empty((0, *[self.options.box_vox] * 3), np.float16), np.empty(0, np.int64)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the named classes, background among them."""
        labels = batch["labels"].to(self.options.device)
        return F.cross_entropy(
            self._logits(network, batch["volume"]), labels,
            label_smoothing=self.options.label_smoothing if network.training else 0.0,
        )  # fmt: skip

    def _logits(self, network: nn.Module, volume: Tensor) -> Tensor:
        dtype = getattr(torch, self.options.precision)
        moved = volume.to(self.options.device, dtype)
        logits: Tensor = network(moved.contiguous(memory_format=torch.channels_last_3d))
        return logits.float()

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss, mean accuracy of the classes, and of sifting, at one draw of held-out candidates.

        `class_accuracy` is of the true particles, among the structures (background left out);
        `sifted_background` and `lost_particles` are the shares called background.
        """
        held_out = self._validation()
        with torch.no_grad():
            logits = torch.cat([
                self._logits(network, torch.from_numpy(part.astype(np.float32))[:, None]).cpu()
                for part in _split(held_out.values)
            ])  # fmt: skip
        labels = torch.from_numpy(held_out.labels)
        named, background = logits[:, 1:].argmax(1) + 1, logits.argmax(1) == 0
        right = [
            float((named[labels == k] == k).float().mean())
            for k in range(1, self.classes) if bool((labels == k).any())
        ]  # fmt: skip
        return {
            "loss": float(F.cross_entropy(logits, labels)),
            "class_accuracy": float(np.mean(right)) if right else float("nan"),
            "sifted_background": float(background[labels == 0].float().mean()),
            "lost_particles": float(background[labels > 0].float().mean()),
        }

    def _validation(self) -> Boxes:
        if self._held_out is None:
            rng = np.random.default_rng([self.options.seed, 11])
            parts = [
                boxes_of(volume, self.options, rng, augment=False)
                for volume in self.source.validation(self.options.validation_volumes)
            ]
            self._held_out = Boxes(
                np.concatenate([p.values for p in parts]),
                np.concatenate([p.labels for p in parts]),
            )
        return self._held_out


def _split(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(values), VALIDATION_BATCH):
        yield values[start : start + VALIDATION_BATCH]


class _Chunks(Dataset[Boxes]):
    """Chunks by number."""

    def __init__(self, source: Source, options: SubtomogramOptions) -> None:
        self.source, self.options = source, options

    def __getitem__(self, number: int) -> Boxes:
        return chunk(self.source, self.options, number)


def _yielding(worker: int) -> None:
    """Workers make way for the training."""
    os.nice(1)
