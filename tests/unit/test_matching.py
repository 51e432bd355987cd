"""Hand-computed cases of both ways of matching."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tomoline.evaluation.matching import (
    NOT_A_PARTICLE,
    NOT_FOUND,
    classification,
    dilated_by_one,
    f_beta,
    localization,
    match_one_to_one,
    match_shrec,
)

NONE = np.zeros((0, 3))


def occupancy() -> np.ndarray:
    """Three particles: 1 at z 2..4, 2 beside it at z 5..7, 3 far away; all 3 x 3 in y, x."""
    volume = np.zeros((20, 12, 12), np.uint16)
    volume[2:5, 4:7, 4:7] = 1
    volume[5:8, 4:7, 4:7] = 2
    volume[14:17, 4:7, 4:7] = 3
    return volume


TRUE = np.array([(3, 5, 5), (6, 5, 5), (15, 5, 5)], float)
PICKS = np.array(
    [
        (3, 5, 5),  # particle 1, exactly
        (4, 5, 5),  # particle 1 again
        (6, 6, 5),  # particle 2, one voxel off
        (11, 5, 5),  # background
        (25, 5, 5),  # outside; the nearest voxel is background
    ],
    float,
)


def test_shrec_counts_by_hand() -> None:
    matching, outside = match_shrec(PICKS, TRUE, occupancy(), [1, 2, 3])
    score = localization(matching, outside=outside)
    assert matching.true_of_prediction.tolist() == [0, 0, 1, -1, -1]
    assert matching.prediction_of_true.tolist() == [0, 2, -1]
    assert (score.tp, score.fp, score.fn, score.mh, score.ro) == (2, 2, 1, 1, 1)
    assert score.ad_vox == pytest.approx((0 + 1) / 2)
    assert score.precision == pytest.approx(2 / 5)
    assert score.recall == pytest.approx(2 / 3)
    assert score.f1 == pytest.approx(2 * 0.4 * (2 / 3) / (0.4 + 2 / 3))


def test_shrec_class_is_that_of_the_first_prediction() -> None:
    matching, _ = match_shrec(PICKS, TRUE, occupancy(), [1, 2, 3])
    result = classification(matching, ["a", "b", "a", "b", "b"], ["a", "b", "b"])
    assert result.confusion.loc["a"].to_dict() == {"a": 1, "b": 0, NOT_FOUND: 0}
    assert result.confusion.loc["b"].to_dict() == {"a": 1, "b": 0, NOT_FOUND: 1}
    assert result.confusion.loc[NOT_A_PARTICLE].to_dict() == {"a": 0, "b": 2, NOT_FOUND: 0}
    table = result.table.set_index("class")
    assert table.loc["a", ["true", "found", "right"]].tolist() == [1, 1, 1]
    assert table.loc["b", ["true", "found", "right"]].tolist() == [2, 1, 0]
    assert table.loc["b", "recall"] == 0.5
    assert result.mean_accuracy == pytest.approx(0.5)
    assert result.accuracy == pytest.approx(1 / 3)


def test_dilation_grows_into_background_only() -> None:
    before = occupancy()
    after = dilated_by_one(before)
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    assert (after == 3).sum() == 27 + 6 * 9  # a cube of 3 and its six faces, no edges
    assert after[1, 5, 5] == 1 and after[8, 5, 5] == 2 and after[13, 5, 5] == 3
    assert after[4, 7, 5] == 1 and after[5, 7, 5] == 2
    assert after[13, 3, 5] == 0


def test_dilation_at_the_border_does_not_wrap() -> None:
    volume = np.zeros((4, 4, 4), np.uint16)
    volume[0, 0, 0] = 7
    after = dilated_by_one(volume)
    assert np.argwhere(after).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_dilation_decides_a_hit_beside_the_particle() -> None:
    pick = np.array([(17, 5, 5)], float)
    hit, _ = match_shrec(pick, TRUE, occupancy(), [1, 2, 3])
    assert localization(hit).tp == 0
    hit, _ = match_shrec(pick, TRUE, dilated_by_one(occupancy()), [1, 2, 3])
    assert localization(hit).tp == 1
    assert localization(hit).ad_vox == 2


def test_an_id_that_the_truth_does_not_list_is_background() -> None:
    matching, _ = match_shrec(TRUE, TRUE[:2], occupancy(), [1, 2])
    assert matching.true_of_prediction.tolist() == [0, 1, -1]


def test_assignment_prefers_more_pairs_to_nearer_ones() -> None:
    """The middle pick is nearest to the middle particle, but then one of the two stays alone."""
    true = np.array([(0, 0, 0), (4, 0, 0)], float)
    picks = np.array([(3.5, 0, 0), (7, 0, 0)], float)
    pairs = match_one_to_one(picks, true, 4)
    assert pairs.prediction_of_true.tolist() == [0, 1]
    np.testing.assert_allclose(pairs.distance_vox, [3.5, 3])


def test_one_particle_takes_one_pick() -> None:
    true = np.array([(0, 0, 0)], float)
    picks = np.array([(1, 0, 0), (0.5, 0, 0), (-2, 0, 0)], float)
    pairs = match_one_to_one(picks, true, 5)
    assert pairs.true_of_prediction.tolist() == [-1, 0, -1]
    score = localization(pairs)
    assert (score.tp, score.fp, score.fn, score.mh) == (1, 2, 0, 0)


def test_the_distance_itself_is_within() -> None:
    true = np.array([(0, 0, 0)], float)
    assert localization(match_one_to_one(true + np.array([3, 4, 0]), true, 5)).tp == 1
    assert localization(match_one_to_one(true + np.array([3, 4, 0.01]), true, 5)).tp == 0


def test_each_particle_has_its_own_tolerance() -> None:
    true = np.array([(0, 0, 0), (20, 0, 0)], float)
    picks = true + np.array([2, 0, 0])
    pairs = match_one_to_one(picks, true, np.array([1.0, 3.0]))
    assert pairs.prediction_of_true.tolist() == [-1, 1]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_found_or_nothing_there_is_legal(n: int, m: int) -> None:
    picks, true = TRUE[:n], TRUE[:m]
    shrec, outside = match_shrec(picks, true, occupancy(), range(1, m + 1))
    for matching in (match_one_to_one(picks, true, 5), shrec):
        score = localization(matching, outside=outside)
        assert (score.tp, score.fp, score.fn) == (0, n, m)
        assert (score.precision, score.recall, score.f1) == (0, 0, 0)
        assert np.isnan(score.ad_vox)
        result = classification(matching, ["a"] * n, ["a"] * m)
        assert result.confusion.to_numpy().sum() == n + m


points = st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=8)


@settings(max_examples=60, deadline=None)
@given(points, points)
def test_equals_one_dense_assignment(picks: list, true: list) -> None:
    """Solving neighbourhoods apart changes nothing: as many pairs, as short in sum."""
    a, b = np.reshape(picks, (-1, 3)).astype(float), np.reshape(true, (-1, 3)).astype(float)
    pairs = match_one_to_one(a, b, 2.5)
    length = np.linalg.norm(a[:, None] - b[None], axis=2)
    cost = np.where(length <= 2.5, length - 1000, 0)
    dense = cost[linear_sum_assignment(cost)]
    found = pairs.prediction_of_true >= 0
    assert found.sum() == (dense < 0).sum()
    assert pairs.distance_vox[found].sum() == pytest.approx((dense[dense < 0] + 1000).sum())


def test_three_thousand_particles_take_a_moment() -> None:
    random = np.random.default_rng(1)
    true = random.uniform(0, 400, (3000, 3))
    picks = true[random.permutation(3000)] + random.normal(0, 0.2, (3000, 3))
    start = time.perf_counter()
    assert localization(match_one_to_one(picks, true, 5)).recall == 1
    assert time.perf_counter() - start < 10


def test_f_beta_by_hand() -> None:
    assert f_beta(0.5, 0.5, beta=4) == pytest.approx(0.5)
    assert f_beta(0.25, 1.0, beta=4) == pytest.approx(17 * 0.25 / (16 * 0.25 + 1))
    assert f_beta(0.0, 0.0, beta=4) == 0
