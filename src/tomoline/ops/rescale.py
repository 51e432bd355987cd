"""Change of voxel size by cropping or padding the Fourier transform, an axis at a time.

The n-dimensional crop is a product of one-dimensional ones, so each axis is transformed by itself
and in blocks: beside input and output only one intermediate copy is held, and never a whole complex
transform. Voxel 0 keeps its centre: per axis `given = prepared * scale`.

Three things make this exact where a plain crop is not. The transform takes an axis for periodic,
so it is first lengthened by its own mirror images, cross-faded, and the two ends do not leak into
each other. A crop can only reach ratios of whole numbers, so the length of that rim is chosen to
meet the wanted scale to about 1e-4; the ratio reached is what is recorded. And the Nyquist term of
an even length is dropped (crop) or halved (pad), which keeps the result real and unshifted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

MIN_RIM = 32
_GOOD_ENOUGH = 1e-4
_TOLERABLE = 5e-4
_LONG_REACH = 1024
_BLOCK_VOXELS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class AxisPlan:
    """How one axis is rescaled: `length` voxels padded to `period`, resampled to `new_period`."""

    length: int
    period: int
    new_period: int
    new_length: int

    @property
    def scale(self) -> float:
        """Given voxels per prepared voxel, exactly."""
        return self.period / self.new_period


def plan_axis(length: int, scale: float) -> AxisPlan:
    """Choose the mirror rim so that `period / new_period` is as near to `scale` as can be.

    `new_length` counts the new voxels whose centre lies within the given volume (whose last voxel
    ends at `length - 0.5`), at least one. Among lengths that are near enough the fastest transform
    wins.
    """
    if length < 1 or not scale > 0:
        raise ValueError(f"length {length} and scale {scale} must be positive")
    error, period, new_period = _best_period(length, scale, reach=max(256, length // 4))
    if error > _TOLERABLE:  # a scale just beside a plain ratio, on a short axis
        _, period, new_period = _best_period(length, scale, reach=_LONG_REACH)
    exact = period / new_period
    # The small allowance keeps a centre that falls on the face (integer scales) on one side.
    new_length = max(1, int(np.floor((length - 0.5) / exact - 1e-6)) + 1)
    return AxisPlan(length=length, period=period, new_period=new_period, new_length=new_length)


def _best_period(length: int, scale: float, *, reach: int) -> tuple[float, int, int]:
    """Return the relative error and the periods before and after, out of `reach` candidates."""
    rim = max(MIN_RIM, int(np.ceil(16 * scale)))
    candidates = []
    for period in range(length + rim, length + rim + reach):
        new_period = max(1, round(period / scale))
        error = abs(period / new_period / scale - 1)
        cost = period * (16 + _largest_factor(period) + _largest_factor(new_period))
        candidates.append((max(error, _GOOD_ENOUGH), cost, period, new_period))
    error, _, period, new_period = min(candidates)
    return error, period, new_period


def rescale(
    volume: NDArray[Any], scale: float
) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """Return `volume` (zyx, real) with voxels `scale` times as large, and the exact scales.

    Scale above 1 makes a smaller volume. Grey values keep their mean and, below the new Nyquist
    frequency, their amplitude. The second value is the scale reached on (z, y, x): the centre of
    new voxel `j` lies at `j * scale` of the given volume. A scale of 1 returns a float32 copy.
    """
    if volume.ndim != 3 or volume.size == 0:
        raise ValueError(f"a volume has three axes and some voxels, not shape {volume.shape}")
    if scale == 1:
        return np.array(volume, np.float32), (1.0, 1.0, 1.0)
    scales = [1.0, 1.0, 1.0]
    result: NDArray[Any] = volume
    # Cropping begins with x, contiguous on disk, so that what follows is smaller; padding ends
    # with it, so that what precedes is.
    for axis in (2, 1, 0) if scale > 1 else (0, 1, 2):
        plan = plan_axis(volume.shape[axis], scale)
        result = rescale_axis(result, plan, axis)
        scales[axis] = plan.scale
    z, y, x = scales
    return result.astype(np.float32, copy=False), (z, y, x)


def rescale_axis(volume: NDArray[Any], plan: AxisPlan, axis: int) -> NDArray[np.float32]:
    """Resample one axis of a zyx volume by a plan; the other axes are left alone."""
    if volume.shape[axis] != plan.length:
        raise ValueError(f"the plan is for {plan.length} voxels, not {volume.shape[axis]}")
    shape = list(volume.shape)
    shape[axis] = plan.new_length
    out = np.empty(shape, np.float32)
    across = 0 if axis != 0 else 1
    lines = max(1, volume.size // (volume.shape[across] * plan.length))
    step = max(1, _BLOCK_VOXELS // (lines * plan.period))
    for start in range(0, volume.shape[across], step):
        window = [slice(None)] * 3
        window[across] = slice(start, start + step)
        block = np.moveaxis(np.asarray(volume[tuple(window)], np.float32), axis, -1)
        out[tuple(window)] = np.moveaxis(_resample(block, plan), -1, axis)
    return out


def _resample(block: NDArray[np.float32], plan: AxisPlan) -> NDArray[np.float32]:
    """Resample the last axis."""
    # Taking the mean off first keeps float32's digits for the variation.
    mean = block.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    padded = _lengthen(block - mean, plan.period)
    spectrum = scipy.fft.rfft(padded, axis=-1)
    kept = (min(plan.period, plan.new_period) - 1) // 2 + 1  # strictly below Nyquist
    new = np.zeros((*spectrum.shape[:-1], plan.new_period // 2 + 1), spectrum.dtype)
    new[..., :kept] = spectrum[..., :kept]
    if plan.new_period > plan.period and plan.period % 2 == 0:
        # One term stood for both +Nyquist and -Nyquist; in the longer transform they are two.
        new[..., plan.period // 2] = spectrum[..., plan.period // 2] / 2
    elif plan.new_period == plan.period:
        new = spectrum
    resampled = scipy.fft.irfft(new, n=plan.new_period, axis=-1)[..., : plan.new_length]
    result: NDArray[np.float32] = resampled * np.float32(plan.new_period / plan.period) + mean
    return result


def _lengthen(block: NDArray[np.float32], period: int) -> NDArray[np.float32]:
    """Append a rim that leads from the mirror image of the end to that of the beginning."""
    length = block.shape[-1]
    rim = period - length
    steps = np.arange(rim)
    after_end = _mirrored(length + steps, length)
    before_start = _mirrored(steps - rim, length)
    # The cross-fade leaves the mirror pure next to the volume (a quarter of the rim each).
    position = np.clip(2 * (steps + 0.5) / rim - 0.5, 0, 1)
    weight = (0.5 - 0.5 * np.cos(np.pi * position)).astype(np.float32)
    blend = block[..., after_end] * (1 - weight) + block[..., before_start] * weight
    return np.concatenate([block, blend], axis=-1)


def _mirrored(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold indices into 0..length-1 as a mirror between voxels does: -1 is 0, -2 is 1."""
    folded = np.mod(index, 2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _largest_factor(number: int) -> int:
    """Largest prime factor; transforms of small ones are fast."""
    largest, factor = 1, 2
    while factor * factor <= number:
        while number % factor == 0:
            largest, number = factor, number // factor
        factor += 1
    return max(largest, number)
