"""Precision and recall against the score from which on particles are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomoline.evaluation.matching import Floats, localization, match_one_to_one

STEP = 0.01


def score_curve(
    predicted: Floats, score: Floats, true: Floats, hit_distance_vox: float
) -> dict[str, Any]:
    """Count one-to-one hits for thresholds of the score, 0.01 apart, where they differ.

    Parameters
    ----------
    predicted, score:
        Centres `(n, 3)` zyx in voxels and their scores `(n,)`.
    true:
        True centres `(m, 3)`.

    Returns
    -------
    dict
        Lists of one length, thresholds rising: `min_score`, `predictions`, `tp`, `precision`,
        `recall`; and `particles`, m. Each threshold's picks are matched anew.
    """
    score = np.asarray(score, float)
    lines: list[tuple[float, int, int, float, float]] = []
    grid = np.round(np.arange(0, 1 + STEP / 2, STEP), 2)
    kept = [int((score >= threshold).sum()) for threshold in grid]
    for k, threshold in enumerate(grid):
        # Where the next threshold keeps as many, this one says nothing of its own.
        if kept[k] == 0 or (k + 1 < len(grid) and kept[k + 1] == kept[k]):
            continue
        picks = np.asarray(predicted, float).reshape(-1, 3)[score >= threshold]
        found = localization(match_one_to_one(picks, true, hit_distance_vox))
        lines.append((float(threshold), kept[k], found.tp, found.precision, found.recall))
    names = ("min_score", "predictions", "tp", "precision", "recall")
    columns = {name: [line[k] for line in lines] for k, name in enumerate(names)}
    for name in ("precision", "recall"):
        columns[name] = [round(value, 4) for value in columns[name]]
    return {**columns, "particles": len(true)}


def pooled_curve(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the curves of several tomograms, each as `score_curve` gives it."""
    curves = [curve for curve in curves if curve.get("min_score")]
    if not curves:
        return {}
    grid = sorted({value for curve in curves for value in curve["min_score"]})
    particles = sum(curve["particles"] for curve in curves)
    counts = [[_at(curve, value) for curve in curves] for value in grid]
    predictions = [sum(pair[0] for pair in row) for row in counts]
    hits = [sum(pair[1] for pair in row) for row in counts]
    return {
        "min_score": grid,
        "predictions": predictions,
        "tp": hits,
        "precision": [
            round(h / p, 4) if p else 0.0 for h, p in zip(hits, predictions, strict=True)
        ],
        "recall": [round(h / particles, 4) if particles else 0.0 for h in hits],
        "particles": particles,
    }


def _at(curve: dict[str, Any], threshold: float) -> tuple[int, int]:
    """Predictions and hits at a threshold: those of the next one that is listed."""
    place = int(np.searchsorted(curve["min_score"], threshold - 1e-9))
    if place == len(curve["min_score"]):
        return 0, 0
    return int(curve["predictions"][place]), int(curve["tp"][place])
