"""Whether a tomogram is of the kind that a model was made for, and in what it differs.

The model's card keeps the range of every statistic (`tomoline.ops.statistics`) over tomograms like
those it was trained on. How far a value lies from their median, in units of the distance of the 5
or 95 per cent quantile, is its distance: 1 is the edge of what is usual. Only differences that harm
count: fewer particles, or a network that is surer, do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tomoline.networks.cards import Domain, ModelCard, Range
from tomoline.ops.statistics import SPECTRUM, SPECTRUM_EDGES

InDomain = Literal["yes", "doubtful", "no", "unknown"]

# Set on simulated tomograms that no range was made of (docs/calibration.md has the figures).
DOUBTFUL, NO = 2.0, 4.0
# Fewer tomograms than this do not show what is usual.
LEAST_TOMOGRAMS = 5
# Noise alone stays within 0.1 of no skewness, volumes with clear bright particles lie far above the
# second.
FAINTLY_BRIGHT, BRIGHT = 0.15, 0.4
# Larger given voxels lack detail however they are rescaled.
COARSE, TOO_COARSE = 1.1, 1.5
# Bands up to 0.34 cycles a voxel hold the particles' own spectrum and the noise's; beyond, it is
# the filter. Spectra differ in SNR, defocus and more, so that the quantiles of each
# band would pass those of another voxel size; the mean distance from the nearest of many does not.
COARSE_BANDS, NEAREST = 8, 3
SPECTRAL = "spectrum_distance"
ONLY_BACKGROUND = (
    "only the background was seen: no particles here, the model can judge this tomogram"
)
UNKNOWN = (
    "the model's card does not say what it was trained on, so whether it can judge this tomogram "
    "is not known"
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The flag, one sentence for it, and the distance of each statistic that was compared."""

    in_domain: InDomain
    reason: str
    distances: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a statistic is compared: which side harms, the least unit of distance, the words.

    Words may hold `{value}`, `{low}`, `{high}` and `{what}`. Distances are multiplied by `weight`.
    """

    high: str = ""
    low: str = ""
    least_unit: float
    weight: float = 1.0


_RULES: dict[str, _Rule] = {
    "skewness": _Rule(
        high="its strongest features are bright where particles should be dark (skewness {value}, "
        "in training {low} to {high}): inverted contrast?",
        least_unit=0.3,
    ),
    "wedge": _Rule(
        high="no missing wedge about z with the tilt axis along y is seen (10^{value} of the other "
        "power, in training 10^{low} to 10^{high}): mere noise, a denoised volume, or turned axes?",
        least_unit=0.3,
    ),
    "marked_share": _Rule(
        high="{value} of the volume is marked as particle, in training at most {high}: inverted "
        "contrast, or another voxel size?",
        least_unit=0.005,
    ),
    "unsure_share": _Rule(
        high="the localizer is unsure: {value} of the voxels that it notes lie between 0.2 and "
        "0.8, in training {low} to {high}; too much noise, or structures it does not know?",
        least_unit=0.05,
    ),
    "score_50": _Rule(
        low="its candidates have low scores (median {value}, in training {low} to {high}): too "
        "much noise, or structures it does not know?",
        least_unit=0.03,
    ),
    "size_50": _Rule(
        high="the marked cores are large (median {value} voxels, in training {low} to {high}): "
        "voxels smaller than the header says, or large structures it does not know?",
        low="the marked cores are small (median {value} voxels, in training {low} to {high}): "
        "voxels larger than the header says, or too much noise?",
        least_unit=8.0,
    ),
    SPECTRAL: _Rule(
        high="its power spectrum is unlike all in training ({what}): another voxel size, filter or "
        "defocus?",
        least_unit=0.015,
        weight=1.25,
    ),
    **{
        name: _Rule(
            high="much more {what} than in training (share 10^{value} of the power, 10^{low} to "
            "10^{high}): noise, or another filter?",
            low="much less {what} than in training (share 10^{value} of the power, 10^{low} to "
            "10^{high}): voxels enlarged by interpolation, or a strong filter?",
            least_unit=0.3,
        )
        for name in SPECTRUM[COARSE_BANDS:]
    },
}


def ranges(observed: Sequence[Mapping[str, float]], *, source: str) -> Domain | None:
    """Make a card's domain of the statistics of tomograms; None of fewer than five.

    A statistic that some do not have (those without candidates, or that no network saw) is taken
    from the others.
    """
    if len(observed) < LEAST_TOMOGRAMS:
        return None
    spectra = [
        [round(one[name], 3) for name in SPECTRUM[:COARSE_BANDS]]
        for one in observed
        if all(name in one for name in SPECTRUM)
    ]
    if len(spectra) >= LEAST_TOMOGRAMS:
        observed = [*observed, *({SPECTRAL: d} for d in _to_the_others(np.array(spectra)))]
    else:
        spectra = []
    found = {}
    for name in dict.fromkeys(key for one in observed for key in one):
        values = [one[name] for one in observed if name in one]
        if len(values) >= LEAST_TOMOGRAMS:
            low, median, high = (float(q) for q in np.percentile(values, (5, 50, 95)))
            found[name] = Range(low=_short(low), median=_short(median), high=_short(high))
    number = sum(SPECTRAL not in one for one in observed)
    return Domain(source=source, tomograms=number, statistics=found, spectra=spectra)


def _to_the_others(spectra: NDArray[np.float64]) -> list[float]:
    """Mean distance of each spectrum `(n, 8)` from the nearest others."""
    apart = np.sqrt(((spectra[:, None] - spectra[None]) ** 2).mean(axis=2))
    np.fill_diagonal(apart, np.inf)
    return [float(d) for d in np.sort(apart, axis=1)[:, :NEAREST].mean(axis=1)]


def _nearest(statistics: Mapping[str, float], card: ModelCard) -> tuple[float, str] | None:
    """Mean distance (RMS of log10) from the card's nearest spectra, and where it differs most."""
    domain = card.domain
    if domain is None or not domain.spectra or any(name not in statistics for name in SPECTRUM):
        return None
    own = np.array([statistics[name] for name in SPECTRUM[:COARSE_BANDS]])
    apart = own - np.array(domain.spectra)
    rms = np.sqrt((apart**2).mean(axis=1))
    nearest = apart[int(rms.argmin())]
    k = int(np.abs(nearest).argmax())
    more = "more" if nearest[k] > 0 else "less"
    factor = 10 ** abs(float(nearest[k]))
    distance = float(np.sort(rms)[:NEAREST].mean())
    return distance, f"{factor:.1f} times {more} {_band(SPECTRUM[k], card)} than in the nearest"


def judge(statistics: Mapping[str, float], card: ModelCard) -> Verdict:
    """Compare a tomogram's statistics with those of a localizer's card.

    `statistics` may hold any of those of `tomoline.ops.statistics`, and `given_voxel_size_angstrom`
    of the tomogram as it was given. What is not in both is not compared.
    """
    coarse = _coarse(statistics, card)
    if card.domain is None:
        if coarse is not None:
            return Verdict(in_domain=coarse[0], reason=coarse[1], distances={})
        return Verdict(in_domain="unknown", reason=UNKNOWN, distances={})
    nearest = _nearest(statistics, card)
    if nearest is not None:
        statistics = {**statistics, SPECTRAL: nearest[0]}
    distances, worst = {}, (0.0, "")
    for name, rule in _RULES.items():
        known = card.domain.statistics.get(name)
        if known is None or name not in statistics:
            continue
        distance, words = _compare(
            name, float(statistics[name]), known, rule,
            what=nearest[1] if name == SPECTRAL and nearest else _band(name, card),
        )  # fmt: skip
        distances[name] = round(distance, 3)
        worst = max(worst, (distance, words))
    flag: InDomain = "no" if worst[0] > NO else "doubtful" if worst[0] > DOUBTFUL else "yes"
    if coarse is not None and _rank(coarse[0]) >= _rank(flag):
        return Verdict(in_domain=coarse[0], reason=coarse[1], distances=distances)
    return Verdict(
        in_domain=flag, reason=_sentence(flag, worst[1], statistics), distances=distances
    )


def _compare(name: str, value: float, known: Range, rule: _Rule, *, what: str) -> tuple[float, str]:
    """Distance of a value on the sides that harm, and what to say of it."""
    above = value > known.median
    words = rule.high if above else rule.low
    if not words:
        return 0.0, ""
    unit = max(rule.least_unit, known.high - known.median if above else known.median - known.low)
    distance = rule.weight * abs(value - known.median) / unit
    if name == "skewness" and value > FAINTLY_BRIGHT > known.high:
        # Of another sign: no matter how wide the range is.
        distance = max(distance, 2 * NO if value > BRIGHT else 1.25 * DOUBTFUL)
    return distance, words.format(
        value=_figure(name, value), low=_figure(name, known.low), high=_figure(name, known.high),
        what=what,
    )  # fmt: skip


def _coarse(statistics: Mapping[str, float], card: ModelCard) -> tuple[InDomain, str] | None:
    """What is to be said of voxels larger than the model has seen."""
    given = statistics.get("given_voxel_size_angstrom")
    low, high = card.voxel_size_range_angstrom
    if given is None or given <= COARSE * high:
        return None
    flag: InDomain = "no" if given > TOO_COARSE * high else "doubtful"
    return flag, _capital(
        f"pixel size differs: {given:.4g} A where the model was trained at {low:g} to {high:g} A; "
        "detail that it uses is missing."
    )


def _sentence(flag: InDomain, worst: str, statistics: Mapping[str, float]) -> str:
    if flag == "yes":
        if statistics.get("candidates") == 0:
            return _capital(f"{ONLY_BACKGROUND}.")
        return "The tomogram is like those the model was made for."
    lead = "The model cannot judge this tomogram" if flag == "no" else "The model may be misled"
    return f"{lead}: {worst.rstrip('.')}{'' if worst.endswith('?') else '.'}"


def _band(name: str, card: ModelCard) -> str:
    """The detail that a band of the spectrum stands for, in angstrom."""
    if name not in SPECTRUM:
        return ""
    k = SPECTRUM.index(name)
    coarse, fine = card.voxel_size_angstrom / SPECTRUM_EDGES[k : k + 2]
    kind = "large-scale contrast" if k < 2 else "detail" if k < 6 else "fine detail or noise"
    return f"{kind} ({coarse:.0f} to {fine:.0f} A)"


def _figure(name: str, value: float) -> str:
    if name in ("marked_share", "unsure_share"):
        return f"{100 * value:.3g} %"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def _rank(flag: InDomain) -> int:
    return ("unknown", "yes", "doubtful", "no").index(flag)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def to_json(statistics: Mapping[str, float], verdict: Verdict) -> dict[str, Any]:
    """Return what domain.json holds."""
    return {
        "in_domain": verdict.in_domain,
        "reason": verdict.reason,
        "distances": verdict.distances,
        "statistics": {name: _short(value) for name, value in statistics.items()},
    }
