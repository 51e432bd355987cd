"""The table of a benchmark: a row a method and test tomogram, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.io.atomic import atomic_path, write_text
from tomoline.log import get_logger
from tomoline.report.benchmark import draw_benchmark, draw_classes
from tomoline.settings import BenchmarkSettings
from tomoline.simulation.densities import SHREC_CLASSES, load_density
from tomoline.stages.benchmark_files import FOLDER, STEPS, tests_of

SETTINGS = BenchmarkSettings
log = get_logger(__name__)

# Column: where it lies in scores.json.
FIGURES = {
    "precision": ("one_to_one", "precision"),
    "recall": ("one_to_one", "recall"),
    "F1": ("one_to_one", "f1"),
    "AD": ("one_to_one", "ad_vox"),
    "class accuracy": ("one_to_one", "mean_class_accuracy"),
    "SHREC precision": ("shrec", "precision"),
    "SHREC recall": ("shrec", "recall"),
    "SHREC F1": ("shrec", "f1"),
    "SHREC AD": ("shrec", "ad_vox"),
    "hit twice": ("shrec", "mh"),
    "SHREC class accuracy": ("shrec", "mean_class_accuracy"),
    "F-beta": ("czii", "f_beta"),
    "class F-beta": ("czii", "mean_class_f_beta"),
    "true": ("one_to_one", "particles"),
    "picks": ("one_to_one", "predictions"),
    "wall s": ("cost", "wall_s"),
    "processor s": ("cost", "processor_s"),
    "threads": ("cost", "threads"),
}
SHOWN = (
    "precision", "recall", "F1", "AD", "class accuracy", "SHREC F1", "SHREC AD", "hit twice",
    "F-beta", "picks", "wall s", "processor s",
)  # fmt: skip
NOT_YET = "not run yet"
LEGEND = """\
Precision, recall, F1 and AD (mean distance, voxels): one to one within 5 voxels. Class accuracy:
mean over the true classes of particles found with the right class. SHREC: hits counted by the true
volumes, dilated by one voxel; hit twice: particles hit more than once. F-beta: beta 4, one to one
within half the particle's radius, classes ignored. Seconds: response and picks together, without
tuning. Settings were tuned on the validation tomograms of the tomogram's group.
"""


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: BenchmarkSettings,
    title: str,
    labels: Mapping[str, str],
) -> None:
    """Write the table (CSV, Markdown) and pictures of a benchmark whose jobs are done.

    Input `densities`. Outputs `table`, `page`, `picture`, `classes` and `classes_picture`. `labels`
    is what the table calls methods, where not by their names.
    """
    densities = Path(inputs["densities"])
    write_tables(settings, outputs, densities=densities, title=title, labels=labels)


def write_tables(
    settings: BenchmarkSettings,
    outputs: Mapping[str, Any],
    *,
    densities: Path,
    title: str,
    labels: Mapping[str, str],
) -> pd.DataFrame:
    """Write what there is; a method that failed has the reason in its row."""
    table = table_of(settings)
    classes = class_table(settings, densities)
    for rows in (table, classes):
        rows["method"] = [labels.get(method, method) for method in rows["method"]]
    write_text(outputs["table"], table.to_csv(index=False, lineterminator="\n"))
    write_text(outputs["page"], page_of(title, table))
    write_text(outputs["classes"], classes.to_csv(index=False, lineterminator="\n"))
    with atomic_path(outputs["picture"]) as partial:
        draw_benchmark(table, partial)
    with atomic_path(outputs["classes_picture"]) as partial:
        draw_classes(classes, _confusions(settings, labels), partial)
    return table


def table_of(settings: BenchmarkSettings) -> pd.DataFrame:
    """One row a test tomogram and method, in the configuration's order."""
    rows = []
    for tomogram in tests_of(settings):
        for method in settings.methods:
            scores = FOLDER / settings.name / tomogram / method / "scores.json"
            row: dict[str, Any] = {"tomogram": tomogram, "method": method}
            if scores.is_file():
                values = json.loads(scores.read_text(encoding="utf-8"))
                row |= {
                    column: (values.get(part) or {}).get(key)
                    for column, (part, key) in FIGURES.items()
                }
                row["settings"] = _settings(settings, method, values)
                row["machine"] = values["cost"]["machine"]
                row["reason"] = ""
            else:
                row["reason"] = _reason(settings, tomogram, method)
            rows.append(row)
    columns = ["tomogram", "method", *FIGURES, "settings", "machine", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _settings(settings: BenchmarkSettings, method: str, values: Mapping[str, Any]) -> str:
    given = settings.methods[method].model_dump(exclude_defaults=True, mode="json")
    parts = [f"{key} {value}" for key, value in given.items() if key != "python"]
    for key, value in values["tuned"].items():
        if isinstance(value, Mapping):
            text = " ".join(
                f"{name}:{number:.3g}" for name, number in value.items() if number < 1e6
            )  # fmt: skip
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{key} {text}")
    return ", ".join(parts)


def _reason(settings: BenchmarkSettings, tomogram: str, method: str) -> str:
    """The last error of the jobs that the row waits for."""
    group = settings.tomograms[tomogram].group
    partners = [n for n, t in settings.tomograms.items() if t.group == group]
    logs = FOLDER / settings.name / "logs"
    files = [logs / f"{n}.{method}.{step}.log" for step in STEPS for n in [*partners, group]]
    files += [logs / f"{n}.prepare.log" for n in partners]
    for file in files:
        if not file.is_file():
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        faults = [line.split(": ", 1)[1] for line in lines if " ERROR " in line]
        if faults and not lines[-1].endswith(f"finished {file.suffixes[-2][1:]}"):
            return faults[-1]
    return NOT_YET


def page_of(name: str, table: pd.DataFrame) -> str:
    """The table as Markdown, a part a tomogram."""
    lines = [f"# {name}", "", LEGEND]
    for tomogram, rows in table.groupby("tomogram", sort=False):
        true = rows["true"].dropna()
        count = f", {int(true.iloc[0])} particles" if len(true) else ""
        lines += [f"## {tomogram}{count}", "", *markdown(rows), ""]
    return "\n".join(lines)


def markdown(rows: pd.DataFrame, *, first: Sequence[str] = ("method",)) -> list[str]:
    """Rows of a table in Markdown, with the reasons of those that have no figures below."""
    lines = ["| " + " | ".join([*first, *SHOWN]) + " |", "|" + "---|" * (len(first) + len(SHOWN))]
    reasons = []
    for row in rows.to_dict("records"):
        cells = [str(row[key]) for key in first]
        cells += [_cell(column, row[column]) for column in SHOWN]
        lines.append("| " + " | ".join(cells) + " |")
        if row["reason"]:
            reasons.append(f"- {row['method']}: {row['reason']}")
    return [*lines, *(["", *reasons] if reasons else [])]


def _cell(column: str, value: Any) -> str:
    if value is None or pd.isna(value):
        return "-"
    if column in ("hit twice", "picks"):
        return str(int(value))
    if column.endswith(" s"):
        return f"{value:.0f}"
    return f"{value:.2f}" if column.endswith("AD") else f"{value:.3f}"


def class_table(settings: BenchmarkSettings, densities: Path) -> pd.DataFrame:
    """One row a tomogram, method and true class: effective radius (voxels), recall, accuracy."""
    parts = []
    for tomogram in tests_of(settings):
        for method in settings.methods:
            file = FOLDER / settings.name / tomogram / method / "classes.csv"
            if not file.is_file():
                continue
            table = pd.read_csv(file, dtype={"class": str})
            table.insert(0, "tomogram", tomogram)
            table.insert(1, "method", method)
            parts.append(table)
    if not parts:
        return pd.DataFrame(columns=["tomogram", "method", "class", "effective_radius_vox"])
    joined = pd.concat(parts, ignore_index=True)
    radii = {
        name: load_density(densities, name).effective_radius_vox
        for name in SHREC_CLASSES
        if name in set(joined["class"])
    }
    joined.insert(3, "effective_radius_vox", joined["class"].map(radii).round(3))
    return joined


def _confusions(settings: BenchmarkSettings, labels: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Confusion matrices of the methods that name classes, on the first test tomogram."""
    found = {}
    tomogram = tests_of(settings)[0]
    for method in settings.methods:
        file = FOLDER / settings.name / tomogram / method / "confusion.csv"
        if file.is_file() and file.stat().st_size > 3:
            matrix = pd.read_csv(file, index_col="true", dtype={"true": str})
            if matrix.shape[1] > 1:
                found[f"{labels.get(method, method)}, {tomogram}"] = matrix
    return found
