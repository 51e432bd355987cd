"""Which picks a person should look at: those whose answer teaches most, and a fair sample.

The rule. Of `number` picks

- a share (`RANDOM_SHARE`) is drawn at random, half of it from the accepted and half from the
  rejected ones, before anything else is chosen. Only from these can it be said without bias how
  many of the accepted are particles and how many of the rejected ones are lost;
- two thirds of the others ask "is it a particle?": those whose probability lies nearest to the
  one from which on candidates are accepted, in log-odds, as many below it as above;
- one third asks "which class?": the accepted ones with the smallest margin between the two most
  probable classes.

Within each question the classes that were proposed take turns, so that a frequent one does not
take all places. Where a group has too few, the others get its places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.evaluation.sifting import logit

RANDOM_SHARE = 0.2
CLASS_SHARE = 1 / 3
RANDOM, PARTICLE, WHICH = "drawn at random", "is it a particle?", "which class?"
CONFIDENCE = 1.96  # of the interval, in standard deviations: 95 %


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share measured on a sample: `right` of `count`, and its 95 % interval (Wilson 1927)."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.right / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies, at 95 % confidence."""
        if not self.count:
            return 0.0, 1.0
        n, z = self.count, CONFIDENCE
        middle = (self.value + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(self.value * (1 - self.value) / n + z**2 / (4 * n**2))
        return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def cut_between(
    probability: NDArray[np.float64],
    accepted: NDArray[np.bool_],
    sifted: NDArray[np.bool_],
    *,
    calibrated: bool,
) -> float:
    """The probability from which on candidates `(n,)` are accepted, by what became of them.

    Between the lowest that was accepted and the highest that was `sifted` out for being background;
    where nothing is sifted, the even odds of a `calibrated` probability, or the lowest accepted
    score.
    """
    if sifted.any() and accepted.any():
        return float((probability[sifted].max() + probability[accepted].min()) / 2)
    if calibrated or not accepted.any():
        return 0.5
    return float(probability[accepted].min())


def choose(
    pool: pd.DataFrame, number: int, *, cut: float, seed: int, random_share: float = RANDOM_SHARE
) -> pd.DataFrame:
    """Choose picks of a pool; see the module's text for the rule.

    Parameters
    ----------
    pool:
        One row a candidate, with `accepted`, `sifted` (rejected for being background),
        `proposed` (class, or empty), `probability` and `margin`.
    number:
        How many; all, where the pool is smaller.

    Returns
    -------
    The rows chosen, with the column `why`, in the pool's order. The same pool and seed give the
    same rows.
    """
    pool = pool.reset_index(drop=True)
    number = min(number, len(pool))
    rng = np.random.default_rng(seed)
    why: dict[int, str] = {}
    accepted = pool["accepted"].to_numpy(bool)
    fair = round(number * random_share)
    for side, share in ((accepted, fair - fair // 2), (~accepted, fair // 2)):
        rows = np.flatnonzero(side)
        drawn = rng.choice(rows, min(share, len(rows)), replace=False)
        why |= {int(row): RANDOM for row in drawn}
    doubt = np.abs(logit(pool["probability"].to_numpy(float)) - logit(np.array(cut)))
    sifted = pool["sifted"].to_numpy(bool)
    rejected = sifted if sifted.any() else ~accepted
    margin = pool["margin"].to_numpy(float)
    left = number - len(why)
    named = int(left * CLASS_SHARE) if pool["proposed"][accepted].nunique() > 1 else 0
    half = (left - named) // 2
    for side, doubts, places, word in (
        (rejected, doubt, half, PARTICLE),
        (accepted, doubt, left - named - half, PARTICLE),
        (accepted, margin, named, WHICH),
        # What a group could not fill goes to whatever is most doubtful, last to what is left.
        (rejected | accepted, doubt, number, PARTICLE),
        (~(rejected | accepted), doubt, number, PARTICLE),
    ):
        free = np.array([row for row in np.flatnonzero(side) if row not in why], np.int64)
        most = min(places, number - len(why))
        for row in _in_turn(free, doubts, pool["proposed"].to_numpy())[:most]:
            why[int(row)] = word
    chosen = pool.loc[sorted(why)].copy()
    chosen["why"] = [why[row] for row in sorted(why)]
    return chosen.reset_index(drop=True)


def _in_turn(
    rows: NDArray[np.int64], doubt: NDArray[np.float64], proposed: NDArray[np.object_]
) -> NDArray[np.int64]:
    """Rows by rising `doubt`, the classes taking turns."""
    if not len(rows):
        return rows
    table = pd.DataFrame({"row": rows, "doubt": doubt[rows], "class": proposed[rows]})
    table = table.sort_values(["doubt", "row"], kind="stable")
    table["turn"] = table.groupby("class", sort=False).cumcount()
    return table.sort_values(["turn", "doubt", "row"], kind="stable")["row"].to_numpy()
