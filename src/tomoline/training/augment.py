"""Augmentation that leaves the missing wedge where it is.

The wedge lies about the beam axis z in the (z, x) plane. Flips of any axis and half turns keep it;
a quarter turn about z would move it and is never used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_flip(rng: np.random.Generator, *arrays: NDArray) -> tuple[NDArray, ...]:  # type: ignore[type-arg]
    """Flip all arrays `(z, y, x)` alike along a random set of axes (half turns among them)."""
    axes = tuple(a for a in range(3) if rng.random() < 0.5)
    return tuple(np.flip(a, axes) for a in arrays)


def random_intensity(
    rng: np.random.Generator, volume: NDArray[np.float32], strength: float = 0.1
) -> NDArray[np.float32]:
    """Scale, offset and a little white noise; `strength` is the SD of the first two."""
    scale = np.exp(strength * rng.standard_normal())
    offset = strength * rng.standard_normal()
    noise_sd = strength * rng.random()
    noise = rng.standard_normal(volume.shape, dtype=np.float32)
    return (volume * np.float32(scale) + np.float32(offset) + np.float32(noise_sd) * noise).astype(
        np.float32
    )


def random_crop(
    rng: np.random.Generator, shape: tuple[int, ...], size: int
) -> tuple[slice, slice, slice]:
    """A window of edge `size` (the whole axis where it is shorter)."""
    starts = [int(rng.integers(0, max(n - size, 0) + 1)) for n in shape]
    return tuple(slice(s, s + size) for s in starts)  # type: ignore[return-value]
