"""What scores and probabilities are worth: temperature, precision curve, reliability.

Class probabilities: temperature scaling (Guo et al., ICML 2017), fitted on a particle's voted
probabilities. One number and not one a class: it keeps the order of the classes, so it can never
change which one is named, and some hundred particles determine it, where vectors follow the classes
that happen to be common in the calibration's tomograms.

Scores: the probability that a candidate is a particle, as a rising function of its score. A
logistic curve (two numbers; Platt 1999) and an isotonic one are fitted; the one with the higher
likelihood on tomograms left out of the fit is kept, as points between which one interpolates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Curve = list[tuple[float, float]]
Kind = Literal["logistic", "isotonic"]

BINS = 10
POINTS = 20
# Probabilities are kept as bytes, so less than half a step of one is not known from nothing.
LEAST_PROBABILITY = 0.5 / 255
_TEMPERATURES = (0.05, 20.0)
_LEAST_ODDS = 1e-4  # scores of 0 and 1 have no finite logit


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions of like confidence: how many, their mean confidence, the share that was right."""

    n: int
    confidence: float
    right: float


@dataclass(frozen=True, kw_only=True)
class PrecisionFit:
    """A fitted curve and how the two kinds did on tomograms left out (mean log-likelihood)."""

    curve: Curve
    kind: Kind
    log_likelihood: dict[str, float]
    held_out: Floats  # expected precision of each candidate by the curve of the other tomograms


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities `(n, C)` to the power `1 / temperature`, each row summing to 1 again.

    A temperature above 1 makes them less sure. The order within a row stays.
    """
    logs = np.log(np.maximum(np.asarray(probabilities, float), LEAST_PROBABILITY)) / temperature
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    scaled: Floats = raised / raised.sum(axis=1, keepdims=True)
    return scaled


def class_log_likelihood(probabilities: Floats, label: NDArray[Any]) -> float:
    """Mean log of the true class's probability; `(n, C)` and indices `(n,)`."""
    own = np.asarray(probabilities, float)[np.arange(len(label)), np.asarray(label, int)]
    return float(np.log(np.maximum(own, 1e-12)).mean())


def fit_temperature(probabilities: Floats, label: NDArray[Any]) -> float:
    """Temperature with the highest likelihood of the true classes, between 0.05 and 20.

    The log-likelihood is concave in 1 / temperature, so there is one maximum.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415

    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(
        lambda t: -class_log_likelihood(tempered(probabilities, float(np.exp(t))), label),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def reliability(confidence: Floats, right: Bools, *, bins: int = BINS) -> list[Bin]:
    """Group predictions `(n,)` by confidence into bins of equal numbers; equal ones stay together.

    Bins that get nothing are left out.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, bool)
    n = len(confidence)
    if n == 0:
        return []
    order = np.sort(confidence)
    middle = (order.searchsorted(confidence, "left") + order.searchsorted(confidence, "right")) / 2
    which = np.minimum((middle / n * bins).astype(int), bins - 1)
    return [
        Bin(
            n=int((which == k).sum()),
            confidence=float(confidence[which == k].mean()),
            right=float(right[which == k].mean()),
        )
        for k in np.unique(which)
    ]


def merged_bins(bins: Sequence[Bin], *, number: int = BINS) -> list[Bin]:
    """Join bins of several tomograms, ordered by confidence, to about `number` of like mass."""
    ordered = sorted(bins, key=lambda b: b.confidence)
    counts = np.array([b.n for b in ordered], float)
    if not len(counts) or not counts.sum():
        return []
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    which = np.minimum((middle * number).astype(int), number - 1)
    joined = []
    for k in np.unique(which):
        part, weights = (
            [b for b, w in zip(ordered, which, strict=True) if w == k],
            counts[which == k],
        )
        joined.append(
            Bin(
                n=int(weights.sum()),
                confidence=float(np.average([b.confidence for b in part], weights=weights)),
                right=float(np.average([b.right for b in part], weights=weights)),
            )
        )
    return joined


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over predictions of |share right - mean confidence| of their bin; NaN without any.

    Naeini et al., AAAI 2015, with bins of equal mass rather than of equal width.
    """
    total = sum(b.n for b in bins)
    return sum(b.n * abs(b.right - b.confidence) for b in bins) / total if total else float("nan")


def expected_precision(score: Floats, curve: Sequence[tuple[float, float]]) -> Floats:
    """Probability that there is a particle, for each score `(n,)`, between the curve's points."""
    scores, precisions = np.array(curve, float).T
    found: Floats = np.interp(np.asarray(score, float), scores, precisions)
    return found


def fit_logistic(score: Floats, hit: Bools) -> Curve:
    """Logistic curve in the logit of the score, by maximum likelihood with Platt's targets.

    Those count one hit and one miss more than were seen, so that a set without misses does not
    promise certainty. The slope is not negative.
    """
    from scipy.optimize import minimize  # noqa: PLC0415

    hits = int(np.count_nonzero(hit))
    target = np.where(hit, (hits + 1) / (hits + 2), 1 / (len(hit) - hits + 2))
    x = _logit(score)

    def cost(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        slope = 1 / (1 + np.exp(-z)) - target
        return float((np.logaddexp(0, z) - target * z).sum()), np.array([slope @ x, slope.sum()])

    prior = float(np.log((hits + 1) / (len(hit) - hits + 1)))
    found = minimize(
        cost, np.array([0.0, prior]), jac=True, method="L-BFGS-B", bounds=[(0, 50), (None, None)]
    )
    points = _places(score)
    seen = np.minimum(points, np.max(score))  # no promise beyond the best score that was seen
    values = 1 / (1 + np.exp(-(found.x[0] * _logit(seen) + found.x[1])))
    return _rising(points, values, len(score))


def fit_isotonic(score: Floats, hit: Bools) -> Curve:
    """Isotonic curve, its steps joined by straight lines between their middles.

    Each step counts one hit and one miss more than it has, which keeps it off 0 and 1.
    """
    # Slow to import, and the stages that only apply a curve need neither this nor the above.
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    order = np.argsort(score, kind="stable")
    score, hit = np.asarray(score, float)[order], np.asarray(hit, float)[order]
    level = IsotonicRegression(increasing=True).fit_transform(score, hit)
    _, first, count = np.unique(level, return_index=True, return_counts=True)
    starts = np.sort(first)
    count = np.diff(np.append(starts, len(level)))
    middles = np.array([score[a : a + n].mean() for a, n in zip(starts, count, strict=True)])
    shares = np.array(
        [(hit[a : a + n].sum() + 1) / (n + 2) for a, n in zip(starts, count, strict=True)]
    )
    shares = IsotonicRegression(increasing=True).fit_transform(middles, shares, sample_weight=count)
    points = _places(score)
    return _rising(
        points, np.interp(points, np.append(0.0, middles), np.append(0.0, shares)), len(score)
    )


_FITS: dict[Kind, Callable[[Floats, Bools], Curve]] = {
    "logistic": fit_logistic,
    "isotonic": fit_isotonic,
}


def fit_precision(score: Floats, hit: Bools, tomogram: NDArray[Any]) -> PrecisionFit:
    """Fit both kinds of curve and keep the one that foretells left-out tomograms better.

    Parameters
    ----------
    score, hit, tomogram:
        `(n,)` of each candidate: its score, whether it is a particle, which tomogram it is of
        (two different ones at least).
    """
    score, hit = np.asarray(score, float), np.asarray(hit, bool)
    foretold: dict[Kind, Floats] = {}
    for kind, fit in _FITS.items():
        curves = {
            name: fit(score[tomogram != name], hit[tomogram != name])
            for name in np.unique(tomogram)
        }
        foretold[kind] = np.zeros(len(score))
        for name, curve in curves.items():
            own = tomogram == name
            foretold[kind][own] = expected_precision(score[own], curve)
    likelihood = {kind: _log_likelihood(p, hit) for kind, p in foretold.items()}
    best: Kind = "isotonic" if likelihood["isotonic"] > likelihood["logistic"] else "logistic"
    return PrecisionFit(
        curve=_FITS[best](score, hit), kind=best,
        log_likelihood={str(kind): value for kind, value in likelihood.items()},
        held_out=foretold[best],
    )  # fmt: skip


def left_out(
    fit: Callable[[Bools], Any], apply: Callable[[Any, Bools], Any], tomogram: NDArray[Any]
) -> Any:
    """Apply to each tomogram's rows what was fitted on the rows of all the others."""
    result: Any = None
    for name in np.unique(tomogram):
        part = np.asarray(tomogram == name)
        values = np.asarray(apply(fit(~part), part))
        if result is None:
            result = np.zeros((len(part), *values.shape[1:]))
        result[part] = values
    return result


def least_score(score: Floats, expected: Floats, wanted: float) -> tuple[float, int] | None:
    """Least score from which on the particles `(n,)` have a mean expected precision of `wanted`.

    Returns that score, which one of them has, and how many reach it; None where none do.
    """
    order = np.argsort(-np.asarray(score, float), kind="stable")
    sorted_scores = np.asarray(score, float)[order]
    mean = np.cumsum(np.asarray(expected, float)[order]) / np.arange(1, len(order) + 1)
    # Equal scores go together: only the last of them says what a threshold there gives.
    last = np.append(sorted_scores[1:] < sorted_scores[:-1], True) if len(order) else np.zeros(0)
    good = np.flatnonzero((mean >= wanted - 1e-9) & (last > 0))
    return (float(sorted_scores[good[-1]]), int(good[-1]) + 1) if len(good) else None


def _logit(score: Floats) -> Floats:
    p = np.clip(np.asarray(score, float), _LEAST_ODDS, 1 - _LEAST_ODDS)
    logits: Floats = np.log(p / (1 - p))
    return logits


def _places(score: Floats) -> Floats:
    """Scores at which a curve is kept: 0, and the rest over the range that was seen, and 1."""
    low = min(float(np.min(score)), 0.98)
    return np.unique(np.round(np.append(0.0, np.linspace(max(low, 0.01), 1.0, POINTS - 1)), 4))


def _rising(scores: Floats, precisions: Floats, n: int) -> Curve:
    """Points of a curve made of `n` candidates, which cannot promise more than n hits in n did."""
    rising = np.maximum.accumulate(np.clip(precisions, 0, 1 - 1 / (n + 2)))
    return [(round(float(s), 4), round(float(p), 4)) for s, p in zip(scores, rising, strict=True)]


def _log_likelihood(p: Floats, hit: Bools) -> float:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(np.where(hit, np.log(p), np.log1p(-p)).mean())
