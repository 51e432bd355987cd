"""Overlapping windows of a volume: their plan, and how their results are put together again.

All boxes are half-open and zyx. A window's `read` box is what the network sees; its `keep` box is
what the merge takes from it. At the volume's own faces there is no halo: the network pads with
zeros there exactly as it does in the untiled volume, so a tiled result equals the untiled one
wherever the halo reaches as far as the network looks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import Tile, TilePlan
from tomoline.errors import InputError
from tomoline.ops.morphology import components

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Span = tuple[int, int, int, int]  # read_start, read_stop, keep_start, keep_stop
# Windows along an axis, at most.
MOST_CUTS = 128
# A window's probabilities (its read box); anything that can be cut by slices, such as HDF5 data.
Windows = Callable[[Tile], Any]


@dataclass(frozen=True, kw_only=True)
class MergeCounts:
    """What `merge_windows` did: voxels above the threshold and what was taken out again."""

    foreground_vox: int
    removed_vox: int
    removed_components: int


def plan_tiles(shape_zyx: Shape, *, size_vox: int | Shape, halo_vox: int) -> TilePlan:
    """Cut a volume into as few windows as fit, all of nearly the same size.

    Parameters
    ----------
    shape_zyx:
        Voxels of the volume.
    size_vox:
        Largest edge of a read box, of all axes or of each.
    halo_vox:
        Rim that is read beyond the keep box, clipped to the volume.

    Raises
    ------
    InputError
        If `2 * halo_vox >= size_vox` on an axis that has to be cut.
    """
    sizes = (size_vox,) * 3 if isinstance(size_vox, int) else size_vox
    if min(shape_zyx) < 1 or min(sizes) < 1 or halo_vox < 0:
        raise InputError(
            "tiling", expected="a volume and a window of at least one voxel, and a halo of 0 or "
            "more", found=f"shape {shape_zyx}, size_vox {size_vox}, halo_vox {halo_vox}",
            remedy="correct tiling.size_vox or tiling.halo_vox",
        )  # fmt: skip
    for n, size in zip(shape_zyx, sizes, strict=True):
        if n > size and 2 * halo_vox >= size:
            raise InputError(
                "tiling.halo_vox", expected=f"less than half of the window's edge of {size} voxels",
                found=f"{halo_vox}, so that nothing of a window would be kept",
                remedy="choose larger windows (tiling.size_vox) or a smaller halo",
            )  # fmt: skip
    axes = [_spans(n, size, halo_vox) for n, size in zip(shape_zyx, sizes, strict=True)]
    tiles = []
    for index, (z, y, x) in enumerate(itertools.product(*axes)):
        tiles.append(
            Tile(
                index=index,
                read_start=(z[0], y[0], x[0]),
                read_stop=(z[1], y[1], x[1]),
                keep_start=(z[2], y[2], x[2]),
                keep_stop=(z[3], y[3], x[3]),
            )
        )
    return TilePlan(shape_zyx=shape_zyx, size_vox=max(sizes), halo_vox=halo_vox, tiles=tuple(tiles))


def cost(plan: TilePlan) -> float:
    """How many voxels are computed for each one that is kept."""
    edges = [(np.subtract(t.read_stop, t.read_start)).prod() for t in plan.tiles]
    return float(sum(edges)) / math.prod(plan.shape_zyx)


def _spans(n: int, size: int, halo: int) -> list[Span]:
    """Cut one axis of `n` voxels."""
    if n <= size:
        return [(0, n, 0, n)]
    # Of k windows the outer two have one inner face and the others two, so together they keep
    # k * size - 2 * halo * (k - 1) voxels.
    count = math.ceil((n - 2 * halo) / (size - 2 * halo))
    edge = math.ceil((n + 2 * halo * (count - 1)) / count)
    keeps = [edge - halo, *[edge - 2 * halo] * (count - 2), edge - halo]
    # Rounding up leaves fewer than `count` voxels too many; the outer windows keep most, so they
    # give first.
    for give in [0, count - 1, *range(1, count - 1)][: sum(keeps) - n]:
        keeps[give] -= 1
    stops = list(itertools.accumulate(keeps))
    return [
        (max(0, stop - keep - halo), min(n, stop + halo), stop - keep, stop)
        for keep, stop in zip(keeps, stops, strict=True)
    ]


def choose_windows(shape: Shape, *, most_vox: int, halo: int) -> Shape | None:
    """Edges of the windows that read the fewest voxels in all, of those that are small enough.

    Each further cut of an axis of n voxels reads `2 * halo` voxels more along it, so that windows
    are best left whole along short axes.

    Parameters
    ----------
    shape:
        The volume, zyx.
    most_vox:
        Voxels of a window at most.
    halo:
        The halo the plan is going to have.

    Returns
    -------
    Edges (zyx), or None where no window with this halo is small enough.
    """
    edges, reads = [], []
    for n in shape:
        counts = np.arange(1, min(n, MOST_CUTS) + 1)
        edge = np.where(counts == 1, n, -(-(n + 2 * halo * (counts - 1)) // counts))
        keep = (counts == 1) | (edge > 2 * halo)
        edges.append(edge[keep])
        reads.append((n + 2 * halo * (counts - 1))[keep])
    window = np.multiply.outer(np.multiply.outer(edges[0], edges[1]), edges[2])
    total = np.multiply.outer(np.multiply.outer(reads[0], reads[1]), reads[2]).astype(float)
    total[window > most_vox] = np.inf
    best = np.unravel_index(int(total.argmin()), total.shape)
    if not np.isfinite(total[best]):
        return None
    z, y, x = (int(axis[k]) for axis, k in zip(edges, best, strict=True))
    return z, y, x


def box(start: Shape, stop: Shape, *, origin: Shape = (0, 0, 0)) -> Box:
    """Slices of a half-open box, relative to `origin`."""
    z, y, x = (slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
    return z, y, x


def merge_windows(
    plan: TilePlan,
    windows: Windows,
    *,
    probability: NDArray[Any],
    mask: NDArray[Any],
    threshold: float,
    mask_cut: bool,
) -> MergeCounts:
    """Paste the keep boxes into `probability` and threshold them into `mask` (0 or 1).

    Both outputs are `plan.shape_zyx` and may be memory-mapped: one window is held at a time.

    `mask_cut` is METHODS' rule on components that touch a window's cut face, for halos shorter
    than the network's reach (with a longer one, every kept voxel is what the untiled volume gives,
    and there is nothing to take out). A component of a read box that touches a face where the
    volume goes on is incomplete. Its continuation beyond the keep box is compared with what the
    neighbours keep there. If they have less than half of it, the component is an artefact of the
    cut: those of its voxels that other windows read too, and none of them marks, are taken out.
    What any other window also marks stays, and so does what no other window reads; so neither a
    particle that a neighbour holds whole nor one longer than every window is lost.
    """
    for tile in plan.tiles:
        data = windows(tile)
        _check_window(tile, data.shape)
        keep = box(tile.keep_start, tile.keep_stop)
        kept = np.asarray(data[box(tile.keep_start, tile.keep_stop, origin=tile.read_start)])
        probability[keep] = kept
        mask[keep] = kept >= threshold
    voxels, parts = 0, 0
    if mask_cut and len(plan.tiles) > 1:
        artefacts = [_artefacts(tile, plan, windows, mask, threshold) for tile in plan.tiles]
        for found, number in artefacts:
            mask[found[:, 0], found[:, 1], found[:, 2]] = 0
            voxels, parts = voxels + len(found), parts + number
    foreground = sum(int(np.count_nonzero(section)) for section in mask)
    return MergeCounts(foreground_vox=foreground, removed_vox=voxels, removed_components=parts)


def _check_window(tile: Tile, shape: Shape) -> None:
    wanted = tuple(b - a for a, b in zip(tile.read_start, tile.read_stop, strict=True))
    if tuple(shape) != wanted:
        raise InputError(
            f"window {tile.index}", expected=f"probabilities of shape {wanted}, its read box",
            found=f"shape {tuple(shape)}", remedy="remove the segment shards and run again",
        )  # fmt: skip


def _artefacts(
    tile: Tile, plan: TilePlan, windows: Windows, mask: NDArray[Any], threshold: float
) -> tuple[NDArray[np.int64], int]:
    """Voxels `(n, 3)` of the volume to take out of this window's keep box, and of how many parts.

    `mask` is the merged one before anything was taken out.
    """
    binary = np.asarray(windows(tile)[...]) >= threshold
    labels = components(binary)
    keep = box(tile.keep_start, tile.keep_stop, origin=tile.read_start)
    touching = np.intersect1d(_cut_labels(labels, tile, plan.shape_zyx), labels[keep])
    none = np.empty((0, 3), np.int64)
    if touching.size == 0:
        return none, 0
    merged = np.asarray(mask[box(tile.read_start, tile.read_stop)]) > 0
    outside = np.ones(labels.shape, bool)
    outside[keep] = False
    seen = np.bincount(labels[outside])
    agreed = np.bincount(labels[outside & merged], minlength=len(seen))
    # Without a halo a component has nothing outside, and no neighbour can speak against it.
    false = [int(i) for i in touching if i < len(seen) and 2 * agreed[i] < seen[i]]
    if not false:
        return none, 0
    inside = np.zeros(labels.shape, bool)
    inside[keep] = True
    doubtful = inside & np.isin(labels, false)
    doubtful &= ~_seconded(tile, plan, windows, threshold, binary.shape)
    removed = np.unique(labels[doubtful]).size
    return np.argwhere(doubtful) + np.asarray(tile.read_start), int(removed)


def _cut_labels(labels: NDArray[Any], tile: Tile, shape: Shape) -> NDArray[Any]:
    """Components that touch a face of the read box beyond which the volume goes on."""
    faces = []
    for axis in range(3):
        if tile.read_start[axis] > 0:
            faces.append(labels.take(0, axis).ravel())
        if tile.read_stop[axis] < shape[axis]:
            faces.append(labels.take(-1, axis).ravel())
    found: NDArray[Any] = np.unique(np.concatenate([[0], *faces]))
    return found[found > 0]


def _seconded(
    tile: Tile, plan: TilePlan, windows: Windows, threshold: float, shape: Shape
) -> NDArray[np.bool_]:
    """Where, in this window's read box, no other window reads or one that does marks the voxel."""
    read, marked = np.zeros(shape, bool), np.zeros(shape, bool)
    for other in plan.tiles:
        start = tuple(map(max, tile.read_start, other.read_start))
        stop = tuple(map(min, tile.read_stop, other.read_stop))
        if other.index == tile.index or any(a >= b for a, b in zip(start, stop, strict=True)):
            continue
        z, y, x = start
        there = box((z, y, x), (stop[0], stop[1], stop[2]), origin=other.read_start)
        here = box((z, y, x), (stop[0], stop[1], stop[2]), origin=tile.read_start)
        read[here] = True
        marked[here] |= np.asarray(windows(other)[there]) >= threshold
    return ~read | marked
