"""The interface of a method that picks particles, and the tuning that all methods share.

A method first makes its `response` to a tomogram, which takes the time and depends on nothing that
is tuned; then picks of the responses to the validation tomograms are made with many settings, the
best are kept, and with these the test tomogram's picks are made. Coordinates are zyx in voxels of
the prepared volume (particles dark, background mean 0 and SD 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tomoline.evaluation.matching import classification, localization, match_one_to_one

Floats = NDArray[np.float64]
Tuned = Mapping[str, Any]
# Localization decides, classes between settings that find nearly the same.
CLASS_WEIGHT = 0.1
# Clusters smaller than one of these are dropped.
SIZES_VOX = (3, 10, 30, 100)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A tomogram to be picked: its prepared volume and what else a method may need.

    `work` is a folder of the method's own, which outlives a job that is ended; `threads` processors
    may be used.
    """

    volume: Path
    transform: Path
    work: Path
    tilts_deg: tuple[float, float] = (-60.0, 60.0)
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """Picks: centres `(n, 3)`, scores `(n,)`, and class names, None where a method has none."""

    zyx_vox: Floats
    score: Floats
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        assert self.zyx_vox.shape == (len(self.score), 3)
        assert self.classes is None or len(self.classes) == len(self.score)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A validation tomogram: the response to it, and its truth in prepared voxels."""

    scene: Scene
    response: Path
    zyx_vox: Floats
    classes: list[str]
    hit_distance_vox: float


class Method(Protocol):
    """One way to pick particles."""

    def respond(self, scene: Scene, response: Path) -> None:
        """Write the response to a tomogram (HDF5)."""

    def tune(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Settings with the best figures on the validation tomograms; `figures` are among them."""

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Picks with these settings."""


def goal(cases: Sequence[Case], picks: Callable[[int], Found]) -> dict[str, float]:
    """Mean figures of the picks of each case; `goal` is what tuning makes large.

    `goal` is one-to-one F1, and a tenth of the mean class accuracy where there are classes.
    """
    f1, precision, recall, accuracy = [], [], [], []
    for k, case in enumerate(cases):
        found = picks(k)
        matching = match_one_to_one(found.zyx_vox, case.zyx_vox, case.hit_distance_vox)
        score = localization(matching)
        f1.append(score.f1)
        precision.append(score.precision)
        recall.append(score.recall)
        if found.classes is not None:
            classes = classification(matching, found.classes, case.classes)
            if classes.table.shape[0]:
                accuracy.append(classes.mean_accuracy)
    figures = {"f1": f1, "precision": precision, "recall": recall}
    means = {key: float(np.mean(values)) for key, values in figures.items()}
    if accuracy:
        means["mean_class_accuracy"] = float(np.mean(accuracy))
    return {"goal": means["f1"] + CLASS_WEIGHT * means.get("mean_class_accuracy", 0.0), **means}


def combinations(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """All combinations of the choices, the first of each first."""
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


def best_of(
    cases: Sequence[Case],
    tried: Iterable[Mapping[str, Any]],
    picks: Callable[[int, Mapping[str, Any]], Found],
) -> dict[str, Any]:
    """The settings with the largest goal (of equal ones the first), with their `figures`."""
    best: dict[str, Any] = {}
    for settings in tried:
        figures = goal(cases, lambda k, s=settings: picks(k, s))  # type: ignore[misc]
        if not best or figures["goal"] > best["figures"]["goal"]:
            best = {**settings, "figures": figures}
    return best
