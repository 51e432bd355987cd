"""One table of all experiments, from the tables of their benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.io.atomic import atomic_path, write_text
from tomoline.report.benchmark import draw_experiments
from tomoline.settings import ExperimentSettings
from tomoline.stages.benchmark_files import FOLDER
from tomoline.stages.benchmark_table import FIGURES, LEGEND, markdown

SETTINGS = None


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    experiments: Mapping[str, Mapping[str, Any]],
) -> None:
    """Join the tables of `experiments` (settings by benchmark) to `table` (CSV), `page`
    and `picture`."""
    lines, tables = ["# Experiments", "", LEGEND], []
    for name, raw in experiments.items():
        settings = ExperimentSettings.model_validate(raw)
        # Figures are empty where a method failed; names such as "NA" are names.
        table = pd.read_csv(Path(FOLDER) / name / "table.csv", keep_default_na=False,
                            na_values={column: [""] for column in FIGURES})  # fmt: skip
        table.insert(0, "experiment", settings.question)
        tables.append(table)
        paper = (
            [f"In the paper (not the same data): {settings.paper}", ""] if settings.paper else []
        )
        lines += [f"## {settings.question}", "", *paper]
        lines += [*markdown(table, first=("tomogram", "method")), ""]
    joined = pd.concat(tables, ignore_index=True)
    write_text(outputs["table"], joined.to_csv(index=False, lineterminator="\n"))
    write_text(outputs["page"], "\n".join(lines))
    with atomic_path(outputs["picture"]) as partial:
        draw_experiments(joined, partial)
