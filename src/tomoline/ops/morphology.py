"""Connected components, and binary opening with a ball, a slab of sections at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
_SLAB_VOXELS = 8_000_000


def components(mask: Bits) -> NDArray[np.unsignedinteger[Any]]:
    """Number the 26-connected components of a mask (Z, Y, X) 1..n; 0 elsewhere.

    26, because the marked cores of small particles are so thin that 6-connectivity breaks them at
    their corners, and fragments of one particle are to be one (METHODS.md).
    """
    found = cc3d.connected_components(mask.astype(np.uint8), connectivity=26, binary_image=True)
    return np.asarray(found)


def ball(radius_vox: float, ndim: int = 3) -> Bits:
    """Voxels within `radius_vox` of the middle one, `(2 r + 1,) * ndim`."""
    reach = math.floor(radius_vox)
    steps = np.arange(-reach, reach + 1) ** 2
    squares = sum(np.meshgrid(*[steps] * ndim, indexing="ij"))
    return np.asarray(squares <= radius_vox**2)


def open_mask(mask: NDArray[Any], radius_vox: int) -> None:
    """Open `mask` (Z, Y, X), 0 or 1 and perhaps memory-mapped, in place.

    Equals `scipy.ndimage.binary_opening(mask, ball(radius_vox))`: what lies outside the volume is
    background. Slabs overlap by twice the radius, as far as an opening looks.
    """
    if radius_vox == 0:
        return
    reach = 2 * radius_vox
    step = max(reach, _SLAB_VOXELS // max(1, mask[0].size)) if len(mask) else 1
    before = np.zeros((0, *mask.shape[1:]), bool)  # unopened sections below the slab
    for start in range(0, len(mask), step):
        stop = min(len(mask), start + step)
        slab = np.concatenate([before, np.asarray(mask[start : stop + reach]) > 0])
        opened = binary_opening(slab, radius_vox)
        mask[start:stop] = opened[len(before) : len(before) + stop - start]
        before = slab[: len(before) + stop - start][-reach:]


def binary_opening(mask: Bits, radius_vox: int) -> Bits:
    """Erode and then dilate an n-dimensional mask with a ball; radius 0 is the identity."""
    if radius_vox == 0:
        return mask.copy()
    if not mask.any():
        return np.zeros_like(mask)
    eroded = _sweep(mask, radius_vox, np.logical_and, start=True)
    return _sweep(eroded, radius_vox, np.logical_or, start=False)


def _sweep(mask: Bits, radius: int, combine: Callable[..., Any], *, start: bool) -> Bits:
    """Erosion (`and`) or dilation (`or`): the ball is the union of its rows along the last axis.

    Rows of equal length share one run along the last axis, so a voxel costs as many steps as the
    ball has rows, not as it has voxels.
    """
    padded = np.pad(mask, radius)
    result = np.full(mask.shape, start)
    runs = {half: run for half, run in _runs(padded, radius, combine)}
    for offset in itertools.product(range(-radius, radius + 1), repeat=mask.ndim - 1):
        rest = radius**2 - sum(step * step for step in offset)
        if rest >= 0:
            shifted = [slice(radius + s, radius + s + n)
                       for s, n in zip(offset, mask.shape, strict=False)]  # fmt: skip
            shifted.append(slice(radius, radius + mask.shape[-1]))
            combine(result, runs[math.isqrt(rest)][tuple(shifted)], out=result)
    return result


def _runs(padded: Bits, radius: int, combine: Callable[..., Any]) -> Iterator[tuple[int, Bits]]:
    """For each half length up to the radius, `padded` combined over that run of the last axis."""
    needed = {math.isqrt(radius**2 - square) for square in _squares(radius, padded.ndim - 1)}
    run = padded.copy()
    for half in range(radius + 1):
        if half:
            # Wrapping round at the ends touches the padding alone.
            combine(run, np.roll(padded, half, -1), out=run)
            combine(run, np.roll(padded, -half, -1), out=run)
        if half in needed:
            yield half, run.copy()


def _squares(radius: int, ndim: int) -> set[int]:
    """Squared distances from the middle of the ball's rows."""
    steps = [step * step for step in range(radius + 1)]
    sums = {sum(parts) for parts in itertools.product(steps, repeat=ndim)}
    return {square for square in sums if square <= radius**2}
