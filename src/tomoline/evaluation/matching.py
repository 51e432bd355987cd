"""Predicted against true positions: SHREC's hits and one-to-one matching within a distance.

Coordinates are (n, 3), zyx, in voxels of one grid. Measures by METHODS.md, "SHREC metrics".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

NOT_FOUND = "not found"
NOT_A_PARTICLE = "not a particle"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which prediction belongs to which true particle.

    `true_of_prediction` (n predictions) and `prediction_of_true` (n true) hold indices or -1;
    `distance_vox` (n true) the distance from centre to centre, NaN where nothing was found. In
    SHREC's way several predictions may have one true particle; its own is then the first.
    """

    true_of_prediction: Ints
    prediction_of_true: Ints
    distance_vox: Floats


@dataclass(frozen=True, kw_only=True)
class Localization:
    """Counts and ratios of one matching.

    `ad_vox` is the mean centre-to-centre distance of the particles found (NaN without any). `mh`
    counts particles hit more than once, `ro` predictions outside the region; both 0 one-to-one.
    """

    predictions: int
    particles: int
    tp: int
    fp: int
    fn: int
    mh: int
    ro: int
    ad_vox: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Classes of one matching.

    `table`: one row a true class with true, found, right, recall, accuracy (right / true).
    `confusion`: rows true classes and NOT_A_PARTICLE (predictions that hit nothing), columns
    predicted classes and NOT_FOUND. `mean_accuracy` is over the true classes that occur,
    `accuracy` over particles; NaN where there are none.
    """

    table: pd.DataFrame
    confusion: pd.DataFrame
    mean_accuracy: float
    accuracy: float


def match_one_to_one(predicted: Floats, true: Floats, tolerance_vox: float | Floats) -> Matching:
    """Pair each prediction with at most one true centre no farther than the tolerance.

    As many pairs as possible, and among such pairings the smallest sum of distances. The tolerance
    is one number or one a true centre (n true,). Only the neighbourhoods that touch are solved
    together, so thousands of particles take a second.
    """
    predicted, true = _points(predicted), _points(true)
    pairs = _pairs_within(predicted, true, np.broadcast_to(tolerance_vox, len(true)))
    true_of = np.full(len(predicted), -1)
    prediction_of = np.full(len(true), -1)
    distance = np.full(len(true), np.nan)
    for rows, columns, lengths in _neighbourhoods(*pairs, len(predicted), len(true)):
        for row, column, length in _assign(rows, columns, lengths):
            true_of[row], prediction_of[column], distance[column] = column, row, length
    return Matching(
        true_of_prediction=true_of, prediction_of_true=prediction_of, distance_vox=distance
    )


def dilated_by_one(occupancy: NDArray[np.integer]) -> NDArray[np.integer]:
    """Grow each id by one voxel across faces into background (0) only.

    Ids never overwrite each other; a background voxel beside two ids takes the larger one.
    """
    grown = occupancy.copy()
    background = occupancy == 0
    for axis in range(occupancy.ndim):
        for source, target in (((1, None), (None, -1)), ((None, -1), (1, None))):
            there = [slice(None)] * occupancy.ndim
            here = [slice(None)] * occupancy.ndim
            there[axis], here[axis] = slice(*source), slice(*target)
            neighbour = np.where(background[tuple(here)], occupancy[tuple(there)], 0)
            np.maximum(grown[tuple(here)], neighbour, out=grown[tuple(here)])
    return grown


def match_shrec(
    predicted: Floats, true: Floats, occupancy: NDArray[np.integer], ids: Sequence[int] | Ints
) -> tuple[Matching, int]:
    """Hits through the occupancy volume at each prediction's rounded centre.

    `ids` (n true) are the particles' numbers in `occupancy`, a volume already dilated where the
    challenge asks for it ('20 and '21: `dilated_by_one`; '19 not). An id in the volume that is
    not among `ids` counts as background. A prediction outside the volume is moved to its nearest
    voxel first, as the challenge's script does. Returns the matching and the number of those.
    """
    predicted, true = _points(predicted), _points(true)
    voxel = np.rint(predicted).astype(int)
    clamped = np.clip(voxel, 0, np.asarray(occupancy.shape) - 1)
    outside = int((clamped != voxel).any(axis=1).sum())
    hit = occupancy[tuple(clamped.T)]
    index = {int(number): n for n, number in enumerate(ids) if number > 0}
    true_of = np.array([index.get(int(number), -1) for number in hit], dtype=np.int64)
    prediction_of = np.full(len(true), -1)
    for n in reversed(range(len(predicted))):  # the first prediction of a particle wins
        if true_of[n] >= 0:
            prediction_of[true_of[n]] = n
    distance = np.full(len(true), np.nan)
    found = prediction_of >= 0
    distance[found] = np.linalg.norm(predicted[prediction_of[found]] - true[found], axis=1)
    matching = Matching(
        true_of_prediction=true_of, prediction_of_true=prediction_of, distance_vox=distance
    )
    return matching, outside


def localization(matching: Matching, *, outside: int = 0) -> Localization:
    """Count a matching; ratios without a denominator are 0, the mean distance NaN."""
    n_predicted, n_true = len(matching.true_of_prediction), len(matching.prediction_of_true)
    hits = matching.true_of_prediction[matching.true_of_prediction >= 0]
    tp = int((matching.prediction_of_true >= 0).sum())
    precision, recall = _ratio(tp, n_predicted), _ratio(tp, n_true)
    return Localization(
        predictions=n_predicted,
        particles=n_true,
        tp=tp,
        fp=n_predicted - len(hits),
        fn=n_true - tp,
        mh=int((np.bincount(hits, minlength=1) > 1).sum()),
        ro=outside,
        ad_vox=float(np.nanmean(matching.distance_vox)) if tp else float("nan"),
        precision=precision,
        recall=recall,
        f1=f_beta(precision, recall, beta=1.0),
    )


def classification(
    matching: Matching, predicted: Sequence[str], true: Sequence[str]
) -> Classification:
    """Compare class names through a matching; a particle's class is its own prediction's."""
    classes = sorted(set(true))
    names = sorted(set(classes) | set(predicted))
    row_of = {name: n for n, name in enumerate(classes)}
    column_of = {name: n for n, name in enumerate(names)}
    # The last row is NOT_A_PARTICLE, the last column NOT_FOUND.
    counts = np.zeros((len(classes) + 1, len(names) + 1), dtype=np.int64)
    for n, name in zip(matching.prediction_of_true.tolist(), true, strict=True):
        counts[row_of[name], column_of[predicted[n]] if n >= 0 else -1] += 1
    for n, name in zip(matching.true_of_prediction.tolist(), predicted, strict=True):
        if n < 0:
            counts[-1, column_of[name]] += 1
    confusion = pd.DataFrame(counts, index=[*classes, NOT_A_PARTICLE], columns=[*names, NOT_FOUND])
    rows = []
    for name, row in row_of.items():
        total, found = int(counts[row].sum()), int(counts[row, :-1].sum())
        right = int(counts[row, column_of[name]])
        rows.append((name, total, found, right, _ratio(found, total), _ratio(right, total)))
    table = pd.DataFrame(rows, columns=["class", "true", "found", "right", "recall", "accuracy"])
    return Classification(
        table=table,
        confusion=confusion,
        mean_accuracy=float(table["accuracy"].mean()) if rows else float("nan"),
        accuracy=float(table["right"].sum()) / len(true) if len(true) else float("nan"),
    )


def f_beta(precision: float, recall: float, *, beta: float) -> float:
    """Weighted harmonic mean (1 + b^2) P R / (b^2 P + R); 0 where both are 0."""
    below = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / below if below > 0 else 0.0


def _points(zyx: Floats) -> Floats:
    return np.asarray(zyx, dtype=float).reshape(-1, 3)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _pairs_within(predicted: Floats, true: Floats, tolerance: Floats) -> tuple[Ints, Ints, Floats]:
    """All (prediction, true, distance) with distance <= the true centre's tolerance."""
    if not len(predicted) or not len(true):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # The tree's test is on squared distances, so give it room and decide exactly below.
    lists = cKDTree(predicted).query_ball_point(true, tolerance * (1 + 1e-9) + 1e-9)
    columns = np.repeat(np.arange(len(true)), [len(found) for found in lists])
    rows = np.array([n for found in lists for n in found], dtype=np.int64)
    lengths = np.linalg.norm(predicted[rows] - true[columns], axis=1)
    near = lengths <= tolerance[columns] + 1e-12
    return rows[near], columns[near], lengths[near]


def _neighbourhoods(
    rows: Ints, columns: Ints, lengths: Floats, n_rows: int, n_columns: int
) -> list[tuple[Ints, Ints, Floats]]:
    """Split the pairs into groups that share no point."""
    if not len(rows):
        return []
    size = n_rows + n_columns
    graph = coo_array((np.ones(len(rows)), (rows, columns + n_rows)), shape=(size, size))
    group = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    return [(rows[part], columns[part], lengths[part]) for part in np.split(order, cuts)]


def _assign(rows: Ints, columns: Ints, lengths: Floats) -> list[tuple[int, int, float]]:
    """Solve one neighbourhood: most pairs first, then the shortest."""
    own_rows, row_of = np.unique(rows, return_inverse=True)
    own_columns, column_of = np.unique(columns, return_inverse=True)
    # A pair must outweigh any saving of distance that dropping it could bring.
    bonus = lengths.max() * (min(len(own_rows), len(own_columns)) + 1) + 1.0
    cost = np.zeros((len(own_rows), len(own_columns)))
    cost[row_of, column_of] = lengths - bonus
    picked = [(r, c) for r, c in zip(*linear_sum_assignment(cost), strict=True) if cost[r, c] < 0]
    return [(int(own_rows[r]), int(own_columns[c]), float(cost[r, c] + bonus)) for r, c in picked]
