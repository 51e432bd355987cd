"""Grey values on the scale the networks were trained on: background mean 0, SD 1.

Prediction and training call the same functions, so they work in a fixed order of additions and use
numpy only. Volumes may be memory-mapped: everything is done a block of sections at a time, so that
little more than one float32 copy of the volume is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[Any]

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
CLIP_SD = 10.0
SAMPLE_VOXELS = 4_000_000
_BLOCK_VOXELS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and SD of the voxels between the two percentiles; what `normalise` divides by."""

    mean: float
    sd: float


def blocks(volume: Volume, block_voxels: int = _BLOCK_VOXELS) -> Iterator[slice]:
    """Yield slices along the first axis of about `block_voxels` voxels each."""
    per_section = max(1, volume[0].size) if volume.shape[0] else 1
    step = max(1, block_voxels // per_section)
    for start in range(0, volume.shape[0], step):
        yield slice(start, min(start + step, volume.shape[0]))


def robust_scale(volume: Volume) -> Scale:
    """Return mean and SD of the finite voxels of `volume` (zyx) within percentiles 0.5 to 99.5.

    The percentiles come from every n-th voxel (all of them up to four million); mean and SD are
    sums in double precision over every voxel. A constant volume has SD 0; ValueError if no voxel
    is finite.
    """
    low, high = np.percentile(_sample(volume), (LOW_PERCENT, HIGH_PERCENT))
    # Moments are taken about `low`, which keeps digits where the offset is large (e.g. 32768).
    count, total, squares = 0, 0.0, 0.0
    for part in blocks(volume):
        values = np.asarray(volume[part], np.float64)
        # The percentiles are interpolated; NaN compares false, so it is left out here as well.
        inside = values[(values >= low) & (values <= high)] - low
        count += inside.size
        total += float(inside.sum())
        squares += float(np.square(inside).sum())
    if count == 0:  # both percentiles fall between the same two values
        return Scale(mean=float((low + high) / 2), sd=0.0)
    mean = total / count
    return Scale(mean=mean + float(low), sd=float(np.sqrt(max(0.0, squares / count - mean**2))))


def normalise(volume: Volume, *, invert: bool = False) -> NDArray[np.float32]:
    """Return `volume` (zyx, any real type) less its robust mean, over its robust SD, clipped.

    Values are clipped to +-10 SD. `invert` changes the sign (bright particles become dark). A
    constant volume becomes 0. NaN and infinite voxels become 0 (the mean); `repair` replaces them
    earlier where their share matters. The result is a new float32 array.
    """
    scale = robust_scale(volume)
    return apply_scale(volume, scale, invert=invert)


def apply_scale(
    volume: Volume,
    scale: Scale,
    *,
    invert: bool = False,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return `(volume - mean) / sd` clipped to +-10 as float32; see `normalise`.

    `out` takes the result; it may be `volume` itself where that is no longer needed.
    """
    out = np.empty(volume.shape, np.float32) if out is None else out
    if scale.sd <= 0:
        out.fill(0)
        return out
    factor = (-1.0 if invert else 1.0) / scale.sd
    for part in blocks(volume):
        values = (np.asarray(volume[part], np.float64) - scale.mean) * factor
        np.clip(values, -CLIP_SD, CLIP_SD, out=values)
        np.nan_to_num(values, copy=False, nan=0.0)
        out[part] = values
    return out


def clipped_share(normalised: NDArray[np.float32]) -> float:
    """Return the share of voxels of `normalise`'s result that lie at the clipping value."""
    if normalised.size == 0:
        return 0.0
    hits = sum(int(np.count_nonzero(np.abs(normalised[p]) >= CLIP_SD)) for p in blocks(normalised))
    return hits / normalised.size


def repair(volume: Volume) -> tuple[Volume, float]:
    """Return `volume` with NaN and infinite voxels set to the finite mean, and their share (0..1).

    The given array is returned itself when nothing needs repair; else a copy is. When no voxel is
    finite the share is 1 and the copy is 0 everywhere.
    """
    if not np.issubdtype(volume.dtype, np.floating) or volume.size == 0:
        return volume, 0.0
    bad, total = 0, 0.0
    for part in blocks(volume):
        values = np.ascontiguousarray(volume[part])
        finite = np.isfinite(values)
        bad += int(values.size - np.count_nonzero(finite))
        total += float(np.sum(values, dtype=np.float64, where=finite))
    if bad == 0:
        return volume, 0.0
    mean = total / (volume.size - bad) if bad < volume.size else 0.0
    mended = np.array(volume)
    for part in blocks(mended):
        block = mended[part]
        block[~np.isfinite(block)] = mean
    return mended, bad / volume.size


def _sample(volume: Volume) -> NDArray[np.float64]:
    """Return finite voxels at a fixed spacing, at most about four million, as float64."""
    step = max(1, -(-volume.size // SAMPLE_VOXELS))
    picked, first = [], 0
    for part in blocks(volume):
        flat = np.asarray(volume[part]).reshape(-1)
        picked.append(flat[first::step].astype(np.float64))
        first = (first - flat.size) % step
    values = np.concatenate(picked) if picked else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("the volume has no finite voxel")
    return values
