"""Weighted back-projection of a tilt series.

Each image is multiplied by `ramp_filter` along u, across the tilt axis, and smeared back along its
(nominal) direction: `V(z, y, x) = pi / n sum_t I_t(u_t(z, x), y)`, shared between pixels as in the
projection. Between the last tilt and the beam nothing is measured: the missing wedge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse


def ramp_filter(n: int, cutoff: float = 0.35, falloff: float = 0.05) -> NDArray[np.float32]:
    """Ramp on the `rfft` grid of `n` samples, with a Gaussian falloff beyond `cutoff`.

    Frequencies in cycles a pixel; the defaults are those of IMOD's `tilt` (RADIAL 0.35 0.05).
    """
    frequency = fft.rfftfreq(n)
    ramp = np.maximum(frequency, 0.2 / n)
    beyond = np.maximum(frequency - cutoff, 0) / falloff
    return np.asarray(np.minimum(ramp, cutoff) * np.exp(-0.5 * beyond**2), np.float32)


def back_project(
    matrix: sparse.csc_matrix,
    images: NDArray[np.float32],
    depth: int,
    *,
    cutoff: float = 0.35,
    falloff: float = 0.05,
) -> NDArray[np.float32]:
    """Volume `(depth, ny, nx)` from images `(t, nx, ny)`; `matrix` from `projection_matrix`.

    Images are extended by their edge before filtering, so that the ends leave no bright rim.
    """
    n, nx, ny = images.shape
    pad = nx // 2
    wide = np.pad(images, ((0, 0), (pad, pad), (0, 0)), mode="edge")
    spectrum = fft.rfft(wide, axis=1) * ramp_filter(wide.shape[1], cutoff, falloff)[None, :, None]
    filtered = fft.irfft(spectrum, n=wide.shape[1], axis=1)[:, pad : pad + nx]
    flat = np.ascontiguousarray(filtered.reshape(n * nx, ny), np.float32)
    volume = np.asarray(matrix.T @ flat, np.float32).reshape(depth, nx, ny)
    return np.ascontiguousarray(volume.transpose(0, 2, 1)) * np.float32(np.pi / n)
