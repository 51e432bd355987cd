"""From a mask to particle centres: connected components, seeds, flat-kernel mean-shift.

METHODS.md, "Merge, opening, clusters" (VP-Detector, section 2.4). Arrays are zyx, coordinates are
0-based voxels of the prepared volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from tomoline.ops.morphology import components

Floats = NDArray[np.float64]

SCORE_SIGMA_VOX = 1.0
_SMOOTHING_REACH = 4  # scipy's Gaussian filter ends at four SDs
_BATCH_VOXELS = 4_000_000
_BLOCK_VOX = 128


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """The marked voxels in array order: where, how probable, in which component (1..n).

    `position` is `(n, 3)`; `probability`, `smoothed` (Gaussian, sigma 1) and `component` `(n,)`.
    """

    position: NDArray[np.int32]
    probability: NDArray[np.float32]
    smoothed: NDArray[np.float32]
    component: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Modes:
    """End points of a mean-shift `(m, 3)`, densest first, with the voxels within the bandwidth."""

    centres: Floats
    counts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Particle candidates in the order of (z, y, x); every array has one row a cluster."""

    centres: Floats
    score: Floats
    mean_probability: Floats
    size_vox: NDArray[np.int64]


def find_clusters(
    mask: NDArray[Any],
    probability: NDArray[Any],
    *,
    bandwidth_vox: float,
    split_above_vox: int | None = None,
    merge_distance_vox: float | None = None,
) -> Clusters:
    """Find the centres of the particles a mask shows.

    Components seed a mean-shift over all marked voxels; each voxel then goes to its nearest end
    point, and the centre is the probability-weighted centroid of the voxels that went to it.

    Parameters
    ----------
    mask, probability:
        `(Z, Y, X)`, may be memory-mapped. Marked is what is above 0.
    bandwidth_vox:
        Radius of the kernel.
    split_above_vox:
        Components larger than this are searched for more than one particle; None: the volume of
        the kernel's ball.
    merge_distance_vox:
        Nearer end points are one particle; None: the bandwidth.
    """
    if split_above_vox is None:
        split_above_vox = round(4 / 3 * math.pi * bandwidth_vox**3)
    solid = np.ascontiguousarray(np.asarray(mask) > 0)
    voxels = gather_foreground(solid, probability)
    if len(voxels.position) == 0:
        none = np.empty(0)
        return Clusters(
            centres=np.empty((0, 3)), score=none, mean_probability=none,
            size_vox=np.empty(0, np.int64),
        )  # fmt: skip
    seeds = find_seeds(solid, voxels, split_above_vox=split_above_vox, bandwidth_vox=bandwidth_vox)
    modes = mean_shift(
        solid, seeds, bandwidth_vox=bandwidth_vox, merge_distance_vox=merge_distance_vox
    )
    return _measure(voxels, modes.centres)


def connected_clusters(mask: NDArray[Any], probability: NDArray[Any]) -> Clusters:
    """The connected components as they are, for comparison with the mean-shift.

    Parameters as of `find_clusters`.
    """
    solid = np.ascontiguousarray(np.asarray(mask) > 0)
    voxels = gather_foreground(solid, probability)
    return _measured(voxels, voxels.component)


def gather_foreground(mask: NDArray[np.bool_], probability: NDArray[Any]) -> Foreground:
    """List the marked voxels; the probability volume is read a slab at a time."""
    labels = components(mask)
    positions, raw, smoothed = [np.empty((0, 3), np.int32)], [np.empty(0, np.float32)], []
    smoothed.append(np.empty(0, np.float32))
    step = max(1, 4 * _BATCH_VOXELS // max(1, mask[0].size))
    for start in range(0, len(mask), step):
        stop = min(len(mask), start + step)
        if not mask[start:stop].any():
            continue
        below = max(0, start - _SMOOTHING_REACH)
        slab = np.asarray(probability[below : stop + _SMOOTHING_REACH], np.float32)
        soft = ndimage.gaussian_filter(
            slab, SCORE_SIGMA_VOX, mode="nearest", truncate=_SMOOTHING_REACH / SCORE_SIGMA_VOX
        )
        inside, rows = mask[start:stop], slice(start - below, stop - below)
        positions.append((np.argwhere(inside) + np.array([start, 0, 0])).astype(np.int32))
        raw.append(slab[rows][inside])
        smoothed.append(soft[rows][inside])
    return Foreground(
        position=np.concatenate(positions),
        probability=np.concatenate(raw),
        smoothed=np.concatenate(smoothed),
        component=labels[mask].astype(np.int64),
    )


def find_seeds(
    mask: NDArray[np.bool_], voxels: Foreground, *, split_above_vox: int, bandwidth_vox: float
) -> Floats:
    """Return where the mean-shift starts, `(n, 3)`, in the order of (z, y, x).

    A component gives its probability-weighted centroid, or, if that lies in a hollow with nothing
    within the bandwidth, its most probable voxel. A component larger than `split_above_vox` gives
    the peaks of its distance transform instead, more than the bandwidth apart, if it has more than
    one: the centroid of two touching balls lies in the neck between them, where a flat kernel is
    in balance and would stay.
    """
    weights = voxels.probability.astype(np.float64)
    centroids = _centroids(voxels.position, weights, voxels.component)[1:]
    hollow = np.flatnonzero(_counts(mask, centroids, bandwidth_vox) == 0)
    if hollow.size:
        ranked = np.lexsort((-voxels.smoothed, voxels.component))
        first = np.searchsorted(voxels.component[ranked], hollow + 1)
        centroids[hollow] = voxels.position[ranked[first]]
    sizes = np.bincount(voxels.component)[1:]
    large = np.flatnonzero(sizes > split_above_vox) + 1
    seeds = [np.delete(centroids, large - 1, axis=0)]
    if large.size:
        peaks, owners = _distance_peaks(mask, voxels, large, bandwidth_vox)
        several = np.bincount(owners, minlength=len(sizes) + 1) > 1
        seeds.append(peaks[several[owners]])
        seeds.append(centroids[large[~several[large]] - 1])
    found = np.concatenate(seeds)
    order: NDArray[np.int64] = np.lexsort(found.T[::-1])
    return found[order]


def mean_shift(
    mask: NDArray[np.bool_],
    seeds: Floats,
    *,
    bandwidth_vox: float,
    merge_distance_vox: float | None = None,
    max_iterations: int = 300,
) -> Modes:
    """Flat-kernel mean-shift of `seeds` `(n, 3)` over the marked voxels of `mask`.

    Every seed moves to the mean of the voxels within the bandwidth until a step is at most a
    thousandth of it. Of end points within `merge_distance_vox` (None: the bandwidth) of each other
    the one with most voxels stays. Equal to `sklearn.cluster.MeanShift(bandwidth, seeds=...)`:
    means of integer positions are exact, so even the digits agree. The voxels near a seed are
    looked up in the mask itself, which needs no tree of millions of points.
    """
    means = np.array(seeds, np.float64).reshape(-1, 3)
    counts = np.zeros(len(means), np.int64)
    moving = np.arange(len(means))
    for _ in range(max_iterations + 1):
        before = means[moving]
        for rows in _batches(len(moving), bandwidth_vox):
            part = moving[rows]
            means[part], counts[part] = _step(mask, means[part], bandwidth_vox)
        far = np.linalg.norm(means[moving] - before, axis=1) > 1e-3 * bandwidth_vox
        moving = moving[far & (counts[moving] > 0)]
        if not moving.size:
            break
    distance = bandwidth_vox if merge_distance_vox is None else merge_distance_vox
    return _distinct(means[counts > 0], counts[counts > 0], distance)


def _edge(bandwidth: float) -> int:
    """Edge of a box that holds the kernel wherever its centre lies within its voxel."""
    return math.ceil(2 * bandwidth) + 2


def _batches(number: int, bandwidth: float) -> Iterator[slice]:
    """Slices of at most as many seeds as keep their boxes within memory."""
    step = max(1, _BATCH_VOXELS // _edge(bandwidth) ** 3)
    for start in range(0, number, step):
        yield slice(start, start + step)


def _counts(mask: NDArray[np.bool_], centres: Floats, bandwidth: float) -> NDArray[np.int64]:
    """Number of marked voxels within `bandwidth` of each centre."""
    found = [_step(mask, centres[rows], bandwidth)[1] for rows in _batches(len(centres), bandwidth)]
    return np.concatenate([np.empty(0, np.int64), *found])


def _step(
    mask: NDArray[np.bool_], means: Floats, bandwidth: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Mean position and number of the marked voxels within `bandwidth` of each of `means`."""
    start = np.floor(means - bandwidth).astype(np.int64)
    grid = start[:, :, None] + np.arange(_edge(bandwidth))  # (n, 3, edge)
    limits = np.array(mask.shape)[:, None]
    square = (grid - means[:, :, None]) ** 2
    square[(grid < 0) | (grid >= limits)] = np.inf
    z, y, x = (np.clip(grid, 0, limits - 1)[:, axis] for axis in range(3))
    near = square[:, 0, :, None, None] + square[:, 1, None, :, None] + square[:, 2, None, None, :]
    inside = near <= bandwidth**2
    inside &= mask[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
    planes = inside.sum(axis=3)
    profiles = (planes.sum(axis=2), planes.sum(axis=1), inside.sum(axis=(1, 2)))
    count = profiles[0].sum(axis=1)
    total = np.stack([(p * grid[:, i]).sum(axis=1) for i, p in enumerate(profiles)], axis=1)
    # A seed with nothing near stays where it is.
    new = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], means)
    return new, count


def _distinct(centres: Floats, counts: NDArray[np.int64], distance: float) -> Modes:
    """Keep the densest of end points that lie within `distance` (ties: the larger z, y, x)."""
    centres, first = np.unique(centres, axis=0, return_index=True)
    counts = counts[first]
    order = np.lexsort((*centres.T[::-1], counts))[::-1]
    centres, counts = centres[order], counts[order]
    keep = np.ones(len(centres), bool)
    if len(centres):
        tree = cKDTree(centres)
        for i in range(len(centres)):
            if keep[i]:
                keep[tree.query_ball_point(centres[i], distance)] = False
                keep[i] = True
    return Modes(centres=centres[keep], counts=counts[keep])


def _distance_peaks(
    mask: NDArray[np.bool_], voxels: Foreground, large: NDArray[np.int64], distance: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Peaks of the distance transform in the components `large`, and the component of each.

    Peaks less deep than half of `distance` are bumps of the surface and count only where a
    component has nothing deeper. Of peaks nearer than `distance` the deepest stays (ties: the more
    probable, then the first).
    """
    chosen = np.isin(voxels.component, large)
    position, component = voxels.position[chosen], voxels.component[chosen]
    smoothed = voxels.smoothed[chosen]
    # Deeper than this a solid mass has no centre to find; seeds are then spread evenly.
    ceiling = max(16.0, 4 * distance)
    depth = np.zeros(len(position), np.float32)
    is_peak = np.zeros(len(position), bool)
    for members, rows, crop in _crops(mask, position, component, math.ceil(ceiling) + 1):
        deep = _depth(crop, ceiling)
        here = tuple(rows.T)
        depth[members] = deep[here]
        is_peak[members] = (ndimage.maximum_filter(deep, 3, mode="constant") == deep)[here]
    deepest = np.zeros(int(component.max()) + 1, np.float32)
    np.maximum.at(deepest, component, depth)
    is_peak &= depth >= np.minimum(distance / 2, deepest[component])
    where = np.flatnonzero(is_peak)
    where = where[np.lexsort((where, -smoothed[where], -depth[where]))]
    where = _first_of_cell(where, position, component, max(1, int(distance / math.sqrt(3))))
    peaks, owners = position[where].astype(np.float64), component[where]
    keep = _apart(peaks, owners, distance)
    return peaks[keep], owners[keep]


def _crops(
    mask: NDArray[np.bool_],
    position: NDArray[np.int32],
    component: NDArray[np.int64],
    margin: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Crops of the mask in which the distances at some of `position` are those of the whole.

    A component that fits into a block is one crop with a rim of one voxel, since its nearest
    unmarked voxel lies no farther out. A larger one is cut into blocks with `margin` round each.
    Yields which positions, their places in the crop, and the crop.
    """
    for members in _groups(component):
        span = np.ptp(position[members], axis=0)
        if (span < _BLOCK_VOX).all():
            yield _crop(mask, position, members, 1)
            continue
        blocks = tuple(-(-n // _BLOCK_VOX) for n in mask.shape)
        block = np.ravel_multi_index(tuple((position[members] // _BLOCK_VOX).T), blocks)
        for part in _groups(block):
            yield _crop(mask, position, members[part], margin)


def _groups(key: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of the elements of each value of `key`."""
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def _crop(
    mask: NDArray[np.bool_], position: NDArray[np.int32], members: NDArray[np.int64], margin: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    low = np.maximum(position[members].min(0) - margin, 0)
    high = np.minimum(position[members].max(0) + margin + 1, mask.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return members, (position[members] - low).astype(np.int64), mask[z, y, x]


def _depth(crop: NDArray[np.bool_], ceiling: float) -> NDArray[np.float32]:
    """Distance of each voxel to the nearest unmarked one, up to `ceiling`."""
    if crop.all():
        return np.full(crop.shape, ceiling, np.float32)
    distance = ndimage.distance_transform_edt(crop)
    return np.asarray(np.minimum(distance, ceiling), np.float32)


def _first_of_cell(
    where: NDArray[np.int64], position: NDArray[np.int32], component: NDArray[np.int64], edge: int
) -> NDArray[np.int64]:
    """Of the ordered voxels `where`, the first in each cell: keeps plateaus of millions cheap."""
    cells = np.column_stack([component[where], position[where] // edge])
    _, first = np.unique(cells, axis=0, return_index=True)
    return where[np.sort(first)]


def _apart(peaks: Floats, owners: NDArray[np.int64], distance: float) -> NDArray[np.bool_]:
    """Which of the ordered peaks stay if each takes away the later ones of its own component."""
    keep = np.ones(len(peaks), bool)
    tree = cKDTree(peaks)
    for i in range(len(peaks)):
        if keep[i]:
            near = np.array(tree.query_ball_point(peaks[i], distance))
            keep[near[(near > i) & (owners[near] == owners[i])]] = False
    return keep


def _centroids(
    position: NDArray[np.int32], weights: Floats, group: NDArray[np.int64], groups: int = 0
) -> Floats:
    """Weighted mean position of each group, `(groups, 3)`; plain where all weights are 0."""
    total = np.bincount(group, weights, groups)
    if (total[np.unique(group)] <= 0).any():
        weights = np.where(total[group] > 0, weights, 1.0)
        total = np.bincount(group, weights, groups)
    sums = [np.bincount(group, weights * position[:, axis], groups) for axis in range(3)]
    return np.asarray(np.stack(sums, axis=1) / np.where(total > 0, total, 1.0)[:, None])


def _measure(voxels: Foreground, centres: Floats) -> Clusters:
    """Give every voxel to its nearest centre and describe what each got."""
    tree = cKDTree(centres)
    owner = np.empty(len(voxels.position), np.int64)
    for start in range(0, len(owner), _BATCH_VOXELS):
        part = slice(start, start + _BATCH_VOXELS)
        owner[part] = tree.query(voxels.position[part])[1]
    return _measured(voxels, owner)


def _measured(voxels: Foreground, owner: NDArray[np.int64]) -> Clusters:
    """Describe clusters of the voxels that have one owner each."""
    # A centre that is nearest to no voxel (in the hollow of a shell that others fill) goes.
    used, owner = np.unique(owner, return_inverse=True)
    n = len(used)
    size = np.bincount(owner, minlength=n)
    weights = voxels.probability.astype(np.float64)
    score = np.zeros(n)
    np.maximum.at(score, owner, voxels.smoothed.astype(np.float64))
    refined = _centroids(voxels.position, weights, owner, n)
    order = np.lexsort(refined.T[::-1])
    return Clusters(
        centres=refined[order],
        score=np.clip(score, 0, 1)[order],
        mean_probability=np.clip(np.bincount(owner, weights, n) / size, 0, 1)[order],
        size_vox=size[order],
    )


def rejection_reasons(
    clusters: Clusters,
    shape: tuple[int, ...],
    *,
    min_size_vox: int = 1,
    max_size_vox: int | None = None,
    min_score: float = 0.0,
    border_vox: float = 0,
) -> list[str]:
    """Say for each cluster why it is not taken for a particle; empty where it is.

    The words hold the limit and not the value, so that a report can count equal reasons.
    """
    size, score = clusters.size_vox, clusters.score
    last = np.array(shape) - 1
    margin = np.minimum(clusters.centres, last - clusters.centres).min(axis=1, initial=np.inf)
    rules = [
        (size < min_size_vox, f"smaller than {min_size_vox} voxels"),
        (score < min_score, f"score below {min_score:g}"),
        (margin < border_vox, f"closer than {border_vox:g} voxels to the border"),
    ]
    if max_size_vox is not None:
        rules.insert(1, (size > max_size_vox, f"larger than {max_size_vox} voxels"))
    return ["; ".join(words for broken, words in rules if broken[i]) for i in range(len(size))]
