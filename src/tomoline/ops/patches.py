"""Boxes cut out of a volume round sub-voxel centres, without interpolation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A cube `(box, box, box)` float32 and where the sub-voxel centre lies in it (zyx)."""

    values: NDArray[np.float32]
    centre_zyx: NDArray[np.float64]


def volume_mean(volume: NDArray[Any]) -> float:
    """Mean of a volume (zyx, may be memory-mapped), summed a section at a time."""
    total = sum(float(np.sum(section, dtype=np.float64)) for section in volume)
    return total / volume.size


def box_starts(centres_zyx: NDArray[np.float64], box_vox: int) -> NDArray[np.int64]:
    """First voxel `(n, 3)` of the boxes: the rounded centre becomes voxel `box_vox // 2`.

    Halves round up, so that equal fractions are cut alike everywhere.
    """
    rounded = np.floor(np.asarray(centres_zyx, np.float64) + 0.5).astype(np.int64)
    return np.asarray(rounded - box_vox // 2)


def cut_patches(
    volume: NDArray[Any], centres_zyx: NDArray[np.float64], *, box_vox: int, fill: float
) -> Iterator[Patch]:
    """Yield the box round each centre `(n, 3)`; what lies outside the volume is `fill`.

    `volume` (Z, Y, X) may be memory-mapped: only the boxes are read.
    """
    centres = np.asarray(centres_zyx, np.float64).reshape(-1, 3)
    for centre, start in zip(centres, box_starts(centres, box_vox), strict=True):
        values = np.full((box_vox,) * 3, fill, np.float32)
        low = np.clip(start, 0, volume.shape)
        high = np.clip(start + box_vox, 0, volume.shape)
        if (high > low).all():
            inside = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            placed = tuple(
                slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True)
            )
            values[placed] = volume[inside]
        yield Patch(values=values, centre_zyx=centre - start)


def centred_in(values: NDArray[Kind], box_vox: int) -> NDArray[Kind]:
    """A cube cut, or filled up with zeros, to an edge: its voxel `n // 2` comes to `box // 2`."""
    out = np.zeros((box_vox,) * 3, values.dtype)
    start = box_vox // 2 - values.shape[0] // 2
    low, high = max(start, 0), min(start + values.shape[0], box_vox)
    into, of = slice(low, high), slice(low - start, high - start)
    out[into, into, into] = values[of, of, of]
    return out
