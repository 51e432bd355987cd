"""What a classifier of whole subtomograms makes of a localizer's candidates: is there a particle?

A localizer at a low threshold misses few particles and marks much else. The classifier's
probability of background tells the two apart far better than the localizer's score does, but it is
that of its training, where background was as frequent as was set. A logistic regression of both, on
tomograms with truth, makes them the probability that a candidate is a particle:

    p = 1 / (1 + exp(-(intercept + a logit(score) - b logit(background))))   with a, b >= 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.networks.cards import Sift

Floats = NDArray[np.float64]
# Beyond these odds neither network knows.
LEAST_ODDS = 1e-4
# Strength of the fit's shrinking, which matters only where hits and misses do not overlap at all.
SLACK = 100.0


@dataclass(frozen=True)
class Weights:
    """Coefficients of the regression; see the module's text."""

    intercept: float
    score: float
    background: float


def fit_weights(score: Floats, background: Floats, hit: NDArray[Any]) -> Weights:
    """Fit the regression to candidates `(n,)`, of which some are particles and some not.

    A weight that came out with the wrong sign, which says that its term tells nothing, is 0.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - takes a second to load

    terms = np.stack([logit(score), -logit(background)], axis=1)
    use = [0, 1]
    while use:
        model = LogisticRegression(C=SLACK).fit(terms[:, use], np.asarray(hit, bool))
        wrong = [k for k, weight in zip(use, model.coef_[0], strict=True) if weight < 0]
        if not wrong:
            found = dict(zip(use, model.coef_[0], strict=True))
            return Weights(
                float(model.intercept_[0]), float(found.get(0, 0.0)), float(found.get(1, 0.0))
            )
        use = [k for k in use if k not in wrong]
    share = float(np.mean(hit))
    return Weights(float(np.log(share / (1 - share))), 0.0, 0.0)


def particle_probability(score: Floats, background: Floats, sift: Weights | Sift) -> Floats:
    """Probability that candidates `(n,)` are particles, by the localizer's score and the
    classifier's probability of background."""
    terms = sift.intercept + sift.score * logit(score) - sift.background * logit(background)
    result: Floats = 1 / (1 + np.exp(-terms))
    return result


def best_cut(probability: Floats, hit: NDArray[Any], total: int) -> tuple[float, float]:
    """The probability from which on candidates are taken so that F1 is largest, and that F1.

    `total` is the number of true particles, found or not.
    """
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum(np.asarray(hit, bool)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
    best = int(f1.argmax())
    ranked = probability[order]
    # Between the last one taken and the first one left.
    cut = (ranked[best] + ranked[best + 1]) / 2 if best + 1 < len(ranked) else ranked[best] / 2
    return float(cut), float(f1[best])


def logit(p: Floats) -> Floats:
    """Log-odds of probabilities, which are kept from 0 and 1."""
    kept = np.clip(np.asarray(p, np.float64), LEAST_ODDS, 1 - LEAST_ODDS)
    result: Floats = np.log(kept / (1 - kept))
    return result
