"""What a classifier of whole subtomograms makes of a localizer's candidates: is there a particle?

A localizer at a low threshold misses few particles and marks much else. The classifier's
probability of background tells the two apart far better than the localizer's score does, but it is
that of its training, where background was as frequent as was set, and neither network knows how far
particles stand out of the noise in this tomogram (`tomoline.ops.contrast`). A logistic regression
of all three, on tomograms with truth, makes them the probability that a candidate is a particle:

    p = 1 / (1 + exp(-(intercept + a logit(score) - b logit(background) + c log(contrast))))

with a, b, c >= 0.
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
# Noise alone has about 2, and beads have any; what is beyond these tells no more.
CONTRASTS = 1.0, 8.0
# Strength of the fit's shrinking, which matters only where hits and misses do not overlap at all.
SLACK = 100.0


@dataclass(frozen=True)
class Evidence:
    """What speaks for candidates `(n,)`: the localizer's score, the classifier's probability of
    background, and the density's contrast."""

    score: Floats
    background: Floats
    contrast: Floats

    def __getitem__(self, rows: Any) -> Evidence:
        """Some of the candidates."""
        return Evidence(self.score[rows], self.background[rows], self.contrast[rows])

    def terms(self) -> Floats:
        """The regression's terms `(n, 3)`, each growing with the odds of a particle."""
        contrast = np.log(np.clip(self.contrast, *CONTRASTS))
        return np.stack([logit(self.score), -logit(self.background), contrast], axis=1)


@dataclass(frozen=True)
class Weights:
    """Coefficients of the regression; see the module's text."""

    intercept: float
    score: float
    background: float
    contrast: float


def fit_weights(evidence: Evidence, hit: NDArray[Any]) -> Weights:
    """Fit the regression to candidates `(n,)`, of which some are particles and some not.

    A weight that came out with the wrong sign, which says that its term tells nothing, is 0.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - takes a second to load

    terms = evidence.terms()
    use = [0, 1, 2]
    while use:
        model = LogisticRegression(C=SLACK).fit(terms[:, use], np.asarray(hit, bool))
        wrong = [k for k, weight in zip(use, model.coef_[0], strict=True) if weight < 0]
        if not wrong:
            found = dict(zip(use, (float(w) for w in model.coef_[0]), strict=True))
            return Weights(float(model.intercept_[0]), *(found.get(k, 0.0) for k in range(3)))
        use = [k for k in use if k not in wrong]
    share = float(np.mean(hit))
    return Weights(float(np.log(share / (1 - share))), 0.0, 0.0, 0.0)


def particle_probability(evidence: Evidence, sift: Weights | Sift) -> Floats:
    """Probability that candidates `(n,)` are particles."""
    odds = sift.intercept + evidence.terms() @ (sift.score, sift.background, sift.contrast)
    result: Floats = 1 / (1 + np.exp(-odds))
    return result


def best_cut(
    probability: Floats, hit: NDArray[Any], total: int, *, as_good: float = 0.0
) -> tuple[float, float]:
    """The probability from which on candidates are taken so that F1 is largest, and its F1.

    `total` is the number of true particles, found or not. F1 hardly changes about its maximum: of
    the cuts that fall short of it by no more than `as_good` the highest is taken, which keeps the
    fewest false ones.
    """
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum(np.asarray(hit, bool)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
    best = int(np.flatnonzero(f1 >= f1.max() - as_good)[0])
    ranked = probability[order]
    # Between the last one taken and the first one left.
    cut = (ranked[best] + ranked[best + 1]) / 2 if best + 1 < len(ranked) else ranked[best] / 2
    return float(cut), float(f1[best])


def logit(p: Floats) -> Floats:
    """Log-odds of probabilities, which are kept from 0 and 1."""
    kept = np.clip(np.asarray(p, np.float64), LEAST_ODDS, 1 - LEAST_ODDS)
    result: Floats = np.log(kept / (1 - kept))
    return result
