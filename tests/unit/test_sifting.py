"""What both networks and the density say of a candidate becomes one probability."""

import numpy as np
import pytest

from tomoline.evaluation.sifting import (
    Evidence,
    best_cut,
    fit_weights,
    logit,
    particle_probability,
)
from tomoline.networks.cards import ModelCard


def drawn(n=4000, seed=0, *, score=1.0, background=2.0, contrast=1.5, intercept=-2.0):
    """Candidates whose chance of being a particle is known."""
    rng = np.random.default_rng(seed)
    s, b, c = rng.uniform(0.3, 0.99, n), rng.uniform(0.01, 0.9, n), np.exp(rng.uniform(0, 2, n))
    odds = intercept + score * logit(s) - background * logit(b) + contrast * np.log(c)
    p = 1 / (1 + np.exp(-odds))
    return Evidence(s, b, c), p, rng.random(n) < p


def test_the_weights_that_made_the_hits_are_found():
    evidence, p, hit = drawn()
    found = fit_weights(evidence, hit)
    assert found.score == pytest.approx(1.0, abs=0.2)
    assert found.background == pytest.approx(2.0, abs=0.3)
    assert found.contrast == pytest.approx(1.5, abs=0.2)
    assert found.intercept == pytest.approx(-2.0, abs=0.4)
    assert np.abs(particle_probability(evidence, found) - p).max() < 0.1


def test_a_term_that_tells_the_wrong_way_is_left_out():
    evidence, _, hit = drawn(score=-1.0, intercept=0.0)
    found = fit_weights(evidence, hit)
    assert found.score == 0 and found.background > 1 and found.contrast > 1
    evidence, _, hit = drawn(score=-1.0, background=-1.0, contrast=-1.0)
    found = fit_weights(evidence, hit)
    assert found.score == found.background == found.contrast == 0
    assert particle_probability(evidence[:1], found)[0] == pytest.approx(hit.mean())


def test_certainty_and_what_is_brighter_than_the_noise_stay_finite():
    evidence = Evidence(
        np.array([0.2, 0.3, 0.8, 0.9]), np.array([1.0, 1, 0, 0]), np.array([-3.0, 1, 20, 30])
    )
    found = fit_weights(evidence, np.array([0, 0, 1, 1]))
    ends = Evidence(np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([-9.0, 1e4]))
    p = particle_probability(ends, found)
    assert np.isfinite(p).all() and p[0] < 0.05 and p[1] > 0.95


def test_the_cut_with_the_best_f1():
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    hit = np.array([1, 1, 1, 0, 0, 1])
    # Of 4 particles: 3 of 3 taken gives 2 * 3 / 7, all 6 give 2 * 4 / 10.
    assert best_cut(p, hit, 4) == (pytest.approx(0.65), pytest.approx(6 / 7))
    # One more that was never found: 6 / 8 against 8 / 11.
    assert best_cut(p, hit, 5) == (pytest.approx(0.65), pytest.approx(6 / 8))
    # Two of two are nearly as good: 2 * 2 / 6 against 6 / 7.
    assert best_cut(p, hit, 4, as_good=0.2) == (pytest.approx(0.75), pytest.approx(4 / 6))
    assert best_cut(p, hit, 4, as_good=0.1) == (pytest.approx(0.65), pytest.approx(6 / 7))
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
