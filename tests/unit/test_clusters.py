"""Mean-shift is scikit-learn's; touching balls come apart; fragments of one particle merge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.cluster import MeanShift

from tomoline.ops import clusters
from tomoline.ops.clusters import (
    find_clusters,
    find_seeds,
    gather_foreground,
    mean_shift,
    rejection_reasons,
)


def _balls(shape, centres, radius):
    mask = np.zeros(shape, bool)
    grid = np.indices(shape)
    for centre in centres:
        mask |= sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2
    return mask


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), bandwidth=st.sampled_from([1.0, 1.7, 2.0, 3.0, 4.5, 9.0]))
def test_mean_shift_equals_scikit_learn_to_the_last_digit(seed, bandwidth):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((12, 15, 18)), 1.5)
    mask = noise > np.quantile(noise, 0.85)
    points = np.argwhere(mask).astype(float)
    seeds = points[rng.integers(0, len(points), 25)] + rng.normal(0, 0.7, (25, 3))
    wanted = MeanShift(bandwidth=bandwidth, seeds=seeds).fit(points)
    found = mean_shift(mask, seeds, bandwidth_vox=bandwidth)
    np.testing.assert_array_equal(found.centres, wanted.cluster_centers_)


def test_mean_shift_equals_scikit_learn_on_integer_seeds_where_distances_tie():
    mask = _balls((14, 14, 30), [(7, 7, 6), (7, 7, 13), (6, 7, 23)], 3)
    seeds = np.argwhere(mask).astype(float)[::5]
    for bandwidth in (2.0, 3.0, 5.0):
        wanted = MeanShift(bandwidth=bandwidth, seeds=seeds).fit(np.argwhere(mask).astype(float))
        found = mean_shift(mask, seeds, bandwidth_vox=bandwidth)
        np.testing.assert_array_equal(found.centres, wanted.cluster_centers_)


def test_mean_shift_stops_where_scikit_learn_stops():
    mask = np.zeros((3, 3, 80), bool)
    mask[1, 1] = np.random.default_rng(1).random(80) < 0.5
    points = np.argwhere(mask).astype(float)
    for limit in (0, 1, 2, 5):
        wanted = MeanShift(bandwidth=6, seeds=points, max_iter=limit).fit(points)
        found = mean_shift(mask, points, bandwidth_vox=6, max_iterations=limit)
        np.testing.assert_array_equal(found.centres, wanted.cluster_centers_)


def test_batches_do_not_show(monkeypatch):
    mask = np.random.default_rng(2).random((15, 15, 15)) < 0.2
    seeds = np.argwhere(mask)[::7].astype(float)
    whole = mean_shift(mask, seeds, bandwidth_vox=3.3)
    monkeypatch.setattr(clusters, "_BATCH_VOXELS", 2000)
    np.testing.assert_array_equal(mean_shift(mask, seeds, bandwidth_vox=3.3).centres, whole.centres)


def test_seeds_with_nothing_near_are_dropped():
    mask = np.zeros((20, 20, 20), bool)
    mask[3, 3, 3] = True
    found = mean_shift(mask, np.array([[3.0, 3, 4], [15, 15, 15]]), bandwidth_vox=2)
    np.testing.assert_array_equal(found.centres, [[3, 3, 3]])
    np.testing.assert_array_equal(found.counts, [1])


def test_planted_balls_come_back_in_order_with_their_measures():
    centres = [(8, 9, 30), (8, 30, 9), (8, 30, 33), (25, 12, 12)]
    mask = _balls((34, 40, 44), centres, 3)
    probability = np.where(mask, 0.75, 0.1).astype(np.float32)
    found = find_clusters(mask, probability, bandwidth_vox=4)
    np.testing.assert_allclose(found.centres, centres, atol=1e-9)
    np.testing.assert_array_equal(found.size_vox, [mask.sum() / 4] * 4)
    np.testing.assert_allclose(found.mean_probability, 0.75)
    # The peak of a ball that a Gaussian of one voxel has hardly lowered.
    assert ((found.score > 0.7) & (found.score <= 0.75)).all()


def test_centres_are_sub_voxel_where_the_probability_says_so():
    truth = np.array([10.3, 11.6, 9.45])
    grid = np.indices((21, 23, 20))
    square = sum((g - c) ** 2 for g, c in zip(grid, truth, strict=True))
    probability = np.exp(-square / (2 * 2.0**2)).astype(np.float32)
    found = find_clusters(probability > 0.2, probability, bandwidth_vox=4)
    np.testing.assert_allclose(found.centres, [truth], atol=0.05)


@pytest.mark.parametrize("distance", [6, 7, 8])
def test_touching_balls_come_apart(distance):
    centres = [(10, 10, 10), (10, 10 + distance, 10), (10, 10, 10 + distance)]
    mask = _balls((21, 32, 32), centres, distance / 2)
    mask[10, 10 : 10 + distance, 10] = True  # a bridge even where they only touch
    mask[10, 10, 10 : 10 + distance] = True
    found = find_clusters(mask, mask.astype(np.float32), bandwidth_vox=3, split_above_vox=50)
    assert len(found.centres) == 3
    wanted = np.array(sorted(centres, key=lambda c: c))
    assert np.linalg.norm(found.centres - wanted, axis=1).max() < 0.6


def test_two_equal_balls_leave_no_third_centre_in_their_neck():
    mask = _balls((20, 20, 40), [(10, 10, 10), (10, 10, 20)], 5)
    found = find_clusters(mask, mask.astype(np.float32), bandwidth_vox=4, split_above_vox=100)
    assert len(found.centres) == 2
    np.testing.assert_allclose(found.centres[:, 2], [10, 20], atol=0.2)


def test_fragments_of_one_particle_merge():
    mask = np.zeros((20, 20, 20), bool)
    mask[9:12, 9:12, 6:8] = mask[9:12, 9:12, 9:11] = True
    found = find_clusters(mask, mask.astype(np.float32), bandwidth_vox=4)
    np.testing.assert_allclose(found.centres, [[10, 10, 8]])
    assert found.size_vox[0] == mask.sum()
    apart = find_clusters(
        mask, mask.astype(np.float32), bandwidth_vox=1.5, merge_distance_vox=1.5
    )  # fmt: skip
    assert len(apart.centres) == 2


def test_a_hollow_component_is_not_lost():
    shell = _balls((25, 25, 25), [(12, 12, 12)], 8) & ~_balls((25, 25, 25), [(12, 12, 12)], 7)
    found = find_clusters(
        shell, shell.astype(np.float32), bandwidth_vox=3, split_above_vox=10_000
    )  # fmt: skip
    assert len(found.centres) == 1
    assert found.size_vox[0] == shell.sum()


def test_every_component_has_a_seed_and_blocks_do_not_show(monkeypatch):
    noise = ndimage.gaussian_filter(np.random.default_rng(5).random((30, 40, 50)), 2)
    mask = noise > np.quantile(noise, 0.8)
    voxels = gather_foreground(mask, noise.astype(np.float32))
    seeds = find_seeds(mask, voxels, split_above_vox=60, bandwidth_vox=3)
    monkeypatch.setattr(clusters, "_BLOCK_VOX", 11)
    again = find_seeds(mask, voxels, split_above_vox=60, bandwidth_vox=3)
    np.testing.assert_array_equal(seeds, again)
    assert len(seeds) >= voxels.component.max()
    monkeypatch.setattr(clusters, "_BATCH_VOXELS", 1000)
    slabs = gather_foreground(mask, noise.astype(np.float32))
    np.testing.assert_array_equal(slabs.position, voxels.position)
    np.testing.assert_allclose(slabs.smoothed, voxels.smoothed, rtol=1e-6)


def test_a_solid_volume_is_searched_and_an_empty_one_is_empty():
    shape = (24, 40, 40)
    full = find_clusters(np.ones(shape, np.int8), np.ones(shape, np.float32), bandwidth_vox=6)
    assert len(full.centres) > 3
    assert full.size_vox.sum() == np.prod(shape)
    empty = find_clusters(np.zeros(shape, np.int8), np.zeros(shape, np.float32), bandwidth_vox=6)
    assert empty.centres.shape == (0, 3)
    assert rejection_reasons(empty, shape, min_size_vox=3) == []


def test_rejects_have_reasons():
    centres = [(10, 10, 3), (10, 10, 14), (10, 10, 25)]
    mask = _balls((20, 20, 40), centres[1:], 3)
    mask[10, 10, 3] = True
    mask[10, 10, 35] = True
    mask[8:13, 8:13, 23:28] = True
    probability = np.where(mask, 0.9, 0.0).astype(np.float32)
    probability[:, :, 9:20] *= 0.5
    found = find_clusters(mask, probability, bandwidth_vox=4)
    reasons = rejection_reasons(
        found, mask.shape, min_size_vox=3, max_size_vox=125, min_score=0.5, border_vox=4
    )  # fmt: skip
    assert (
        reasons[0] == "smaller than 3 voxels; score below 0.5; closer than 4 voxels to the border"
    )
    assert reasons[1:3] == ["score below 0.5", "larger than 125 voxels"]
    assert "border" not in reasons[3]
    assert all(rejection_reasons(found, mask.shape)[i] == "" for i in range(4))
