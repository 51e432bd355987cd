"""A network that names every voxel of a whole tomogram, such as the U-Net of DeepFinder.

Voxels that are probably particle are clustered by the same code as our own line's, either all
together, a cluster's class being its voxels' majority (as DeepFinder does), or each class by
itself, which keeps touching particles of different classes apart. Which, is tuned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import Progress, make_runner
from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.log import get_logger
from tomoline.ops.clusters import find_clusters
from tomoline.ops.picking import thinned
from tomoline.peers.base import SIZES_VOX, Case, Found, Scene, Tuned, best_of, combinations
from tomoline.settings import SegmentSettings

log = get_logger(__name__)

# A window's own part; with a halo of all that the network sees it gives the whole volume's values.
BLOCK_VOX = 96
GRID_VOX = 4  # windows begin at multiples of the network's coarsest voxel
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BANDWIDTHS_VOX = (3.0, 4.0, 5.0, 6.5)
FULL = 255.0


@dataclass(frozen=True, kw_only=True)
class VoxelNetwork:
    """A model (`folder`) with the role of a classifier, run on whole tomograms."""

    folder: Path
    inference: SegmentSettings = field(default_factory=SegmentSettings)

    def respond(self, scene: Scene, response: Path) -> None:
        """Write `probabilities (C, Z, Y, X)` uint8 in 1/255, attribute `classes`."""
        torch.set_num_threads(scene.threads)
        runner = make_runner(self.folder, self.inference)
        if runner.card.role != "classifier":
            raise InputError(
                self.folder, expected="a network that names voxels (role classifier)",
                found=f"a {runner.card.role}", remedy="correct the method's `model`",
            )  # fmt: skip
        volume = open_volume(scene.volume)
        halo = -(-(runner.card.receptive_field_vox // 2) // GRID_VOX) * GRID_VOX
        boxes = list(windows(volume.shape, halo))
        progress = Progress(len(boxes), "window", log)
        with atomic_stream(response) as stream, h5py.File(stream, "w") as file:
            shape = (len(runner.card.classes), *volume.shape)
            data = file.create_dataset("probabilities", shape, np.uint8, track_times=False,
                                       chunks=(1, *(min(n, 32) for n in volume.shape)),
                                       compression="lzf")  # fmt: skip
            data.attrs["classes"] = runner.card.classes
            for read, keep in boxes:
                x = torch.from_numpy(np.array(volume[read], np.float32))[None, None]
                p = runner.class_bytes(x.to(runner.device))[0, 1:].cpu().numpy()
                inner = tuple(
                    slice(k.start - r.start, k.stop - r.start)
                    for k, r in zip(keep, read, strict=True)
                )
                data[(slice(None), *keep)] = p[(slice(None), *inner)]
                stream.check()
                progress.step()

    def tune(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Threshold, bandwidth, least size, and whether classes are clustered apart."""
        tried = combinations(
            by_class=(False, True), threshold=THRESHOLDS, bandwidth_vox=BANDWIDTHS_VOX,
            min_size_vox=SIZES_VOX,
        )  # fmt: skip
        return best_of(cases, tried, lambda k, s: _picks(cases[k].response, s))

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Centres of clusters, with their classes."""
        return _picks(response, tuned)


Box = tuple[slice, ...]


def windows(shape: tuple[int, ...], halo: int) -> Iterator[tuple[Box, Box]]:
    """What is read and what is kept of each window; both zyx."""
    axes = []
    for n in shape:
        size = n if n <= BLOCK_VOX * 4 // 3 else BLOCK_VOX
        keeps = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        axes.append([(slice(max(k.start - halo, 0), min(k.stop + halo, n)), k) for k in keeps])
    for parts in itertools.product(*axes):
        yield tuple(read for read, _ in parts), tuple(keep for _, keep in parts)


@lru_cache(maxsize=4)
def _maps(
    response: Path,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[str, ...]]:
    """Most probable class but the background, probability of any of them, class names."""
    with h5py.File(response, "r") as file:
        data = file["probabilities"]
        names = tuple(str(name) for name in data.attrs["classes"])
        particle = 255 - data[0]
        label = np.ones(particle.shape, np.uint8)
        best = data[1]
        for k in range(2, len(names)):
            values = data[k]
            label[values > best] = k
            np.maximum(best, values, out=best)
    return label, particle, names[1:]


@lru_cache(maxsize=256)
def _clusters(response: Path, by_class: bool, threshold: float, bandwidth: float) -> Any:
    """Centres, scores, sizes and labels of the clusters at these settings."""
    label, particle, names = _maps(response)
    marked = particle >= threshold * FULL
    parts = [(marked & (label == k + 1)) for k in range(len(names))] if by_class else [marked]
    centres, scores, sizes, labels = [np.empty((0, 3))], [], [], []
    for k, mask in enumerate(parts):
        if not mask.any():
            continue
        found = find_clusters(mask, particle / np.float32(FULL), bandwidth_vox=bandwidth)
        centres.append(found.centres)
        scores += list(found.score)
        sizes += list(found.size_vox)
        if by_class:
            labels += [k] * len(found.centres)
        else:
            labels += [_majority(label, mask, centre, bandwidth) for centre in found.centres]
    return np.concatenate(centres), np.array(scores), np.array(sizes), np.array(labels, np.int64)


def _majority(
    label: NDArray[np.uint8], mask: NDArray[np.bool_], centre: NDArray[np.float64], radius: float
) -> int:
    """The commonest class, from 0, of the marked voxels within the radius."""
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius).astype(int) + 1, label.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grids = np.ogrid[box]
    near = sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) <= radius**2
    votes = label[box][near & mask[box]]
    votes = votes if votes.size else label[box].ravel()
    return int(np.bincount(votes).argmax()) - 1


def _picks(response: Path, settings: Tuned) -> Found:
    names = _maps(response)[2]
    bandwidth = float(settings["bandwidth_vox"])
    centres, score, size, label = _clusters(
        response, bool(settings["by_class"]), float(settings["threshold"]), bandwidth
    )
    large = size >= settings["min_size_vox"] if len(size) else np.zeros(0, bool)
    centres, score, size, label = centres[large], score[large], size[large], label[large]
    order = np.argsort(-size, kind="stable")
    kept = order[thinned(centres[order], bandwidth, None)] if len(order) else order
    return Found(
        zyx_vox=centres[kept], score=score[kept], classes=[names[k] for k in label[kept]]
    )  # fmt: skip
