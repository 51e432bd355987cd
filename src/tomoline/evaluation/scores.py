"""One tomogram's picks against its truth: every measure of METHODS.md in one object.

Two ways of counting stand side by side: SHREC's (through the occupancy volume, where there is
one) and one-to-one within a distance. Their ceilings differ: the true centres themselves miss
hollow particles in SHREC's way, so what they reach is reported too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.evaluation.matching import (
    Classification,
    Floats,
    Localization,
    Matching,
    classification,
    dilated_by_one,
    f_beta,
    localization,
    match_one_to_one,
    match_shrec,
)
from tomoline.evaluation.segmentation import SegmentationScores, segmentation_scores
from tomoline.ops.picking import Picks
from tomoline.settings import EvaluateSettings

COORDINATES = ["z_vox", "y_vox", "x_vox"]


@dataclass(frozen=True, kw_only=True)
class FBeta:
    """The CZII competition's measure: F-beta at half the particle radius, one-to-one.

    `f_beta` ignores classes; `mean_class_f_beta` is the mean over the true classes, each class's
    picks matched to that class's particles only, None where the picks have no classes.
    `radius_from` says where the radii come from.
    """

    beta: float
    precision: float
    recall: float
    f_beta: float
    mean_class_f_beta: float | None
    radius_from: str


@dataclass(frozen=True, kw_only=True)
class PickerScores:
    """The difference-of-Gaussians picker's best scale, with the true number of particles known."""

    scale_vox: float
    one_to_one: Localization
    shrec: Localization | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every figure of one tomogram; None where the input does not allow it.

    SHREC's figures need an occupancy volume, classes need class names on both sides, F-beta needs
    radii (from the truth's file, or of balls with the particles' volumes in the occupancy).
    """

    hit_distance_vox: float
    dilated: bool
    one_to_one: Localization
    one_to_one_classes: Classification | None
    shrec: Localization | None
    shrec_classes: Classification | None
    shrec_ceiling: Localization | None
    czii: FBeta | None
    dog: PickerScores | None = None
    segmentation: SegmentationScores | None = None
    segmentation_of: str = "the voxels that voted"

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers for evaluation.json; NaN becomes None."""
        ways: dict[str, Any] = {
            "one_to_one": _joined(self.one_to_one, self.one_to_one_classes),
            "shrec": _joined(self.shrec, self.shrec_classes),
            "shrec_ceiling": None if self.shrec_ceiling is None else asdict(self.shrec_ceiling),
            "czii": None if self.czii is None else asdict(self.czii),
            "dog": None if self.dog is None else asdict(self.dog),
            "segmentation": None
            if self.segmentation is None
            else {
                "va": self.segmentation.va,
                "mva": self.segmentation.mva,
                "miou": self.segmentation.miou,
                "of": self.segmentation_of,
            },
        }
        if ways["shrec"] is not None:
            ways["shrec"]["dilated"] = self.dilated
        counts = {
            "predictions": self.one_to_one.predictions,
            "particles": self.one_to_one.particles,
            "hit_distance_vox": self.hit_distance_vox,
        }
        plain: dict[str, Any] = _plain({**counts, **ways})
        return plain

    def class_table(self) -> pd.DataFrame:
        """One row a true class: counts and ratios of both ways of matching."""
        if self.one_to_one_classes is None:
            return pd.DataFrame(columns=["class", "true", "found", "right", "recall", "accuracy"])
        table = self.one_to_one_classes.table
        if self.shrec_classes is None:
            return table
        other = self.shrec_classes.table.drop(columns="true")
        return table.merge(other, on="class", suffixes=("", "_shrec"))

    def confusion(self) -> pd.DataFrame:
        """One-to-one confusion matrix; empty where there are no classes."""
        return (
            pd.DataFrame()
            if self.one_to_one_classes is None
            else (self.one_to_one_classes.confusion)
        )


def evaluate_picks(
    particles: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    occupancy: NDArray[np.integer[Any]] | None = None,
    settings: EvaluateSettings,
) -> Evaluation:
    """Score a particle table against the truth.

    `particles` has z_vox, y_vox, x_vox and may have status (only `accepted` rows count) and class;
    `truth` has TRUTH_COLUMNS and may have radius_vox; `occupancy` holds the truth's ids in the
    same voxels. Class names are compared without regard to case.
    """
    if "status" in particles:
        particles = particles[particles["status"] == "accepted"]
    predicted, true = _zyx(particles), _zyx(truth)
    names = _class_names(particles, truth)
    pairs = match_one_to_one(predicted, true, settings.hit_distance_vox)
    shrec = ceiling = shrec_classes = None
    if occupancy is not None:
        grid = dilated_by_one(occupancy) if settings.dilate_occupancy else occupancy
        ids = truth["id"].to_numpy(dtype=np.int64)
        hits, outside = match_shrec(predicted, true, grid, ids)
        shrec, shrec_classes = localization(hits, outside=outside), _classes(hits, names)
        own, own_outside = match_shrec(true, true, grid, ids)
        ceiling = localization(own, outside=own_outside)
    return Evaluation(
        hit_distance_vox=settings.hit_distance_vox,
        dilated=settings.dilate_occupancy,
        one_to_one=localization(pairs),
        one_to_one_classes=_classes(pairs, names),
        shrec=shrec,
        shrec_classes=shrec_classes,
        shrec_ceiling=ceiling,
        czii=_czii(predicted, truth, names, occupancy=occupancy, beta=settings.beta),
    )


def with_picker(
    evaluation: Evaluation,
    candidates: list[Picks],
    truth: pd.DataFrame,
    *,
    occupancy: NDArray[np.integer[Any]] | None = None,
    settings: EvaluateSettings,
) -> Evaluation:
    """Add the best of the picker's scales, by one-to-one F1; coordinates in the truth's voxels."""
    true = _zyx(truth)
    best: tuple[Localization, Picks] | None = None
    for picks in candidates:
        score = localization(match_one_to_one(picks.zyx_vox, true, settings.hit_distance_vox))
        if best is None or score.f1 > best[0].f1:
            best = score, picks
    if best is None:
        return evaluation
    shrec = None
    if occupancy is not None:
        grid = dilated_by_one(occupancy) if settings.dilate_occupancy else occupancy
        hits, outside = match_shrec(best[1].zyx_vox, true, grid, truth["id"].to_numpy(np.int64))
        shrec = localization(hits, outside=outside)
    scores = PickerScores(scale_vox=best[1].scale_vox, one_to_one=best[0], shrec=shrec)
    return replace(evaluation, dog=scores)


def with_segmentation(
    evaluation: Evaluation,
    predicted: NDArray[np.integer[Any]],
    true: NDArray[np.integer[Any]],
    n_classes: int,
    *,
    of_balls: bool = False,
) -> Evaluation:
    """Add VA, MVA and MIoU of a map of voxel classes (0 background) of the truth's shape.

    `of_balls`: the map has balls about the centres, so that it cannot agree with the shapes.
    """
    scores = segmentation_scores(predicted, true, n_classes)
    of = "balls about the centres" if of_balls else evaluation.segmentation_of
    return replace(evaluation, segmentation=scores, segmentation_of=of)


def _zyx(table: pd.DataFrame) -> Floats:
    return table[COORDINATES].to_numpy(dtype=float)


def _class_names(
    particles: pd.DataFrame, truth: pd.DataFrame
) -> tuple[list[str], list[str]] | None:
    """Class names of predictions and truth in the truth's spelling; None without them."""
    true = [str(name) for name in truth["class"]]
    if "class" not in particles or not any(true):
        return None
    spelling = {name.casefold(): name for name in true}
    predicted = [str(name) for name in particles["class"].fillna("")]
    return [spelling.get(name.casefold(), name) for name in predicted], true


def _classes(
    matching: Matching, names: tuple[list[str], list[str]] | None
) -> Classification | None:
    return None if names is None else classification(matching, *names)


def _radii(
    truth: pd.DataFrame, occupancy: NDArray[np.integer[Any]] | None
) -> tuple[Floats, str] | None:
    if "radius_vox" in truth:
        return truth["radius_vox"].to_numpy(dtype=float), "truth file"
    if occupancy is None:
        return None
    ids = truth["id"].to_numpy(dtype=np.int64)
    counts = np.bincount(occupancy.ravel(), minlength=int(ids.max(initial=0)) + 1)[ids]
    return np.cbrt(3 * counts / (4 * np.pi)), "ball of the particle's volume in the occupancy"


def _czii(
    predicted: Floats,
    truth: pd.DataFrame,
    names: tuple[list[str], list[str]] | None,
    *,
    occupancy: NDArray[np.integer[Any]] | None,
    beta: float,
) -> FBeta | None:
    found = _radii(truth, occupancy)
    if found is None:
        return None
    tolerance, source = found[0] / 2, found[1]
    true = _zyx(truth)
    total = localization(match_one_to_one(predicted, true, tolerance))
    mean_class = None
    if names is not None:
        of_prediction, of_true = np.array(names[0], dtype=object), np.array(names[1], dtype=object)
        scores = []
        for name in sorted(set(names[1])):
            mine, own = of_prediction == name, of_true == name
            score = localization(match_one_to_one(predicted[mine], true[own], tolerance[own]))
            scores.append(f_beta(score.precision, score.recall, beta=beta))
        mean_class = float(np.mean(scores))
    return FBeta(
        beta=beta,
        precision=total.precision,
        recall=total.recall,
        f_beta=f_beta(total.precision, total.recall, beta=beta),
        mean_class_f_beta=mean_class,
        radius_from=source,
    )


def _joined(counts: Localization | None, classes: Classification | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    joined = asdict(counts)
    joined["mean_class_accuracy"] = None if classes is None else classes.mean_accuracy
    joined["accuracy"] = None if classes is None else classes.accuracy
    return joined


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
