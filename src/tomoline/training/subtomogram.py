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

from tomoline.ops.patches import cut_patches, volume_mean
from tomoline.ops.picking import dog_picks
from tomoline.training.augment import random_flip, random_intensity
from tomoline.training.data import TrainingVolume
from tomoline.training.forward import logits_of
from tomoline.training.msdnet import Source

DOG_SCALES_VOX = (1.8, 3.6)
VOXELS_PER_PICK = 2e4  # maxima that are looked at: as many as particles, or one in so many voxels
NEAR = 0.7  # of the hit distance: a maximum as near is a candidate of the particle
BESIDE = (1.1, 2.4)  # hit distances from a particle where a second hit might be
LEAST_BACKGROUND = 3  # boxes of a tomogram
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
    anywhere: float = 0.25  # places anywhere, a particle, that background is also drawn from
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


@dataclass(frozen=True)
class Candidates:
    """Places `(N, 3)` of a tomogram where boxes can be cut, and what is there `(N,)`."""

    places: NDArray[np.float64]
    labels: NDArray[np.int64]


def picked_candidates(
    volume: TrainingVolume, options: SubtomogramOptions, rng: np.random.Generator
) -> Candidates:
    """Maxima of a difference of Gaussians at a random scale: particles, and what looks like them.

    A maximum that is neither at a particle nor far from all of them is left out.
    """
    number = max(len(volume.labels), int(volume.volume.size / VOXELS_PER_PICK))
    picks = dog_picks(volume.volume, float(rng.uniform(*DOG_SCALES_VOX)), number=number).zyx_vox
    return _labelled(picks, volume, options)


def _labelled(
    places: NDArray[np.float64], volume: TrainingVolume, options: SubtomogramOptions
) -> Candidates:
    if not len(volume.labels):
        return Candidates(places, np.zeros(len(places), np.int64))
    distance, nearest = cKDTree(volume.centres_zyx).query(places)
    apart, hits = distance > options.hit_vox, distance < NEAR * options.hit_vox
    labels = np.where(apart, 0, volume.labels[nearest]).astype(np.int64)
    known = apart | hits
    return Candidates(places[known], labels[known])


def candidates_of(
    volume: TrainingVolume, picked: Candidates, options: SubtomogramOptions,
    rng: np.random.Generator,
) -> Candidates:  # fmt: skip
    """One draw: every particle once, somewhat off its centre; the picked maxima that hit one; and
    background in its share, of the picked, of places beside particles and of any."""
    o, true, count = options, volume.centres_zyx.reshape(-1, 3), len(volume.labels)
    shape = np.array(volume.volume.shape)
    off = rng.normal(0, o.off_centre_vox, (count, 3)).clip(-2 * o.hit_vox / 3, 2 * o.hit_vox / 3)
    way = rng.normal(size=(count, 3))
    way *= rng.uniform(*BESIDE, (count, 1)) * o.hit_vox / np.linalg.norm(way, axis=1, keepdims=True)
    anywhere = rng.uniform(0, 1, (int(count * o.anywhere) + 3, 3)) * (shape - 1)
    drawn = _labelled(np.concatenate([true + way, anywhere]), volume, o)
    hit = picked.labels > 0
    background = np.concatenate([picked.places[~hit], drawn.places[drawn.labels == 0]])
    background = rng.permutation(background)[: int(count * o.background_share) + LEAST_BACKGROUND]
    places = np.concatenate([true + off, picked.places[hit], background])
    labels = np.concatenate(
        [volume.labels, picked.labels[hit], np.zeros(len(background), np.int64)]
    )
    inside = ((places > -0.5) & (places < shape - 0.5)).all(1)
    return Candidates(places[inside], labels[inside].astype(np.int64))


def cut_boxes(
    volume: TrainingVolume, candidates: Candidates, edge: int,
    rng: np.random.Generator | None = None,
) -> Boxes:  # fmt: skip
    """Boxes cut as the extract stage does; with `rng` turned over, and their grey values changed,
    at random."""
    values, places = volume.volume, candidates.places
    patches = cut_patches(values, places, box_vox=edge, fill=volume_mean(values))
    found = np.empty((len(places), edge, edge, edge), np.float16)
    for k, patch in enumerate(patches):
        if rng is None:
            found[k] = patch.values
        else:
            (turned,) = random_flip(rng, patch.values)
            found[k] = random_intensity(rng, np.ascontiguousarray(turned))
    return Boxes(found, candidates.labels)


def chunk(source: Source, options: SubtomogramOptions, number: int) -> Boxes:
    """Shuffled boxes of the tomograms of one chunk; the same number gives the same boxes."""
    o = options
    rng = np.random.default_rng([o.seed, number, 7])
    parts = []
    for k in range(o.chunk_volumes):  # one at a time, as those of folders are large
        (volume,) = source.volumes(number * o.chunk_volumes + k, 1)
        picked = picked_candidates(volume, o, rng)
        for _ in range(o.views_per_particle):
            candidates = candidates_of(volume, picked, o, rng)
            parts.append(cut_boxes(volume, candidates, o.box_vox, rng))
    return _joined(parts, rng.permutation(sum(len(part.labels) for part in parts)))


def _joined(parts: list[Boxes], order: NDArray[np.int64] | slice = slice(None)) -> Boxes:
    values = np.concatenate([part.values for part in parts])
    return Boxes(values[order], np.concatenate([part.labels for part in parts])[order])


class SubtomogramRecipe:
    """Batches, loss and validation figures; see the module's text."""

    def __init__(self, source: Source, classes: int, options: SubtomogramOptions) -> None:
        self.source, self.classes, self.options = source, classes, options
        self._held_out: Boxes | None = None

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.options.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of an epoch's own tomograms, made by other processes meanwhile.

        What dropout leaves out follows from the epoch too, so that a resumed training is exact.
        """
        o = self.options
        torch.manual_seed(o.seed * 1_000_003 + epoch)
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
        o = self.options
        return logits_of(network, volume, device=o.device, precision=o.precision)

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
            o, parts = self.options, []
            rng = np.random.default_rng([o.seed, 11])
            for volume in self.source.validation(o.validation_volumes):
                picked = picked_candidates(volume, o, rng)
                parts.append(cut_boxes(volume, candidates_of(volume, picked, o, rng), o.box_vox))
            self._held_out = _joined(parts)
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
