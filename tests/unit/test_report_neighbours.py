"""Distances between particles, and what chance would give."""

import numpy as np
import pytest

from tomoline.report import neighbours


def test_nearest_is_the_other_one() -> None:
    places = np.array([[0, 0, 0], [0, 0, 3], [0, 4, 3.0]])
    assert neighbours.nearest(places).tolist() == [3, 3, 4]
    assert np.isnan(neighbours.nearest(places[:1])).all()


def test_expected_counts_are_those_of_points_strewn_at_random() -> None:
    rng = np.random.default_rng(1)
    n, side = 20_000, 100.0
    places = rng.uniform(0, side, (n, 3))
    edges = np.linspace(0, 7, 13)
    inside = ((places > 10) & (places < side - 10)).all(axis=1)  # no surface is near
    found = np.histogram(neighbours.nearest(places)[inside], bins=edges)[0] / inside.sum()
    expected = neighbours.expected_counts(edges, n, side**3)
    assert expected.sum() == pytest.approx(n, rel=0.01)
    assert np.abs(found - expected / n).max() < 0.02


def test_close_pairs_go_by_both_particles_sizes() -> None:
    places = np.array([[0, 0, 0], [0, 0, 5], [0, 0, 50], [0, 0, 55.0]])
    radii = np.array([4.0, 4.0, 6.0, 6.0])
    # Half the mean diameter is 4 for the first two, 6 for the others.
    assert neighbours.close_pairs(places, radii) == 1
    assert neighbours.close_pairs(places[:1], radii[:1]) == 0


def test_section_is_left_out_where_there_is_nothing_to_measure() -> None:
    alone = neighbours.neighbours_html(np.zeros((1, 3)), np.ones(1), (9, 9, 9), nm_per_voxel=1)
    assert alone == ""
    same = np.zeros((3, 3))
    text = neighbours.neighbours_html(same, np.ones(3), (9, 9, 9), nm_per_voxel=1.0)
    assert "3 pairs of 3 particles lie nearer" in text and "nan" not in text
