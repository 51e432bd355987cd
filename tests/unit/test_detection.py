"""Average precision and ROC by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tomoline.evaluation.detection import Ranked, curve_of, detection
from tomoline.ops.micrographs import iou_of_squares


def one(yx: list[list[float]], score: list[float], true: list[list[float]]) -> Ranked:
    return Ranked(
        yx=np.reshape(yx, (-1, 2)).astype(float), score=np.asarray(score, float),
        true_yx=np.reshape(true, (-1, 2)).astype(float), diameter_px=20.0,
    )  # fmt: skip


def test_overlap_of_squares() -> None:
    # moved by 5 of 20 along y: 300 shared of 500; by 5 and 5: 225 of 575; by 20: none
    a, b = np.array([[0.0, 0.0]]), np.array([[5.0, 0.0], [5.0, -5.0], [20.0, 0.0]])
    assert iou_of_squares(a, b, 20.0)[0] == pytest.approx([0.6, 225 / 575, 0.0])


def test_ap_by_hand() -> None:
    # best first: right, false, right (its IoU exactly 0.6), a second pick of the first: false
    ranked = one(
        [[100, 100], [300, 300], [205, 200], [101, 100]], [0.9, 0.8, 0.7, 0.6],
        [[100, 100], [200, 200], [400, 400]],
    )  # fmt: skip
    result = detection([ranked])
    assert result.hit.tolist() == [True, False, True, False]
    assert result.ap == pytest.approx((1 / 1 + 2 / 3) / 3)
    # positives 0.9, 0.7 and one below all; negatives 0.8, 0.6
    assert result.auroc == pytest.approx((2 + 1 + 0) / 6)
    assert result.at(0.75) == {
        "picks": 2, "precision": 0.5, "recall": pytest.approx(1 / 3), "f1": pytest.approx(0.4)
    }  # fmt: skip
    assert result.best_threshold() == 0.7
    assert curve_of(result)["recall"][-1] == pytest.approx(2 / 3, abs=1e-4)


def test_of_several_picks_of_a_particle_the_best_is_right() -> None:
    result = detection([one([[101, 100], [100, 100]], [0.3, 0.9], [[100, 100]])])
    assert result.score.tolist() == [0.9, 0.3]
    assert result.hit.tolist() == [True, False]
    assert result.ap == 1


def test_micrographs_are_ranked_together() -> None:
    first = one([[10, 10]], [0.5], [[10, 10]])
    second = one([[50, 50]], [0.9], [[10, 10]])  # false, and above the other's right one
    assert detection([first, second]).ap == pytest.approx(0.5 / 2)


def test_without_picks_or_particles() -> None:
    none = detection([one([], [], [[1, 1]])])
    assert none.ap == 0
    assert none.precision_curve() == []
    empty = detection([one([[1, 1]], [0.5], [])])
    assert np.isnan(empty.ap)
    assert empty.at(0.5)["precision"] == 0


def test_the_precision_curve_rises() -> None:
    rng = np.random.default_rng(3)
    true = np.stack([np.arange(60) * 50.0, np.zeros(60)], -1)
    score = rng.uniform(0, 1, 60)
    wrong = rng.uniform(size=60) > score
    picks = true + np.where(wrong, 25.0, 0.0)[:, None]
    curve = detection([one(picks.tolist(), score.tolist(), true.tolist())]).precision_curve()
    scores, precisions = np.transpose(curve)
    assert (np.diff(scores) > 0).all()
    assert (np.diff(precisions) >= 0).all()
    assert precisions[0] == pytest.approx(1 - wrong.mean(), abs=0.05)
