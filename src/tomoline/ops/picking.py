"""A difference-of-Gaussians picker: what can be had without learning, beside every figure.

The volume is blurred at two widths and subtracted, which answers to blobs of one size; local
maxima are the picks (Voss et al., J Struct Biol 2009; Pei et al., BMC Bioinformatics 2016). It
knows no classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

# Narrow widths in voxels of 10 A, and the least distance of two picks: what did best on the two
# tomograms we evaluate on, among widths of 1.5 to 5 and distances of 5 to 8. That flatters the
# picker, which is right for what our own figures must beat.
SCALES_VOX = (2.5, 3.0, 3.5)
DISTANCE_VOX = 8.0
# Voxels that are blurred at a time, at least; how many widths a blur reaches, to a part in 10,000.
SLAB_VOX, REACH = 60_000_000, 4.5
RATIO = 1.6  # of the two widths: the closest to a Laplacian (Marr and Hildreth 1980)


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Centres (n, 3), zyx voxels, best first, with their responses (n,) and the scale used."""

    zyx_vox: NDArray[np.float64]
    score: NDArray[np.float64]
    scale_vox: float


def dog_response(
    volume: NDArray[np.float32], scale_vox: float, *, contrast: str = "dark"
) -> NDArray[np.float32]:
    """Narrow minus wide blur; particles positive whichever contrast they have."""
    narrow: NDArray[np.float32] = gaussian_filter(volume.astype(np.float32, copy=False), scale_vox)
    narrow -= gaussian_filter(volume.astype(np.float32, copy=False), scale_vox * RATIO)
    return np.negative(narrow) if contrast == "dark" else narrow


def peaks(
    response: NDArray[np.float32],
    *,
    distance_vox: float,
    number: int | None = None,
    threshold: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Local maxima no closer than `distance_vox`, best first: the `number` best, or all above
    `threshold`.

    Returns centres (n, 3), refined below a voxel by a parabola a dimension, and responses (n,).
    """
    found = _maxima(response, -np.inf if threshold is None else threshold)
    return _best(found, distance_vox, number)


@dataclass(frozen=True)
class _Maxima:
    """Local maxima in (z, y, x) order: voxels, refined places, responses."""

    voxels: NDArray[np.float64]
    refined: NDArray[np.float64]
    values: NDArray[np.float64]


def _maxima(response: NDArray[np.float32], floor: float) -> _Maxima:
    local = (response == maximum_filter(response, size=3)) & (response > floor)
    zyx = np.argwhere(local)
    return _Maxima(zyx.astype(float), _refined(response, zyx), response[local].astype(float))


def _best(
    found: _Maxima, distance_vox: float, number: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Refined places and responses of those that no better one silences, best first."""
    # Ties in (z, y, x) order, so that equal input gives equal picks.
    order = np.argsort(-found.values, kind="stable")
    chosen = order[thinned(found.voxels[order], distance_vox, number)]
    return found.refined[chosen], found.values[chosen]


def dog_picks(
    volume: NDArray[np.float32],
    scale_vox: float,
    *,
    number: int | None = None,
    threshold: float | None = None,
    contrast: str = "dark",
) -> Picks:
    """Pick at one scale; centres lie at least DISTANCE_VOX apart."""
    response = dog_response(volume, scale_vox, contrast=contrast)
    zyx, score = peaks(response, distance_vox=DISTANCE_VOX, number=number, threshold=threshold)
    return Picks(zyx_vox=zyx, score=score, scale_vox=scale_vox)


def dog_picks_at_scales(
    volume: NDArray[np.float32],
    *,
    number: int,
    scales_vox: Sequence[float] = SCALES_VOX,
    contrast: str = "dark",
) -> list[Picks]:
    """Pick `number` particles at each scale; the caller takes the best by truth.

    That the number is known and the best scale chosen by truth flatters the picker, on purpose.
    The volume may be memory-mapped: it is read in slabs, which overlap by as much as the blur
    reaches.
    """
    margin = math.ceil(REACH * RATIO * max(scales_vox)) + 1
    depth, sections = len(volume), max(4 * margin, SLAB_VOX // math.prod(volume.shape[1:]))
    found: dict[float, list[_Maxima]] = {scale: [] for scale in scales_vox}
    with ThreadPoolExecutor(1) as pool:  # one scale's maxima while the next width is blurred
        for start in range(0, depth, sections):
            low, stop = max(start - margin, 0), min(start + sections, depth)
            slab = np.asarray(volume[low : min(stop + margin, depth)], np.float32)
            jobs = {
                scale: pool.submit(_maxima, response, -np.inf)
                for scale, response in _responses(slab, scales_vox, contrast)
            }
            for scale, job in jobs.items():
                found[scale].append(_within(job.result(), start - low, stop - low, low))
    picks = []
    for scale in scales_vox:
        joined = _Maxima(*(np.concatenate([getattr(part, name) for part in found[scale]])
                           for name in ("voxels", "refined", "values")))  # fmt: skip
        zyx, score = _best(joined, DISTANCE_VOX, number)
        picks.append(Picks(zyx_vox=zyx, score=score, scale_vox=scale))
    return picks


def _within(found: _Maxima, start: int, stop: int, low: int) -> _Maxima:
    """Those of a slab's sections from `start` to `stop`; `low` is where the slab begins."""
    own = (found.voxels[:, 0] >= start) & (found.voxels[:, 0] < stop)
    shift = np.array([low, 0, 0])
    return _Maxima(found.voxels[own] + shift, found.refined[own] + shift, found.values[own])


def _responses(
    volume: NDArray[np.float32], scales_vox: Sequence[float], contrast: str
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """`dog_response` at each scale, in the order in which the wide blurs come."""
    narrow = {}
    for width, blur in _blurred(volume, [w for s in scales_vox for w in (s, s * RATIO)]):
        if width in scales_vox:
            narrow[width] = blur
        for scale in [s for s in scales_vox if s * RATIO == width]:
            response = narrow.pop(scale) - blur
            yield scale, np.negative(response, out=response) if contrast == "dark" else response


def _blurred(
    volume: NDArray[np.float32], widths: Sequence[float]
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Blur at every width, the least first; each from the one before, which needs less room.

    Variances of Gaussians add, and mirrored borders stay mirrored.
    """
    blur, had = np.asarray(volume, np.float32), 0.0
    for width in sorted(set(widths)):
        blur = gaussian_filter(blur, math.sqrt(width**2 - had**2))
        had = width
        yield width, blur


def thinned(zyx: NDArray[np.float64], distance_vox: float, number: int | None) -> list[int]:
    """Indices kept when each centre, best first, silences those nearer than the distance."""
    if not len(zyx):
        return []
    neighbours = cKDTree(zyx)
    silent = np.zeros(len(zyx), dtype=bool)
    kept: list[int] = []
    for n in range(len(zyx)):
        if silent[n]:
            continue
        kept.append(n)
        if number is not None and len(kept) == number:
            break
        silent[neighbours.query_ball_point(zyx[n], distance_vox * (1 - 1e-9))] = True
    return kept if number is None else kept[:number]


def _refined(response: NDArray[np.float32], zyx: NDArray[np.int64]) -> NDArray[np.float64]:
    refined = zyx.astype(float)
    for axis in range(3):
        inner = (zyx[:, axis] > 0) & (zyx[:, axis] < response.shape[axis] - 1)
        at = zyx[inner]
        step = np.eye(3, dtype=int)[axis]
        left, mid, right = (
            response[tuple((at + shift * step).T)].astype(float) for shift in (-1, 0, 1)
        )
        bend = left - 2 * mid + right
        offset = np.divide(0.5 * (left - right), bend, out=np.zeros(len(at)), where=bend < 0)
        refined[inner, axis] += np.clip(offset, -0.5, 0.5)
    return refined
