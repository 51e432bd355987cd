"""Temperature, reliability, precision curve: by calculation."""

import numpy as np
import pytest

from tomoline.evaluation.calibration import (
    Bin,
    expected_calibration_error,
    expected_precision,
    fit_isotonic,
    fit_logistic,
    fit_precision,
    fit_temperature,
    least_score,
    left_out,
    merged_bins,
    reliability,
    tempered,
)
from tomoline.evaluation.curve import pooled_curve, score_curve


def drawn(n, temperature, seed=0, classes=5):
    """Probabilities and classes drawn from them; then told too boldly by 1 / temperature."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.full(classes, 2.0), n)
    label = np.array([rng.choice(classes, p=p) for p in true])
    bold = np.maximum(true, 1e-9) ** temperature
    return bold / bold.sum(1, keepdims=True), label


def test_a_temperature_is_the_power_and_one_leaves_all_as_it_is():
    p = np.array([[0.64, 0.32, 0.04]])
    np.testing.assert_allclose(tempered(p, 1.0), p)
    np.testing.assert_allclose(tempered(p, 2.0), np.sqrt(p) / np.sqrt(p).sum())
    for temperature in (0.2, 1.0, 9.0):
        scaled = tempered(np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]]), temperature)
        np.testing.assert_allclose(scaled.sum(1), 1)
        assert list(scaled.argmax(1)) == [0, 1]  # the class named stays
    assert tempered(p, 1e6)[0] == pytest.approx([1 / 3] * 3, abs=1e-4)


@pytest.mark.parametrize("boldness", [0.5, 1.0, 2.5])
def test_the_temperature_that_undoes_boldness_is_found(boldness):
    p, label = drawn(4000, boldness)
    # Probabilities below half a byte are raised, so boldness is not undone to the last digit.
    assert fit_temperature(p, label) == pytest.approx(boldness, rel=0.12)


def test_calibration_errs_less_after_the_temperature_on_other_particles():
    p, label = drawn(4000, 2.5)
    half = np.arange(4000) < 2000
    temperature = fit_temperature(p[half], label[half])
    own, truth = p[~half], label[~half]
    named = own.argmax(1)

    def error(probabilities):
        confidence = probabilities[np.arange(2000), named]
        return expected_calibration_error(reliability(confidence, named == truth))

    assert error(own) > 0.12
    assert error(tempered(own, temperature)) < 0.04


def test_the_calibration_error_is_the_mean_gap():
    confidence = np.repeat([0.55, 0.95], [50, 50])
    right = np.concatenate([np.arange(50) < 40, np.arange(50) < 40])  # 0.8 and 0.8
    bins = reliability(confidence, right, bins=2)
    assert [b.n for b in bins] == [50, 50]
    assert expected_calibration_error(bins) == pytest.approx((0.25 + 0.15) / 2)
    # Equal confidences are one bin, whatever their order.
    same = reliability(np.full(100, 0.8), np.arange(100) < 80)
    assert same == [Bin(n=100, confidence=pytest.approx(0.8), right=0.8)]
    assert expected_calibration_error(same) == pytest.approx(0)
    assert np.isnan(expected_calibration_error(reliability(np.empty(0), np.empty(0, bool))))
    spread = reliability(np.linspace(0, 1, 100), np.ones(100, bool))
    assert [b.n for b in spread] == [10] * 10


def test_bins_of_several_tomograms_are_joined_without_loss():
    parts = [Bin(n=10 + k, confidence=k / 10, right=k / 20) for k in range(10)]
    joined = merged_bins([*parts, *parts], number=5)
    assert len(joined) <= 5 and sum(b.n for b in joined) == 2 * sum(b.n for b in parts)
    for name in ("confidence", "right"):
        total = sum(b.n * getattr(b, name) for b in joined)
        assert total == pytest.approx(2 * sum(b.n * getattr(b, name) for b in parts))
    assert merged_bins([]) == []


def scored(n, seed=0):
    """Scores, and hits of probability sigmoid(3 logit(s) - 1)."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0.4, 0.98, n)
    z = 3 * np.log(score / (1 - score)) - 1
    return score, rng.random(n) < 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("fit", [fit_logistic, fit_isotonic])
def test_a_precision_curve_rises_and_foretells_what_is_drawn(fit):
    score, hit, _ = scored(5000)
    curve = fit(score, hit)
    scores, precisions = np.array(curve).T
    assert 10 <= len(curve) <= 21
    assert (np.diff(scores) > 0).all() and (np.diff(precisions) >= 0).all()
    assert scores[0] == 0 and scores[-1] == 1 and (precisions < 1).all()
    other, _, true = scored(500, seed=1)
    assert np.abs(expected_precision(other, curve) - true).mean() < 0.03


def test_a_curve_without_misses_does_not_promise_certainty():
    score = np.linspace(0.7, 0.99, 60)
    for fit in (fit_logistic, fit_isotonic):
        top = fit(score, np.ones(60, bool))[-1][1]
        assert 0.9 < top < 1
    falling = fit_logistic(score, np.arange(60) < 30)  # higher scores miss: flat, not falling
    assert falling[-1][1] == pytest.approx(falling[1][1], abs=0.01)
    assert falling[-1][1] == pytest.approx(0.5, abs=0.02)


def test_the_kind_that_foretells_left_out_tomograms_better_is_kept():
    score, hit, _ = scored(3000)
    tomogram = np.arange(3000) % 6
    assert fit_precision(score, hit, tomogram).kind == "logistic"
    step = np.random.default_rng(2).random(3000) < np.where(score > 0.7, 0.97, 0.05)
    found = fit_precision(score, step, tomogram)
    assert found.kind == "isotonic"
    assert found.log_likelihood["isotonic"] > found.log_likelihood["logistic"]
    assert expected_precision(np.array([0.6, 0.8]), found.curve) == pytest.approx(
        [0.05, 0.97], abs=0.05
    )


def test_a_tomogram_is_left_out_of_its_own_fit():
    values, tomogram = np.array([1.0, 2.0, 4.0]), np.array(["a", "a", "b"])
    means = left_out(
        lambda own: values[own].mean(), lambda m, part: np.full(part.sum(), m), tomogram
    )
    assert list(means) == [4.0, 4.0, 1.5]


def test_the_least_score_for_a_wanted_precision():
    score = np.array([0.9, 0.8, 0.7, 0.6])
    expected = np.array([1.0, 0.96, 0.86, 0.5])
    assert least_score(score, expected, 0.95) == (0.8, 2)
    assert least_score(score, expected, 0.94) == (0.7, 3)
    assert least_score(score, expected, 0.0) == (0.6, 4)
    assert least_score(score[1:], expected[1:], 0.99) is None
    assert least_score(np.empty(0), np.empty(0), 0.5) is None
    tied = least_score(np.full(4, 0.8), expected, 0.95)  # a threshold cannot part equal scores
    assert tied is None


def test_precision_and_recall_against_the_score():
    true = np.array([[10.0, 10, 10 * k] for k in range(1, 5)])
    picks = np.vstack([true[:3], [[90.0, 90, 90]]])
    score = np.array([0.95, 0.85, 0.75, 0.65])
    curve = score_curve(picks, score, true, 5.0)
    assert curve["min_score"] == [0.65, 0.75, 0.85, 0.95]
    assert curve["predictions"] == [4, 3, 2, 1] and curve["tp"] == [3, 3, 2, 1]
    assert curve["precision"] == [0.75, 1, 1, 1] and curve["recall"] == [0.75, 0.75, 0.5, 0.25]
    both = pooled_curve([curve, score_curve(picks[3:], np.array([0.8]), true, 5.0), {}])
    at = both["min_score"].index(0.75)
    assert both["particles"] == 8 and both["predictions"][at] == 4 and both["tp"][at] == 3
    assert both["predictions"][0] == 5 and both["recall"][0] == 0.375
    empty = score_curve(np.empty((0, 3)), np.empty(0), true, 5.0)
    assert empty["min_score"] == [] and pooled_curve([empty]) == {}
