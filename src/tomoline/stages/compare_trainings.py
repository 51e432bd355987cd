"""One table of trainings on sets of subtomograms, by their figures on the test subtomograms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.settings import ExperimentSettings
from tomoline.stages.benchmark_plan import MODELS

SETTINGS = None

COLUMNS = {
    "object_accuracy": "named rightly", "mean_f1": "mean F1", "voxel_accuracy": "voxel accuracy",
    "mean_iou": "mean IoU", "recovery_correlation": "density correlation",
}  # fmt: skip
LEGEND = (
    "Figures of test subtomograms, whose tomograms no training saw: share named rightly, mean F1 "
    "of the classes; share of voxels and mean IoU of the particle's own and the other voxels; mean "
    "correlation of the recovered with the true density. The epoch kept is that of the least "
    "validation loss. A dash: the network has not this task."
)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    comparisons: Mapping[str, Mapping[str, Any]],
) -> None:
    """Join the `figures.json` of the trainings in results/models to `table` (CSV) and `page`.

    `comparisons` holds, by name, `settings` (an `ExperimentSettings`) and `trainings`, the
    training's name of each variant.
    """
    lines, rows = ["# Trainings compared", "", LEGEND, ""], []
    for name, raw in comparisons.items():
        settings = ExperimentSettings.model_validate(raw["settings"])
        lines += [f"## {settings.question}", ""]
        if settings.paper:
            lines += [f"In the paper (not the same data): {settings.paper}", ""]
        own = [
            {"comparison": name, "variant": variant, **_row(training)}
            for variant, training in raw["trainings"].items()
        ]
        lines += [*_markdown(own), ""]
        rows += own
    write_text(outputs["table"], pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_text(outputs["page"], "\n".join(lines))


def _row(training: str) -> dict[str, Any]:
    """What a training measured; None for what it has not."""
    folder = Path(MODELS) / training
    path = folder / "figures.json"
    if not path.is_file():
        raise InputError(
            path, expected="the figures of a training on subtomograms", found="no such file",
            remedy=f"see {folder}/logs/train.log and run again",
        )  # fmt: skip
    figures = json.loads(path.read_text())
    all_figures = {**figures["test"], "mean_f1": figures.get("mean_f1")}
    epochs = len((folder / "curves.jsonl").read_text().splitlines())
    return {
        "training": training, "learnt_from": figures["subtomograms"]["train"], "epochs": epochs,
        **{column: all_figures.get(column) for column in COLUMNS},
    }  # fmt: skip


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    head = ["variant", "subtomograms", "epochs", *COLUMNS.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    for row in rows:
        values = ["-" if row[c] is None else f"{row[c]:.4f}" for c in COLUMNS]
        cells = [row["variant"], str(row["learnt_from"]), str(row["epochs"]), *values]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
