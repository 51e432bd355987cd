"""How far the particles of a tomogram lie from each other, and in which depth they lie."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tomoline.report import figures, pages

CLOSE = 0.5  # of two particles' mean diameter: nearer ones may be one particle picked twice


def nearest(zyx: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each particle's distance (n,) to the nearest other one; NaN where it is alone."""
    if len(zyx) < 2:
        return np.full(len(zyx), np.nan)
    distances: NDArray[np.float64] = cKDTree(zyx).query(zyx, k=2)[0][:, 1]
    return distances


def expected_counts(edges: NDArray[np.float64], n: int, volume: float) -> NDArray[np.float64]:
    """Return how many of `n` particles, strewn at random, have their nearest in each bin.

    Of points at density r the nearest lies beyond d with probability exp(-4/3 pi r d^3), the
    empty-sphere law of a Poisson process; surfaces are not allowed for.
    """
    if n < 2 or volume <= 0:
        return np.zeros(len(edges) - 1)
    beyond = np.exp(-4 / 3 * math.pi * (n - 1) / volume * edges**3)
    counts: NDArray[np.float64] = n * (beyond[:-1] - beyond[1:])
    return counts


def close_pairs(zyx: NDArray[np.float64], radii: NDArray[np.float64]) -> int:
    """Return how many pairs lie nearer than `CLOSE` of their mean diameter."""
    if len(zyx) < 2:
        return 0
    pairs = cKDTree(zyx).query_pairs(2 * CLOSE * float(radii.max()), output_type="ndarray")
    apart = np.linalg.norm(zyx[pairs[:, 0]] - zyx[pairs[:, 1]], axis=1)
    return int((apart < CLOSE * (radii[pairs[:, 0]] + radii[pairs[:, 1]])).sum())


def neighbours_html(
    zyx: NDArray[np.float64],
    radii: NDArray[np.float64],
    shape_zyx: tuple[int, ...],
    *,
    nm_per_voxel: float,
) -> str:
    """Return the section; empty for fewer than two particles.

    Parameters
    ----------
    zyx, radii:
        Kept particles (n, 3) and the radius (n,) that their marks have, in prepared voxels.
    shape_zyx:
        The prepared volume's shape.
    """
    if len(zyx) < 2:
        return ""
    apart = nearest(zyx) * nm_per_voxel
    most = float(np.percentile(apart, 99)) * 1.15
    edges = np.linspace(0, most, 25)
    chance = expected_counts(edges, len(zyx), math.prod(shape_zyx) * nm_per_voxel**3)
    diameter = 2 * float(np.median(radii)) * nm_per_voxel
    near = close_pairs(zyx, radii)
    charts = [
        pages.figure(
            figures.histogram(
                {"found": apart}, title="Distance to the nearest particle",
                label="distance to the nearest particle (nm)", span=(0.0, most), n_bins=24,
                marks={"a particle's diameter": diameter} if diameter < most else {},
                expected={"at random": chance},
            ),
            "From each particle to the nearest other one, of any class; dashed: as many strewn at "
            "random. Many far to the left of it: clusters, or particles picked twice.",
        ),
        pages.figure(
            figures.histogram(
                {"kept": zyx[:, 0] * nm_per_voxel}, title="Depth of the particles",
                label="z (nm)", span=(0.0, shape_zyx[0] * nm_per_voxel), n_bins=24,
            ),
            "Where in the depth particles lie: the ice. Peaks at the very ends are its surfaces "
            "or the edge of the reconstruction.",
        ),
    ]  # fmt: skip
    if near:
        told = (
            f"{near:,} pair{'' if near == 1 else 's'} of {len(zyx):,} particles lie"
            f"{'s' if near == 1 else ''} nearer than {CLOSE:g} of a diameter: look whether they "
            "are one particle picked twice."
        )
    else:
        told = f"No two particles lie nearer than {CLOSE:g} of a diameter: nothing picked twice."
    return pages.paragraph(told) + pages.grid(*charts, wide=True)
