"""How far a candidate's density stands out of its own tomogram's noise.

A network that has learnt to see particles at every signal-to-noise ratio also sees them in the
noise of a clear tomogram, where they would be far darker if they were any: it looks at a window
and does not know the tomogram. This number does. Volumes are zyx, in prepared voxels (particles
dark).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tomoline.ops.patches import cut_patches

Floats = NDArray[np.float64]
# Density counts less its surroundings: a difference of Gaussians, for particles at 10 A a voxel.
SIGMA_VOX, SURROUNDINGS_VOX = 1.5, 4.0
REACH_VOX = 2  # the darkest place this near to the centre counts, in each direction
_CUT = 3  # standard deviations of a Gaussian that are summed
_WIDTH = int(_CUT * SURROUNDINGS_VOX)
_BACKGROUND = 4096  # places by which the noise is measured
_APART_VOX, _LEAST_SHARE = 9.0, 0.1
_ONE_SD = 15.87  # per cent of a normal distribution lie more than one SD below its median


def contrasts(volume: NDArray[Any], centres_zyx: Floats) -> Floats:
    """Density at centres `(n, 3)`, in standard deviations of the tomogram's own noise `(n,)`.

    Density is the volume under a Gaussian of 1.5 voxels less that under one of 4, taken at the
    darkest of the 5 x 5 x 5 voxels about the centre. The noise is that of the same difference at
    places spread over the volume, none of them within 9 voxels of a centre where there are enough
    (so that crowding does not count as noise): its median, and the distance to the quantile that
    lies one SD to the *bright* side, where there are no particles. Of noise alone the darkest of
    125 neighbours is at about 2.

    `volume` `(Z, Y, X)` may be memory-mapped; only the voxels about the places are read.
    """
    noise = -_filtered(volume, _between(_spread(volume.shape), centres_zyx), 0, fill=0.0)
    middle, bright = np.percentile(noise, (50, _ONE_SD))
    if not middle > bright:  # a constant volume
        return np.zeros(len(centres_zyx))
    dark = -_filtered(volume, centres_zyx, REACH_VOX, fill=_middle_grey(volume))
    found: Floats = (dark.max(axis=(1, 2, 3)) - middle) / (middle - bright)
    return found


def _filtered(volume: NDArray[Any], places: Floats, reach: int, *, fill: float) -> Floats:
    """Difference of Gaussians, `(n, m, m, m)` for the `m = 2 reach + 1` voxels about each place."""
    count, edge = 2 * reach + 1, 2 * (reach + _WIDTH) + 1
    narrow, wide = (_bells(sigma, count) for sigma in (SIGMA_VOX, SURROUNDINGS_VOX))
    found = np.empty((len(places), count, count, count))
    # Odd boxes: the rounded centre is in the middle.
    patches = cut_patches(volume, np.round(places), box_vox=edge, fill=fill)
    for k, patch in enumerate(patches):
        found[k] = _under(patch.values, narrow) - _under(patch.values, wide)
    return found


def _bells(sigma: float, count: int) -> NDArray[np.float32]:
    """A Gaussian's weights at each of `count` neighbouring places `(count, voxels)`."""
    offsets = np.arange(-_WIDTH, _WIDTH + 1)
    bell = np.exp(-0.5 * (offsets / sigma) ** 2)
    rows = np.zeros((count, len(bell) + count - 1), np.float32)
    for k in range(count):
        rows[k, k : k + len(bell)] = bell / bell.sum()
    return rows


def _under(values: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted sums of a box along each of its axes."""
    for _ in range(3):  # each product moves its axis to the end
        values = np.tensordot(values, rows, (0, 1))
    return values


def _middle_grey(volume: NDArray[Any]) -> float:
    """A grey value for what lies outside: the median of places all over the volume."""
    z, y, x = _spread(volume.shape).astype(int).T
    return float(np.median(volume[z, y, x]))


def _between(places: Floats, centres_zyx: Floats) -> Floats:
    """The places `(n, 3)` that are not near a centre; of crowded volumes the farthest tenth."""
    if not len(centres_zyx):
        return places
    distance: Floats = cKDTree(centres_zyx).query(places)[0]
    found: Floats = places[distance >= min(_APART_VOX, np.quantile(distance, 1 - _LEAST_SHARE))]
    return found


def _spread(shape: tuple[int, ...]) -> Floats:
    """Places `(n, 3)` all over a volume, the same for the same shape, whole where it is thick."""
    rng = np.random.default_rng(0)
    low = np.minimum(_WIDTH, (np.array(shape) - 1) // 2)
    return rng.integers(low, np.array(shape) - low, (_BACKGROUND, 3)).astype(np.float64)
