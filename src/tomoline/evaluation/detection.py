"""How well ranked picks find particles: precision-recall and ROC curves (HydraPicker, section 4).

A pick is right if its box and a particle's box, squares of the particle's diameter, have an
intersection over union of 0.6 or more; of several picks of one particle the one with the highest
score is right and the others are false. Picks of all micrographs of a data set are ranked together.

AP is the area under the precision-recall curve: the sum over ranks of precision times the gain of
recall. For the ROC the paper does not say what a negative is. Here every particle is a positive,
with the score of its pick or, where none found it, below all; every false pick is a negative. AUROC
is the probability that a positive outscores a negative, ties counting half. It depends on how many
candidates a method hands in, so methods are compared by AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tomoline.ops.micrographs import Floats, iou_of_squares

HIT_IOU = 0.6


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Picks of one micrograph `(n, 2)` yx with their scores, and its particles `(m, 2)`."""

    yx: Floats
    score: Floats
    true_yx: Floats
    diameter_px: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Outcome over micrographs, picks best first.

    `hit` says which are right. `precision` and `recall` are those of all picks up to each rank.
    """

    score: Floats
    hit: NDArray[np.bool_]
    precision: Floats
    recall: Floats
    particles: int
    ap: float
    auroc: float

    def at(self, threshold: float) -> dict[str, float]:
        """Precision, recall and F1 of the picks with at least this score, and their number."""
        kept = int((self.score >= threshold).sum())
        hits = int(self.hit[:kept].sum())
        precision = hits / kept if kept else 0.0
        recall = hits / self.particles if self.particles else 0.0
        total = precision + recall
        f1 = 2 * precision * recall / total if total else 0.0
        return {"picks": kept, "precision": precision, "recall": recall, "f1": f1}

    def best_threshold(self) -> float:
        """The score with the best F1; 0.5 where there is nothing to choose from."""
        if not len(self.score) or not self.particles:
            return 0.5
        total = self.precision + self.recall
        f1 = np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total),
                       where=total > 0)  # fmt: skip
        return float(self.score[int(f1.argmax())])

    def precision_curve(self, points: int = 25) -> list[tuple[float, float]]:
        """Pairs of a score and the precision from it on, both rising; at most `points`.

        Precision is made monotonic from the highest score down (the least of what lies above it),
        and the first few picks, whose precision is a matter of luck, are taken together.
        """
        least = min(20, len(self.score))
        if not least:
            return []
        precision = np.minimum.accumulate(self.precision[least - 1 :])
        score = self.score[least - 1 :]
        chosen = np.unique(np.linspace(0, len(score) - 1, points).round().astype(int))[::-1]
        curve: list[tuple[float, float]] = []
        for k in chosen:
            point = (round(float(score[k]), 4), round(float(precision[k]), 4))
            if not curve or point[0] > curve[-1][0]:
                curve.append(point)
        return curve


def detection(micrographs: Sequence[Ranked], iou: float = HIT_IOU) -> Detection:
    """Rank and judge the picks of a data set's micrographs."""
    scores, hits, found, particles = [], [], [], 0
    for one in micrographs:
        order = np.argsort(-one.score, kind="stable")
        hit, best = _hits(one, order, iou)
        scores.append(one.score[order])
        hits.append(hit)
        found.append(best)
        particles += len(one.true_yx)
    score = np.concatenate([*scores, np.empty(0)])
    hit = np.concatenate([*hits, np.empty(0, bool)]).astype(bool)
    order = np.argsort(-score, kind="stable")
    score, hit = score[order], hit[order]
    tp = np.cumsum(hit)
    precision = tp / np.arange(1, len(hit) + 1)
    recall = tp / particles if particles else np.zeros(len(hit))
    ap = float((precision * hit).sum() / particles) if particles else float("nan")
    positives = np.concatenate([*found, np.empty(0)])
    return Detection(
        score=score, hit=hit, precision=precision, recall=recall, particles=particles, ap=ap,
        auroc=_auroc(positives, score[~hit]),
    )  # fmt: skip


def curve_of(result: Detection, points: int = 200) -> dict[str, Any]:
    """Points of both curves for a plot, evenly spaced in rank: score, precision, recall, fpr."""
    false = np.cumsum(~result.hit)
    rate = false / max(1, int(false[-1])) if len(false) else false.astype(float)
    chosen = np.unique(np.linspace(0, max(0, len(result.score) - 1), points).astype(int))
    chosen = chosen[: len(result.score)]
    columns = {
        "score": result.score, "precision": result.precision, "recall": result.recall,
        "false_positive_rate": rate,
    }  # fmt: skip
    return {key: [round(float(v), 5) for v in values[chosen]] for key, values in columns.items()}


def _hits(one: Ranked, order: NDArray[np.int64], iou: float) -> tuple[NDArray[np.bool_], Floats]:
    """Which picks, best first, are right; and each particle's score, -inf where it was missed."""
    best = np.full(len(one.true_yx), -np.inf)
    hit = np.zeros(len(order), bool)
    if not len(one.true_yx) or not len(order):
        return hit, best
    overlap = iou_of_squares(one.yx[order], one.true_yx, one.diameter_px)
    free = np.ones(len(one.true_yx), bool)
    for k in range(len(order)):
        # A pick that overlaps two particles goes to the one that is left.
        row = np.where(free, overlap[k], -1.0)
        nearest = int(row.argmax())
        if row[nearest] >= iou:
            hit[k], free[nearest] = True, False
            best[nearest] = one.score[order[k]]
    return hit, best


def _auroc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive's score is above a negative's; NaN where one kind is missing."""
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
