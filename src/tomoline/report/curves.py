"""Training curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure

PANELS = {
    "Loss": {"loss": "training", "val_loss": "held-out tomograms"},
    "Held-out tomograms": {
        "val_core_dice": "overlap of cores (Dice)",
        "val_class_accuracy": "mean class accuracy",
        "val_mean_iou": "mean IoU of particle and surroundings",
        "val_recovery_correlation": "correlation of recovered density",
    },
}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and held-out figures against the epoch, from the rows of `curves.jsonl`."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (title, lines) in zip(axes, PANELS.items(), strict=True):
        for key, label in lines.items():
            points = [(r["epoch"] + 1, r[key]) for r in rows if key in r]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, lw=1.6,
                          marker="o" if len(points) < 40 else "", ms=3)  # fmt: skip
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0, 1)
    figure.savefig(path, dpi=110, metadata={"Software": None})
