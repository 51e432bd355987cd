"""Points with a class and a radius, as people give them, made targets to learn from.

What a point teaches: a localizer learns the core ball about it and that the rest of the particle is
none, as on simulated tomograms (`training.data.core_mask`); a classifier of voxels a ball of the
radius; a classifier of whole subtomograms boxes about it.

What the absence of a point teaches depends on who labelled. Few people label every particle: with
20 labels of 300 particles, a voxel far from every label is most likely ice, but hundreds of
unlabelled particles lie there too, and as background they would teach the network to overlook just
what it is to find. So with partial labels such voxels are UNKNOWN and teach nothing (their loss is
left out). Background is only what somebody said is none (negatives), and where the localizer that
we start from gives a probability so low that it would need to be wrong by a great deal; a class
that it overlooks altogether needs complete labels. With these all that is far from them is
background.

Axes are (z, y, x), lengths in voxels of the prepared volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tomoline.ops.picking import dog_picks
from tomoline.training.data import TrainingVolume, core_mask, core_radius
from tomoline.training.losses import UNKNOWN
from tomoline.training.subtomogram import DOG_SCALES_VOX

NEGATIVE_RADIUS_VOX = 3.0  # about a place where there is no particle no core is
UNSURE_RADIUS_VOX = 6.0
OUTSIDE = 1.2  # radii from a label: what lies nearer belongs to its particle or touches it


@dataclass(frozen=True, kw_only=True)
class Points:
    """What people know of one tomogram or a part of it.

    `centres (n, 3)` of particles with `labels (n,)`, the places of their classes in the model's
    list (-1: a particle of a class that nobody named), and `radii (n,)`; `negatives (m, 3)` where
    there is none; `unsure (k, 3)`. `complete`: every particle is among them.
    """

    centres: NDArray[np.float64]
    labels: NDArray[np.int64]
    radii: NDArray[np.float64]
    negatives: NDArray[np.float64]
    unsure: NDArray[np.float64]
    complete: bool = False

    def inside(
        self, low: NDArray[np.int64], high: NDArray[np.int64], *, margin: float = 0.0
    ) -> Points:
        """Those within a half-open box, or as near to it as `margin`, counted from its first voxel.

        What lies beside a box reaches into it.
        """
        own, no, maybe = (
            ((places >= low - margin) & (places < high + margin)).all(1)
            for places in (self.centres, self.negatives, self.unsure)
        )
        return replace(
            self, centres=self.centres[own] - low, labels=self.labels[own], radii=self.radii[own],
            negatives=self.negatives[no] - low, unsure=self.unsure[maybe] - low,
        )  # fmt: skip

    def distance(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far places `(n, 3)` are from the nearest particle or unsure one; infinite without."""
        known = np.concatenate([self.centres, self.unsure])
        if not len(known):
            return np.full(len(places), np.inf)
        distance: NDArray[np.float64] = cKDTree(known).query(places)[0]
        return distance


def point_volume(
    volume: NDArray[np.float32], points: Points, *, probability: NDArray[np.float32] | None,
    low_score: float,
) -> TrainingVolume:  # fmt: skip
    """Make targets of points; see the module's text for what is known and what is not.

    Parameters
    ----------
    volume:
        Normalised, `(z, y, x)`.
    probability:
        The localizer's `(z, y, x)`; None where no voxel is to be background by it.
    low_score:
        Below this probability an unlabelled voxel is background.

    Returns
    -------
    `core` and `classes` hold UNKNOWN where nothing is known. Points outside the volume reach into
    it, but are not listed; particles without a class are in `core` only.
    """
    shape = volume.shape
    radii = points.radii
    core = np.full(shape, 0 if points.complete else UNKNOWN, np.uint8)
    if probability is not None and not points.complete:
        core[probability < low_score] = 0
    classes = core.copy()
    own = core_mask(shape, points.centres, list(radii)) > 0
    around = core_mask(shape, points.centres, list(OUTSIDE * radii)) > 0
    if not points.complete:
        # What touches a labelled particle may be another one that nobody labelled.
        core[around], classes[around] = UNKNOWN, UNKNOWN
    for place in (core, classes):
        none = core_mask(shape, points.negatives, [NEGATIVE_RADIUS_VOX] * len(points.negatives)) > 0
        place[none & ~own] = 0
        doubt = core_mask(shape, points.unsure, [UNSURE_RADIUS_VOX] * len(points.unsure)) > 0
        place[doubt & ~own] = UNKNOWN
    core[own] = 0
    core[core_mask(shape, points.centres, [core_radius(r) for r in radii]) > 0] = 1
    instances = np.zeros(shape, np.uint16)
    for k, (centre, label, radius) in enumerate(
        zip(points.centres, points.labels, radii, strict=True)
    ):
        ball = core_mask(shape, centre[None], [radius]) > 0
        classes[ball] = label if label > 0 else UNKNOWN
        instances[ball] = k + 1
    here = ((points.centres > -0.5) & (points.centres < np.array(shape) - 0.5)).all(1)
    number = np.concatenate([[0], np.where(here, np.cumsum(here), 0)]).astype(np.uint16)
    return TrainingVolume(
        np.asarray(volume, np.float32), core, classes, number[instances], points.centres[here],
        points.labels[here],
    )  # fmt: skip


def unknown_near(part: TrainingVolume, border_vox: float, points: Points) -> TrainingVolume:
    """A part in which no voxel that a held-out particle may reach into is background.

    `border_vox` is where those particles begin, in y of the part; the largest radius of the points
    is taken for theirs.
    """
    if border_vox > part.core.shape[1] or not len(points.radii):
        return part
    first = max(int(border_vox - points.radii.max()), 0)
    core, classes = part.core.copy(), part.classes.copy()
    for target in (core[:, first:], classes[:, first:]):
        target[target == 0] = UNKNOWN
    return replace(part, core=core, classes=classes)


def background_places(
    volume: NDArray[np.float32], points: Points, *, probability: NDArray[np.float32] | None,
    low_score: float, hit_vox: float, rim_vox: int, number: int, rng: np.random.Generator,
) -> NDArray[np.float64]:  # fmt: skip
    """Places `(n, 3)` that may serve as background: maxima of a difference of Gaussians, which look
    most like candidates, where no particle can be.

    Farther than twice `hit_vox` from every label, `rim_vox` from the faces (beyond which the
    probability of a cut-out part means little), and, unless the labels are complete, with the
    localizer's `probability` below `low_score` in the whole ball of `hit_vox` about them; without a
    probability there are none then.
    """
    none = np.empty((0, 3))
    if probability is None and not points.complete:
        return none
    scale = float(rng.uniform(*DOG_SCALES_VOX))
    picks = dog_picks(volume, scale, number=number).zyx_vox
    inner = ((picks >= rim_vox) & (picks <= np.array(volume.shape) - 1 - rim_vox)).all(1)
    picks = picks[inner]
    if not len(picks):
        return none
    kept = points.distance(picks) > 2 * hit_vox
    if not points.complete:
        assert probability is not None
        high = np.argwhere(probability >= low_score)
        if len(high):
            kept &= cKDTree(high).query(picks)[0] > hit_vox
    return np.asarray(picks[kept], np.float64)


class PointSource:
    """Tomograms' labelled parts, and simulated tomograms in their share, for a recipe of MSDNet."""

    def __init__(
        self, points: Sequence[TrainingVolume], simulated: Sequence[TrainingVolume], *,
        simulated_share: float, seed: int,
    ) -> None:  # fmt: skip
        """The last simulated one is held out, to see that what was known is not forgotten."""
        self.points, self.seed = list(points), seed
        self.simulated = list(simulated[:-1] if len(simulated) > 1 else simulated)
        self.held_out = list(simulated[-1:]) or self.points
        self.share = simulated_share if self.simulated else 0.0

    def volumes(self, epoch: int, count: int, pool: int = 0) -> list[TrainingVolume]:
        """`count` volumes, each simulated with the probability of its share."""
        rng = np.random.default_rng([self.seed, epoch, 5])
        return [
            kind[rng.integers(len(kind))]
            for kind in (
                self.simulated if rng.random() < self.share else self.points for _ in range(count)
            )
        ]

    def validation(self, count: int) -> list[TrainingVolume]:
        """A simulated tomogram that is not learnt from; without any, the labelled parts."""
        return self.held_out
