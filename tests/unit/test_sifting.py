"""A classifier's probability of background and a localizer's score become one probability."""

import numpy as np
import pytest

from tomoline.evaluation.sifting import best_cut, fit_weights, logit, particle_probability
from tomoline.networks.cards import ModelCard


def drawn(n=4000, seed=0, *, score=1.0, background=2.0, intercept=-1.0):
    """Candidates whose chance of being a particle is known."""
    rng = np.random.default_rng(seed)
    s, b = rng.uniform(0.3, 0.99, n), rng.uniform(0.01, 0.9, n)
    p = 1 / (1 + np.exp(-(intercept + score * logit(s) - background * logit(b))))
    return s, b, p, rng.random(n) < p


def test_the_weights_that_made_the_hits_are_found():
    s, b, p, hit = drawn()
    found = fit_weights(s, b, hit)
    assert found.score == pytest.approx(1.0, abs=0.15)
    assert found.background == pytest.approx(2.0, abs=0.2)
    assert found.intercept == pytest.approx(-1.0, abs=0.2)
    assert np.abs(particle_probability(s, b, found) - p).max() < 0.1


def test_a_term_that_tells_the_wrong_way_is_left_out():
    s, b, _, hit = drawn(score=-1.0)
    found = fit_weights(s, b, hit)
    assert found.score == 0 and found.background > 1
    s, b, _, hit = drawn(score=-1.0, background=-1.0)
    found = fit_weights(s, b, hit)
    assert found.score == found.background == 0
    assert particle_probability(s[:1], b[:1], found)[0] == pytest.approx(hit.mean())


def test_certainty_stays_finite():
    found = fit_weights(np.array([0.2, 0.3, 0.8, 0.9]), np.array([1.0, 1, 0, 0]),
                        np.array([0, 0, 1, 1]))  # fmt: skip
    p = particle_probability(np.array([0.0, 1.0]), np.array([1.0, 0.0]), found)
    assert np.isfinite(p).all() and p[0] < 0.05 and p[1] > 0.95


def test_the_cut_with_the_best_f1():
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    hit = np.array([1, 1, 1, 0, 0, 1])
    # Of 4 particles: 3 of 3 taken gives 2 * 3 / 7, all 6 give 2 * 4 / 10.
    assert best_cut(p, hit, 4) == (pytest.approx(0.65), pytest.approx(6 / 7))
    # One more that was never found: 6 / 8 against 8 / 11.
    assert best_cut(p, hit, 5) == (pytest.approx(0.65), pytest.approx(6 / 8))
    cut, f1 = best_cut(p, np.ones(6), 6)
    assert f1 == 1 and 0 < cut < 0.4


def card(**given):
    return ModelCard(**{
        "name": "c", "network": "dsmnet", "parameters": {}, "role": "classifier",
        "classes": ["background", "a"], "voxel_size_angstrom": 10.0, "box_vox": 16,
        "voxel_size_range_angstrom": (9.0, 11.0), "receptive_field_vox": 1, "n_parameters": 1,
        **given,
    })  # fmt: skip


def test_it_is_for_the_localizer_it_was_fitted_to():
    sift = {"localizer_sha256": "abc", "threshold": 0.6, "least": 0.4, "intercept": 0.1,
            "score": 1.0, "background": 0.5}  # fmt: skip
    own = card(sift=sift)
    assert own.sift_for(card(weights_sha256="abc")).threshold == 0.6
    assert own.sift_for(card(weights_sha256="abd")) is None
    assert card().sift_for(card()) is None
