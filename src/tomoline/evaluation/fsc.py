"""Fourier shell correlation of two maps, and the resolution at which it falls below a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch_fourier_shell_correlation import fourier_shell_correlation

from tomoline.errors import InputError


@dataclass(frozen=True)
class ShellCorrelation:
    """Correlation `(s,)` of each shell, NaN where a map has nothing, by frequency in 1/angstrom."""

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]

    def resolution_angstrom(self, threshold: float = 0.5) -> float | None:
        """Resolution at the first fall below the threshold, interpolated between shells.

        Twice the voxel where it never falls; None where even the coarsest shell lies below.
        """
        good = self.correlation >= threshold
        if len(good) < 2 or not good[1]:
            return None
        below = np.flatnonzero(~good[1:]) + 1
        if not len(below):
            return float(1 / self.frequency[-1])
        k = int(below[0])
        high, low = self.correlation[k - 1], self.correlation[k]
        part = 0.0 if np.isnan(low) else (high - threshold) / (high - low)
        span = self.frequency[k] - self.frequency[k - 1]
        return float(1 / (self.frequency[k - 1] + part * span))


def shell_correlation(
    one: NDArray[np.floating], other: NDArray[np.floating], *, voxel_size_angstrom: float
) -> ShellCorrelation:
    """Correlate two cubes `(n, n, n)`, or pairs of them `(p, n, n, n)` of which the mean is taken.

    Shells run from the mean grey value (frequency 0) to the Nyquist frequency; a shell in which a
    map has nothing counts in no mean.

    Raises
    ------
    InputError
        For maps of different sizes.
    """
    if one.shape != other.shape or len(set(one.shape[-3:])) != 1:
        raise InputError(
            "Fourier shell correlation", expected="two cubes of the same size",
            found=f"{one.shape} and {other.shape}", remedy="cut or pad one to the other's size",
        )  # fmt: skip
    pairs = [torch.from_numpy(np.array(m, np.float64)) for m in (one, other)]
    found = fourier_shell_correlation(*pairs).numpy().reshape(-1, one.shape[-1] // 2 + 1)
    known = np.isfinite(found)
    total = np.where(known, found, 0).sum(0)
    mean = np.divide(total, known.sum(0), out=np.full(len(total), np.nan), where=known.any(0))
    frequency = np.arange(len(mean)) / (one.shape[-1] * voxel_size_angstrom)
    return ShellCorrelation(frequency, mean)
