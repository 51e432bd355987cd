"""What models make of labels that they did not learn, when not every particle is labelled.

With complete labels precision, recall and F1 are what they always are. With some particles labelled
a pick that hits none may be an unlabelled particle, so precision cannot be measured; recall can,
and, as more picks find more, also the recall at as many picks as there were before. What people
said is no particle measures how many of such places are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.evaluation.matching import match_one_to_one

HIT_DISTANCE_VOX = 5.0
NOT_MEASURABLE = (
    "not measurable: not every particle is labelled, so a pick that hits no label may be a particle"
)


@dataclass(frozen=True, kw_only=True)
class Held:
    """Labels of one tomogram that were not learnt: particles `(n, 3)` with `names (n,)` (empty: of
    an unknown class) and `negatives (m, 3)`."""

    centres: NDArray[np.float64]
    names: Sequence[str]
    negatives: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Candidates `(n, 3)` of the held-out part: the probability that each is a particle, whether it
    is taken for one, and the class it is named."""

    centres: NDArray[np.float64]
    probability: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    named: Sequence[str]


def figures(
    tomograms: Sequence[tuple[Held, Judged]], *, complete: bool, picks: int | None = None
) -> dict[str, Any]:
    """Measure; see the module's text.

    Parameters
    ----------
    complete:
        Whether every particle of the held-out parts is labelled.
    picks:
        Also the recall of so many most probable candidates, accepted or not.

    Returns
    -------
    `particles`, `picks`, `found`, `recall`; `precision` and `f1` (None where not measurable);
    `class_accuracy`, the mean over classes of particles found and named rightly; `negatives` and
    how many of them were `left_alone`; `classes`, of each class `true`, `found`, `right`, `called`
    (picks named so), `recall` (right of true), `precision` and `f1` of naming.
    """
    counts = {"particles": 0, "picks": 0, "found": 0, "negatives": 0, "left_alone": 0}
    kinds: dict[str, dict[str, int]] = {}
    for held, judged in tomograms:
        own = judged.centres[judged.accepted]
        named = [n for n, kept in zip(judged.named, judged.accepted, strict=True) if kept]
        pairs = match_one_to_one(own, held.centres, HIT_DISTANCE_VOX)
        false = match_one_to_one(own, held.negatives, HIT_DISTANCE_VOX)
        counts["particles"] += len(held.centres)
        counts["picks"] += len(own)
        counts["found"] += int((pairs.prediction_of_true >= 0).sum())
        counts["negatives"] += len(held.negatives)
        counts["left_alone"] += int((false.prediction_of_true < 0).sum())
        for name, place in zip(held.names, pairs.prediction_of_true, strict=True):
            if not name:
                continue
            row = _row(kinds, name)
            row["true"] += 1
            row["found"] += int(place >= 0)
            row["right"] += int(place >= 0 and named[place].casefold() == name.casefold())
        for name in named:
            _row(kinds, name)["called"] += 1
    result: dict[str, Any] = {**counts, "recall": _ratio(counts["found"], counts["particles"])}
    result["precision"] = _ratio(counts["found"], counts["picks"]) if complete else None
    result["f1"] = (
        _ratio(2 * counts["found"], counts["picks"] + counts["particles"]) if complete else None
    )
    if picks is not None:
        result["recall_at_as_many_picks"] = _recall_of(tomograms, picks)
    true = {name: row for name, row in kinds.items() if row["true"]}
    result["class_accuracy"] = (
        round(float(np.mean([r["right"] / r["true"] for r in true.values()])), 4) if true else None
    )
    result["classes"] = {
        name: {
            **row, "recall": _ratio(row["right"], row["true"]),
            "precision": _ratio(row["right"], row["called"]) if complete else None,
            "f1": _ratio(2 * row["right"], row["true"] + row["called"]) if complete else None,
        }
        for name, row in sorted(kinds.items())
    }  # fmt: skip
    return result


def _recall_of(tomograms: Sequence[tuple[Held, Judged]], picks: int) -> float | None:
    """Recall of the `picks` most probable candidates of all tomograms together."""
    p = np.concatenate([np.empty(0), *(judged.probability for _, judged in tomograms)])
    order = np.argsort(-p, kind="stable")[:picks]
    taken = np.zeros(len(p), bool)
    taken[order] = True
    found = total = first = 0
    for held, judged in tomograms:
        own = taken[first : first + len(judged.centres)]
        first += len(judged.centres)
        pairs = match_one_to_one(judged.centres[own], held.centres, HIT_DISTANCE_VOX)
        found += int((pairs.prediction_of_true >= 0).sum())
        total += len(held.centres)
    return _ratio(found, total)


def _row(kinds: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    for known, row in kinds.items():  # one spelling a class
        if known.casefold() == name.casefold():
            return row
    return kinds.setdefault(name, dict.fromkeys(("true", "found", "right", "called"), 0))


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def change(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    """A figure before and after, in words."""
    shown = ["-" if f.get(key) is None else f"{f[key]:.3f}" for f in (before, after)]
    return " -> ".join(shown)
