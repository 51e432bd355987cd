"""Augmentation that leaves the missing wedge where it is.

The wedge lies about the beam axis z in the (z, x) plane. Flips of any axis and half turns keep it;
a quarter turn about z would move it and is never used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

BANDS = 4  # half cosine waves between frequency 0 and Nyquist's
MOST_GAIN = 2.0  # of the logarithm


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


def random_spectrum(
    rng: np.random.Generator, volume: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:
    """Multiply the Fourier transform `(z, y, x)` by a smooth random function of the frequency.

    Other programs' tomograms differ in reconstruction filter, alignment, interpolation and CTF,
    which all change the power spectrum. The logarithm of the gain is a sum of half cosine waves
    whose amplitudes have the SD `strength`, the k-th of them `strength / k`.
    """
    amplitudes = strength * rng.standard_normal(BANDS) / np.arange(1, BANDS + 1)
    axes = [fft.fftfreq(n).astype(np.float32) for n in volume.shape[:2]]
    axes.append(fft.rfftfreq(volume.shape[2]).astype(np.float32))
    square = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    phase = np.pi * np.minimum(np.sqrt(square) / 0.5, 1.0)
    gain = sum(a * np.cos(k * phase) for k, a in enumerate(amplitudes, 1))
    gain = np.exp(np.clip(gain, -MOST_GAIN, MOST_GAIN)).astype(np.float32)
    changed = fft.irfftn(fft.rfftn(volume) * gain, volume.shape)
    return np.asarray(changed, np.float32)
