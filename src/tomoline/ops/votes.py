"""One class a particle from the labels of its voxels.

METHODS.md, "Extraction, masking, voting" (VP-Detector, section 2.5): the subtomogram is masked to
the labelled component at its centre, and the majority of its voxels names the class.

What METHODS leaves open is chosen so. A classifier labels a particle's neighbours in the same box
too, and where they touch they are one component, in which a large neighbour would outvote a small
particle. So only voxels within `radius_vox` of the centre that lie nearer to it than to any other
candidate can vote; the component is formed of these. For a large particle that is its inner part,
which has the same label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.ops.morphology import components

NO_LABELS = "no labelled voxels at the centre"
BACKGROUND_LIKE = "background to the classifier"
# The localizer marks a ball of half the particle's radius (at most four voxels), so this many
# times the cluster's radius reaches just beyond a small particle and stays well inside a large one.
RADIUS_PER_CLUSTER_RADIUS = 2.5
# Room for the component beyond the search for its start, however small the cluster came out.
LEAST_BEYOND_CENTRE_VOX = 2.0


@dataclass(frozen=True, kw_only=True)
class Vote:
    """The verdict on one subtomogram.

    `label` is the index of the class (never 0, the background), `share` its part of the voxels
    that voted, `margin` that part less the runner-up's, `probabilities` the mean softmax of the
    classes 1.. over these voxels, summing to 1. `voters` marks the `voxels` that voted, in the box.
    Of a subtomogram named as a whole its views voted, no voxels; `margin` is then of the two
    largest probabilities, and `background` the mean probability that there is no particle at the
    centre.
    """

    label: int
    share: float
    margin: float
    probabilities: NDArray[np.float64]
    voxels: int
    voters: NDArray[np.bool_]
    background: float = 0.0


def vote_radius(size_vox: float, *, centre_radius_vox: float) -> float:
    """How far from a centre voxels vote, from the number of voxels in the localizer's cluster."""
    cluster_radius = float(math.cbrt(3 * size_vox / (4 * math.pi)))
    return max(
        RADIUS_PER_CLUSTER_RADIUS * cluster_radius, centre_radius_vox + LEAST_BEYOND_CENTRE_VOX
    )


def central_component(
    labels: NDArray[Any],
    centre_zyx: NDArray[np.float64],
    *,
    centre_radius_vox: float,
    radius_vox: float = math.inf,
    others_zyx: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Return the voxels `(Z, Y, X)` that vote: the labelled component at the centre.

    It is the one that holds the labelled voxel nearest to the centre, if that is not farther than
    `centre_radius_vox` (a hollow particle has no label at its centre; ties go to the first voxel)
    or is the centre's own voxel. Voxels beyond `radius_vox`, or nearer to one of `others_zyx`
    `(n, 3)`, do not take part. All False if there is none.
    """
    square = _square_distance(labels.shape, centre_zyx)
    eligible = np.asarray(labels) > 0
    eligible &= own_voxels(labels.shape, centre_zyx, radius_vox=radius_vox, others_zyx=others_zyx)
    candidates = np.where(eligible, square, np.inf)
    nearest = np.unravel_index(int(candidates.argmin()), labels.shape)
    # Half a voxel's diagonal: the centre's own voxel counts with a radius of 0 too.
    if candidates[nearest] > max(centre_radius_vox**2, 0.75):
        return np.zeros(labels.shape, bool)
    parts = components(eligible)
    return np.asarray(parts == parts[nearest])


def own_voxels(
    shape: tuple[int, ...],
    centre_zyx: NDArray[np.float64],
    *,
    radius_vox: float,
    others_zyx: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Voxels `(Z, Y, X)` within `radius_vox` of a centre and not nearer to one of `others_zyx`."""
    square = _square_distance(shape, centre_zyx)
    own = square <= radius_vox**2
    for other in np.empty((0, 3)) if others_zyx is None else others_zyx:
        own &= square <= _square_distance(shape, other)
    return np.asarray(own)


def vote_of_views(views: NDArray[Any]) -> Vote:
    """Vote of the views of one subtomogram that was named as a whole.

    Each view is for the structure it finds most probable. The structure with the largest mean
    probability is named, as views are few and often equally divided.

    Parameters
    ----------
    views:
        `(V, C)` softmax, channel 0 background.
    """
    mean = np.asarray(views, np.float64).mean(axis=0)
    structures = mean[1:]
    for_each = np.bincount(np.asarray(views)[:, 1:].argmax(axis=1), minlength=len(structures))
    label = int(structures.argmax())
    others = np.delete(structures, label)
    total = structures.sum()
    return Vote(
        label=label + 1,
        share=float(for_each[label] / len(views)),
        margin=float((structures[label] - others.max(initial=0.0)) / total) if total > 0 else 0.0,
        probabilities=structures / total if total > 0 else np.full(len(structures), np.nan),
        voxels=0,
        voters=np.zeros((0, 0, 0), bool),
        background=float(mean[0]),
    )


def vote(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    centre_zyx: NDArray[np.float64],
    *,
    centre_radius_vox: float,
    radius_vox: float = math.inf,
    others_zyx: NDArray[np.float64] | None = None,
) -> Vote | None:
    """Vote on one subtomogram; None if there is no label at its centre.

    Parameters
    ----------
    labels:
        `(Z, Y, X)`, index of the most probable class, 0 background.
    probabilities:
        `(C, Z, Y, X)` softmax, on any common scale (such as 0..255), channel 0 background.
    centre_zyx:
        The particle's centre in this box.
    centre_radius_vox, radius_vox, others_zyx:
        See `central_component`.
    """
    voters = central_component(
        labels, centre_zyx, centre_radius_vox=centre_radius_vox, radius_vox=radius_vox,
        others_zyx=others_zyx,
    )  # fmt: skip
    voxels = int(np.count_nonzero(voters))
    if voxels == 0:
        return None
    counts = np.bincount(labels[voters], minlength=len(probabilities))[1:]
    softmax = np.asarray(probabilities)[1:, voters].sum(axis=1, dtype=np.float64)
    # A voxel's label has the largest probability, so this is 0 only if the two disagree.
    means = softmax / softmax.sum() if softmax.sum() > 0 else counts / voxels
    # Equal votes go to the more probable class, then to the first.
    order = np.lexsort((np.arange(len(counts)), -means, -counts))
    runner_up = counts[order[1]] if len(order) > 1 else 0
    return Vote(
        label=int(order[0]) + 1,
        share=float(counts[order[0]] / voxels),
        margin=float((counts[order[0]] - runner_up) / voxels),
        probabilities=np.asarray(means, np.float64),
        voxels=voxels,
        voters=voters,
    )


def _square_distance(shape: tuple[int, ...], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    z, y, x = ((np.arange(n) - c) ** 2 for n, c in zip(shape, centre, strict=True))
    return np.asarray(z[:, None, None] + y[:, None] + x)
