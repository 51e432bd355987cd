"""Pictures of a benchmark: methods side by side, accuracy against effective radius, confusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from tomoline.report.palette import COLOURS

mpl.use("Agg")
from matplotlib.figure import Figure

BARS = ("F1", "class accuracy", "F-beta")
MOST_MATRICES = 4


def draw_benchmark(table: pd.DataFrame, path: Path) -> None:
    """Bars of F1, class accuracy and F-beta: a panel a tomogram, a colour a method."""
    tomograms = list(dict.fromkeys(table["tomogram"]))
    methods = list(dict.fromkeys(table["method"]))
    figure = Figure(figsize=(3.4 * max(1, len(tomograms)), 3.2), layout="constrained")
    panels = figure.subplots(1, max(1, len(tomograms)), sharey=True, squeeze=False)[0]
    width = 0.8 / max(1, len(methods))
    for panel, tomogram in zip(panels, tomograms, strict=False):
        rows = table[table["tomogram"] == tomogram].set_index("method")
        for k, method in enumerate(methods):
            values = [_number(rows.loc[method, bar]) for bar in BARS]
            places = np.arange(len(BARS)) + (k - (len(methods) - 1) / 2) * width
            panel.bar(places, values, width, label=method, color=COLOURS[k % len(COLOURS)],
                      hatch="//" if k >= len(COLOURS) else None)  # fmt: skip
        panel.set(title=tomogram, ylim=(0, 1))
        panel.set_xticks(range(len(BARS)), BARS, fontsize=8)
        panel.grid(axis="y", alpha=0.3)
    if methods:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=min(4, len(methods)), frameon=False, fontsize=8)  # fmt: skip
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


def draw_experiments(table: pd.DataFrame, path: Path) -> None:
    """Bars of F1, class accuracy and F-beta of each variant: a panel a question, tests' means."""
    questions = list(dict.fromkeys(table["experiment"]))
    columns = min(3, max(1, len(questions)))
    lines = -(-max(1, len(questions)) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.9 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(questions) :]:
        panel.set_visible(False)
    for panel, question in zip(panels, questions, strict=False):
        rows = table[table["experiment"] == question]
        variants = list(dict.fromkeys(rows["method"]))
        for k, bar in enumerate(BARS):
            values = pd.to_numeric(rows[bar], errors="coerce")  # empty where a method failed
            means = [_number(values[rows["method"] == v].mean()) for v in variants]
            panel.bar(np.arange(len(variants)) + (k - 1) * 0.27, means, 0.27, label=bar,
                      color=COLOURS[k])  # fmt: skip
        panel.set_xticks(range(len(variants)), variants, fontsize=8)
        panel.set(ylim=(0, 1))
        panel.set_title("\n".join(wrap(str(question), 44)), fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    if questions:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                      frameon=False, fontsize=8)  # fmt: skip
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def draw_classes(classes: pd.DataFrame, confusions: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Class accuracy against effective radius (all tests), and up to four confusion matrices."""
    shown = dict(list(confusions.items())[:MOST_MATRICES])
    figure = Figure(figsize=(4.2 * (1 + len(shown)), 3.9), layout="constrained")
    panels = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _draw_radii(panels[0], classes)
    for panel, (title, matrix) in zip(panels[1:], shown.items(), strict=True):
        _draw_matrix(panel, title, matrix)
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def _draw_radii(panel: Any, classes: pd.DataFrame) -> None:
    known = classes.dropna(subset=["effective_radius_vox"])
    if "accuracy" in known:
        for k, (method, rows) in enumerate(known.groupby("method", sort=False)):
            mean = rows.groupby("effective_radius_vox")["accuracy"].mean()
            panel.plot(mean.index, mean.values, "o-", ms=4, lw=1, label=str(method),
                       color=COLOURS[k % len(COLOURS)])  # fmt: skip
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)
    panel.set(xlabel="effective radius (voxels)", ylabel="class accuracy", ylim=(0, 1))
    panel.grid(alpha=0.3)


def _draw_matrix(panel: Any, title: str, matrix: pd.DataFrame) -> None:
    counts = matrix.to_numpy(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(matrix.shape[1]), [str(c) for c in matrix.columns], rotation=90,
                     fontsize=6)  # fmt: skip
    panel.set_yticks(range(matrix.shape[0]), [str(c) for c in matrix.index], fontsize=6)
    panel.set(title=title, xlabel="found as", ylabel="true")
    panel.title.set_fontsize(9)


def _number(value: Any) -> float:
    return 0.0 if value is None or pd.isna(value) else float(value)
