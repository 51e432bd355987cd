"""The majority of the voxels of the particle at the centre, and of no neighbour's."""

import numpy as np
import pytest

from tomoline.ops.votes import central_component, own_voxels, vote, vote_of_views, vote_radius

CENTRE = np.array([12.0, 12.0, 12.0])


def _ball(centre, radius, edge=25):
    grid = np.indices((edge,) * 3)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def _softmax(labels, classes=4, sure=0.7):
    """Probabilities as stored: `sure` for the label, the rest shared, times 255."""
    p = np.full((classes, *labels.shape), (1 - sure) / (classes - 1))
    np.put_along_axis(p, labels[None].astype(int), sure, 0)
    return np.rint(255 * p).astype(np.uint8)


def test_one_particle_of_one_class():
    labels = np.where(_ball(CENTRE, 5), 2, 0).astype(np.uint8)
    found = vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3)
    assert (found.label, found.share, found.margin) == (2, 1.0, 1.0)
    assert found.voxels == _ball(CENTRE, 5).sum()
    np.testing.assert_allclose(found.probabilities.sum(), 1)
    # 0.7 for the class and 0.1 for each of the two others: 0.7 / 0.9.
    np.testing.assert_allclose(found.probabilities, [1 / 9, 7 / 9, 1 / 9], atol=0.01)


def test_share_and_margin_count_voxels():
    labels = np.zeros((25, 25, 25), np.uint8)
    labels[12, 12, 8:18] = [1, 1, 1, 3, 3, 3, 3, 3, 3, 2]
    found = vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3)
    assert found.label == 3
    assert found.share == pytest.approx(0.6)
    assert found.margin == pytest.approx(0.3)


def test_equal_votes_go_to_the_more_probable_class():
    labels = np.zeros((25, 25, 25), np.uint8)
    labels[12, 12, 10:14] = [1, 1, 3, 3]
    probabilities = _softmax(labels)
    probabilities[3, 12, 12, 12:14] = 250
    assert vote(labels, probabilities, CENTRE, centre_radius_vox=3).label == 3
    assert vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3).label == 1


def test_background_alone_has_no_vote():
    labels = np.zeros((25, 25, 25), np.uint8)
    assert vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3) is None
    labels[12, 12, 20:24] = 1  # a neighbour in the box is not the particle
    assert vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3) is None


@pytest.mark.parametrize("radius,voted", [(2.5, False), (3.0, True)])
def test_a_hollow_particle_needs_the_centre_radius(radius, voted):
    labels = np.where(_ball(CENTRE, 6) & ~_ball(CENTRE, 2.9), 1, 0).astype(np.uint8)
    found = vote(labels, _softmax(labels), CENTRE, centre_radius_vox=radius)
    assert (found is not None) == voted
    if found:
        assert found.voxels == (labels > 0).sum()


def test_with_radius_0_the_voxel_of_the_centre_still_counts():
    labels = np.zeros((25, 25, 25), np.uint8)
    labels[12, 12, 12] = 2
    found = vote(
        labels, _softmax(labels), CENTRE + np.array([0.49, -0.49, 0.49]), centre_radius_vox=0
    )
    assert found.label == 2


def test_only_the_component_at_the_centre_votes():
    labels = np.where(_ball(CENTRE, 3), 1, 0).astype(np.uint8)
    labels[_ball((12, 12, 21), 3.5)] = 2  # nearly as large, not touching
    assert vote(labels, _softmax(labels), CENTRE, centre_radius_vox=3).share == 1


def test_a_large_neighbour_that_touches_does_not_outvote_a_small_particle():
    small, large = np.array([6.0, 12, 12]), np.array([17.0, 12, 12])
    labels = np.where(_ball(large, 7.5), 2, 0).astype(np.uint8)
    labels[_ball(small, 3.5)] = 1
    size = _ball(small, 1.75).sum()  # what the localizer marks of it
    assert vote(labels, _softmax(labels), small, centre_radius_vox=3).label == 2
    radius = vote_radius(size, centre_radius_vox=3)
    for others in (None, large[None]):
        found = vote(labels, _softmax(labels), small, centre_radius_vox=3, radius_vox=radius,
                     others_zyx=others)  # fmt: skip
        assert found.label == 1
        assert found.share > 0.8


def test_voxels_nearer_to_another_candidate_vote_for_that_one():
    left, right = np.array([12.0, 12, 8]), np.array([12.0, 12, 16])
    labels = np.where(_ball(left, 4), 1, 0).astype(np.uint8)
    labels[_ball(right, 4)] = 3
    for here, there, label in ((left, right, 1), (right, left, 3)):
        mask = central_component(labels, here, centre_radius_vox=3, others_zyx=there[None])
        found = vote(labels, _softmax(labels), here, centre_radius_vox=3, others_zyx=there[None])
        assert found.label == label
        assert found.voxels == mask.sum()
        assert not mask[tuple(there.astype(int))]


def test_vote_radius_follows_the_cluster_and_has_a_least_value():
    assert vote_radius(4 / 3 * np.pi * 3**3, centre_radius_vox=3) == pytest.approx(7.5)
    assert vote_radius(1, centre_radius_vox=3) == 5


def test_views_of_a_whole_subtomogram_vote():
    views = np.array([[0.2, 0.5, 0.2, 0.1], [0.2, 0.3, 0.4, 0.1], [0.2, 0.6, 0.1, 0.1]])
    found = vote_of_views(views)
    assert found.label == 1 and found.share == pytest.approx(2 / 3)
    assert found.background == pytest.approx(0.2)
    structures = views.mean(0)[1:] / views.mean(0)[1:].sum()
    np.testing.assert_allclose(found.probabilities, structures)
    assert found.margin == pytest.approx(structures[0] - structures[1])
    assert found.voxels == 0 and not found.voters.any()


def test_the_most_probable_structure_is_named_whichever_has_more_views():
    views = np.array([[0, 0.45, 0.55], [0, 0.45, 0.55], [0, 1.0, 0.0]])
    found = vote_of_views(views)
    assert (found.label, found.share) == (1, pytest.approx(1 / 3))


def test_a_single_structure_has_no_runner_up():
    found = vote_of_views(np.array([[0.4, 0.6]]))
    assert (found.label, found.share, found.margin) == (1, 1.0, 1.0)
    np.testing.assert_allclose(found.probabilities, [1.0])


def test_own_voxels_end_where_another_candidate_is_nearer():
    alone = own_voxels((25, 25, 25), CENTRE, radius_vox=5)
    assert (alone == _ball(CENTRE, 5)).all()
    beside = own_voxels(
        (25, 25, 25), CENTRE, radius_vox=5, others_zyx=CENTRE + np.array([[0, 0, 4.0]])
    )
    assert (beside == (alone & (np.arange(25) <= 14))).all()
