"""One table of trainings on sets of subtomograms, by their figures on the test subtomograms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.errors import InputError
from tomoline.evaluation.sizes import SIZE_GROUPS, group_means, group_of
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
        lines += [*_markdown(own), "", *_by_class(raw["trainings"])]
        rows += own
    write_text(outputs["table"], pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_text(outputs["page"], "\n".join(lines))


def _figures(training: str) -> dict[str, Any]:
    folder = Path(MODELS) / training
    path = folder / "figures.json"
    if not path.is_file():
        raise InputError(
            path, expected="the figures of a training on subtomograms", found="no such file",
            remedy=f"see {folder}/logs/train.log and run again",
        )  # fmt: skip
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def _row(training: str) -> dict[str, Any]:
    """What a training measured; None for what it has not."""
    figures = _figures(training)
    curves = Path(MODELS) / training / "curves.jsonl"
    f1 = f1_of_classes(figures)
    all_figures = {**figures["test"], "mean_f1": figures.get("mean_f1")}
    return {
        "training": training, "learnt_from": figures["subtomograms"]["train"],
        "epochs": len(curves.read_text().splitlines()),
        **{column: all_figures.get(column) for column in COLUMNS},
        **{f"f1_{group}": round(mean, 5) for group, mean in group_means(f1).items()},
        **{f"f1_{name}": value for name, value in f1.items()},
    }  # fmt: skip


def f1_of_classes(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """F1 of each class that was tested, of a training's figures; those of one size together."""
    found = {name: c["f1"] for name, c in figures.get("classes", {}).items() if c["n"]}
    order = [*SIZE_GROUPS, ""]
    return dict(sorted(found.items(), key=lambda item: order.index(group_of(item[0]))))


def _by_class(trainings: Mapping[str, str]) -> list[str]:
    """F1 = 2 TP / (2 TP + FN + FP) of each class and each size group, a column a variant."""
    f1 = {variant: f1_of_classes(_figures(name)) for variant, name in trainings.items()}
    f1 = {variant: own for variant, own in f1.items() if own}
    classes = list(dict.fromkeys(name for own in f1.values() for name in own))
    if not classes:
        return []
    means = {variant: group_means(own) for variant, own in f1.items()}
    groups = [group for group in SIZE_GROUPS if any(group in own for own in means.values())]
    head = ["F1 of the class", "size", *f1]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    for name in classes:
        lines.append(_line([name, group_of(name) or "-"], [own.get(name) for own in f1.values()]))
    for group in groups:
        lines.append(_line([f"mean, {group}", ""], [own.get(group) for own in means.values()]))
    return [*lines, ""]


def _line(head: list[str], values: list[float | None]) -> str:
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    return f"| {' | '.join([*head, *cells])} |"


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    head = ["variant", "subtomograms", "epochs", *COLUMNS.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    for row in rows:
        values = ["-" if row[c] is None else f"{row[c]:.4f}" for c in COLUMNS]
        cells = [row["variant"], str(row["learnt_from"]), str(row["epochs"]), *values]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
