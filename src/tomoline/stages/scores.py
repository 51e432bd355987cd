"""The evaluation of a dataset's tomograms as a table for the terminal, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tomoline.errors import InputError
from tomoline.stages.status import layout, read_domain

_HEAD = (
    "tomogram", "true", "found", "precision", "recall", "F1", "distance", "class", "SHREC F1",
    "DoG F1", "",
)  # fmt: skip
_FILES = {
    "RELION-5 particles": "export/relion5/particles.star",
    "RELION-5 import list": "export/relion5/import.star",
    "RELION-4 particles": "export/relion4/particles.star",
    "table of particles": "export/csv/particles.csv",
    "data set's page": "report/summary.html",
    "report": "report.html",
}


def read_scores(results: str | Path) -> dict[str, dict[str, Any]]:
    """Return evaluation.json of each tomogram of results/<dataset> that has one, by name.

    Raises InputError where none has.
    """
    found = sorted(Path(results).glob("*/evaluation.json"))
    if not found:
        raise InputError(
            results,
            expected="evaluated tomograms",
            found="none",
            remedy="name a truth in the column truth of the dataset's sheet, and run the workflow",
        )
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def format_scores(
    scores: Mapping[str, Mapping[str, Any]], domains: Mapping[str, str] | None = None
) -> str:
    """Lay the scores out, a row a tomogram, with a line that says what the columns are.

    `domains` are sentences on tomograms that the model may not know.
    """
    told = domains or {}
    rows = [[name, *_cells(score)] for name, score in scores.items()]
    notes = [f"  {name}: {told[name]}" for name in scores if told.get(name)]
    some = next(iter(scores.values()))
    return "\n".join(
        [
            *layout([list(_HEAD), *rows]),
            f"  One to one within {some['hit_distance_vox']:g} voxels; distance: mean, in voxels; "
            "class: mean class accuracy",
            "  (right class / all true); SHREC F1: hits counted by the true volumes; DoG: a "
            "difference-of-Gaussians picker",
            "  that is told the true number of particles and knows no class.",
            *notes,
            "",
        ]
    )


def read_domains(results: str | Path, names: Iterable[str]) -> dict[str, str]:
    """Return what is to be said of each tomogram that the model may not know."""
    found = {name: read_domain(Path(results) / name) for name in names}
    return {
        name: str(domain.get("reason", ""))
        for name, domain in found.items()
        if domain.get("in_domain") in ("doubtful", "no")
    }


def format_files(results: str | Path) -> str:
    """List the dataset's files that are there."""
    folder = Path(results)
    lines = [f"  {what:22} {folder / name}" for what, name in _FILES.items()
             if (folder / name).is_file()]  # fmt: skip
    return "\n".join([*lines, f"  {'for each tomogram':22} {folder}/<tomogram>/", ""])


def _cells(score: Mapping[str, Any]) -> list[str]:
    mine = score["one_to_one"]
    shrec, dog = score.get("shrec") or {}, (score.get("dog") or {}).get("one_to_one") or {}
    figures = [mine["precision"], mine["recall"], mine["f1"], mine["ad_vox"],
               mine.get("mean_class_accuracy"), shrec.get("f1"), dog.get("f1")]  # fmt: skip
    texts = ["-" if value is None else f"{value:.3f}" for value in figures]
    return [str(score["particles"]), str(score["predictions"]), *texts, ""]
