"""Numbers that say what kind of volume a network was shown, and what it made of it.

A model's card keeps the range of each over tomograms like those it was trained on; those of a new
tomogram are compared with it (`tomoline.evaluation.domain`). Arrays are zyx, in prepared voxels
(mean 0, SD 1, particles dark); frequencies are in cycles a voxel.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

SPECTRUM_EDGES = np.linspace(0.02, 0.5, 13)
SPECTRUM = tuple(f"spectrum_{k:02d}" for k in range(1, 13))
LEAST_LOG = -6.0
# Cubes of this edge at up to so many places along an axis: seconds, however large the volume.
_CUBE_VOX = 64
_PLACES = 3
# Particles of 70 to 300 A at the models' 10 A lie between these Gaussians.
_FINE_VOX, _COARSE_VOX = 2.0, 8.0
# No tilt series reaches 75 degrees; at 45 every one has measured.
_WEDGE_DEG, _SEEN_DEG = 15.0, 45.0
_UNSURE = (0.2, 0.8)
# Of fewer candidates a median says little.
LEAST_CANDIDATES = 10


def grey_statistics(volume: NDArray[Any]) -> dict[str, float]:
    """Measure a prepared volume `(Z, Y, X)`; it may be memory-mapped.

    Returns
    -------
    dict
        `skewness` of the volume between the sizes of particles (negative where they are dark);
        `wedge`, log10 of the power where no tilt series measures (within 15 degrees of z in the
        plane of z and x) over that where every one does; `spectrum_01` to `spectrum_12`, log10 of
        the share of each band of |f| from 0.02 to 0.5 in the sum of the bands' mean powers.
        Means over cubes of 64 voxels.
    """
    starts = [_starts(length) for length in volume.shape]
    edges = tuple(min(_CUBE_VOX, length) for length in volume.shape)
    grid = _Grid(edges)
    power = np.zeros(grid.radius.shape)
    moments = np.zeros(3)
    for start in itertools.product(*starts):
        box = tuple(slice(a, a + n) for a, n in zip(start, edges, strict=True))
        cube = np.asarray(volume[box], np.float32)
        cube = (cube - cube.mean(dtype=np.float64)).astype(np.float32)
        power += np.square(np.abs(fft.rfftn(cube * grid.window)))
        band = fft.irfftn(fft.rfftn(cube) * grid.band_pass, s=edges).astype(np.float64)
        moments += [np.mean(band**k) for k in (1, 2, 3)]
    return _spectrum(power, grid) | {"skewness": _skewness(moments / _count(starts))}


def probability_statistics(counts: NDArray[Any], threshold: float) -> dict[str, float]:
    """Measure the localizer's probabilities by the number of voxels `(256,)` at each byte.

    Returns
    -------
    dict
        `marked_share`, voxels that reach the threshold over all; `unsure_share`, voxels between
        0.2 and 0.8 over all that reach 0.2 (0 where none does); `p_50`, `p_90`, `p_99`, `p_999`,
        the probability that so many per cent (per mille) of the voxels do not exceed.
    """
    levels, total = np.arange(256) / 255, max(1.0, float(counts.sum()))
    raised = float(counts[levels >= _UNSURE[0]].sum())
    unsure = float(counts[(levels >= _UNSURE[0]) & (levels <= _UNSURE[1])].sum())
    below = np.cumsum(counts) / total
    shares = {"p_50": 0.5, "p_90": 0.9, "p_99": 0.99, "p_999": 0.999}
    quantiles = {
        name: float(levels[min(255, int(np.searchsorted(below, share)))])
        for name, share in shares.items()
    }
    marked = float(counts[levels >= threshold - 0.5 / 255].sum()) / total
    return {"marked_share": marked, "unsure_share": unsure / raised if raised else 0.0} | quantiles


def byte_counts(probability: NDArray[Any]) -> NDArray[np.int64]:
    """Count the voxels at each 1/255 of probability `(Z, Y, X)`, a section at a time."""
    counts = np.zeros(256, np.int64)
    for section in probability:
        levels = np.rint(np.clip(section, 0, 1) * 255).astype(np.uint8)
        counts += np.bincount(levels.ravel(), minlength=256)
    return counts


def candidate_statistics(
    score: NDArray[np.float64], size_vox: NDArray[Any], volume_vox: int
) -> dict[str, float]:
    """Measure the accepted candidates `(n,)` of a volume of so many voxels.

    Returns
    -------
    dict
        `candidates` and `candidates_per_million_vox`; of 10 candidates or more also the quantiles
        `score_10`, `score_50`, `size_50` and `size_90`.
    """
    n = len(score)
    found = {"candidates": float(n), "candidates_per_million_vox": 1e6 * n / max(1, volume_vox)}
    if n >= LEAST_CANDIDATES:
        found |= {f"score_{q}": float(np.percentile(score, q)) for q in (10, 50)}
        found |= {f"size_{q}": float(np.percentile(size_vox, q)) for q in (50, 90)}
    return found


class _Grid:
    """What all cubes share: frequencies of `rfftn`, window, band-pass."""

    def __init__(self, edges: tuple[int, ...]) -> None:
        fz, fy = (fft.fftfreq(n).astype(np.float32) for n in edges[:2])
        fx = fft.rfftfreq(edges[2]).astype(np.float32)
        square = fz[:, None, None] ** 2 + fy[:, None] ** 2 + fx**2
        self.radius = np.sqrt(square)
        bend = -2 * np.pi**2 * square
        self.band_pass = np.exp(bend * _FINE_VOX**2) - np.exp(bend * _COARSE_VOX**2)
        hann = [np.hanning(n + 2)[1:-1].astype(np.float32) for n in edges]
        self.window = hann[0][:, None, None] * hann[1][:, None] * hann[2]
        # One half of the transform stands for both, but for the planes x = 0 and x = Nyquist.
        self.weight = np.full(len(fx), 2.0)
        self.weight[0] = 1.0
        if edges[2] % 2 == 0:
            self.weight[-1] = 1.0
        angle = np.rad2deg(np.arctan2(fx, np.abs(fz)[:, None, None]))
        angle = np.broadcast_to(angle, square.shape)  # from z, in the plane of z and x
        tilted = np.broadcast_to(np.sqrt(fz[:, None, None] ** 2 + fx**2), square.shape)
        clear = (tilted > 0.08) & (self.radius < 0.25)
        self.wedge = clear & (angle < _WEDGE_DEG)
        self.seen = clear & (angle > _SEEN_DEG)


def _spectrum(power: NDArray[np.float64], grid: _Grid) -> dict[str, float]:
    weights = np.broadcast_to(grid.weight, power.shape)
    which = np.digitize(grid.radius, SPECTRUM_EDGES).ravel()
    sums = np.bincount(which, (power * weights).ravel(), minlength=14)[1:13]
    numbers = np.bincount(which, weights.ravel(), minlength=14)[1:13]
    means = sums / np.maximum(numbers, 1)
    total = float(means.sum()) or 1.0
    shares = {name: _log(mean / total) for name, mean in zip(SPECTRUM, means, strict=True)}
    missing, seen = (
        float((power * weights)[part].sum()) / max(float(weights[part].sum()), 1.0)
        for part in (grid.wedge, grid.seen)
    )
    return {"wedge": _log(missing / seen) if seen > 0 else 0.0} | shares


def _log(value: float) -> float:
    return float(np.log10(max(value, 10**LEAST_LOG)))


def _skewness(moments: NDArray[np.float64]) -> float:
    mean, square, cube = moments
    variance = square - mean**2
    if variance <= 1e-12:
        return 0.0
    return float((cube - 3 * mean * square + 2 * mean**3) / variance**1.5)


def _starts(length: int) -> list[int]:
    """First voxels of the cubes along an axis: spread over it, few enough to overlap little."""
    room = max(0, length - _CUBE_VOX)
    count = min(_PLACES, 1 + -(-room // _CUBE_VOX))
    return [round(room * k / max(1, count - 1)) for k in range(count)] if count > 1 else [room // 2]


def _count(starts: list[list[int]]) -> int:
    return int(np.prod([len(places) for places in starts]))
