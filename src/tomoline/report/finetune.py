"""The page of a fine-tuning: what was learnt, and what it changed on the labels held out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tomoline.evaluation.held_out import NOT_MEASURABLE
from tomoline.report.pages import Column, Page, box, facts, paragraph, table, tiles

_TOLD = {
    "recall": "particles found",
    "precision": "of picks that are particles (precision)",
    "f1": "F1",
    "class_accuracy": "found and named rightly, mean of the classes",
}


def finetune_page(report: Mapping[str, Any]) -> str:
    """Return the page of what `stages/finetune.py` writes as finetune.json."""
    page = Page(
        title=f"Fine-tuning {report['name']}",
        subtitle=f"Classes: {', '.join(report['classes'])}",
    )
    if "after" in report:
        page.head_html = tiles([
            (_shown(report["before"], key) + " → " + _shown(report["after"], key), word)
            for key, word in _TOLD.items()
        ])  # fmt: skip
        page.add("Before and after, on what was held out", _before_after(report))
        page.add("By class", _classes(report))
    if known := report["known_before"]:
        page.add("The classes that were known before", paragraph(
            f"Of {known['boxes']} simulated particles of {known['classes']} classes that were not "
            f"learnt from, the mean of the classes named rightly is {known['before']:.3f} before "
            f"and {known['after']:.3f} after."))  # fmt: skip
    page.add("What was learnt", _learnt(report))
    page.add("To know", box([*report["notes"], f"Sift: {report['sift']}"]))
    return page.html()


def _before_after(report: Mapping[str, Any]) -> str:
    before, after = report["before"], report["after"]
    names = {
        "particles": "known particles", "picks": "picks", "found": "of the particles found",
        "recall": "recall", "recall_at_as_many_picks": "recall at as many picks as before",
        "precision": "precision", "f1": "F1", "class_accuracy": "class accuracy",
        "negatives": "known to be none", "left_alone": "of these left alone",
    }  # fmt: skip
    rows = [
        [escape(word), _shown({**before, "recall_at_as_many_picks": before["recall"]}, key),
         _shown(after, key)]
        for key, word in names.items()
    ]  # fmt: skip
    text = "" if report["complete"] else f"Precision is {NOT_MEASURABLE}."
    columns = [Column(head="figure"), Column(head="before", kind="number"),
               Column(head="after", kind="number")]  # fmt: skip
    return table(columns, rows, caption=text)


def _classes(report: Mapping[str, Any]) -> str:
    before, after = (report[when]["classes"] for when in ("before", "after"))
    keys = ("right", "called", "recall", "precision", "f1")
    rows = []
    for name in sorted({**before, **after}):
        old, new = before.get(name, {}), after.get(name, {})
        true = new.get("true", old.get("true", 0))
        cells = [f"{_shown(old, key)} → {_shown(new, key)}" for key in keys]
        rows.append([escape(name), str(true), *cells])
    heads = ["class", "known", "found and named so", "picks named so", "recall", "precision", "F1"]
    return table([Column(head=h, kind="" if k == 0 else "number") for k, h in enumerate(heads)],
                 rows)  # fmt: skip


def _learnt(report: Mapping[str, Any]) -> str:
    rows = [
        [escape(name), *(str(row[key]) for key in (
            "learnt", "negatives_learnt", "held_out", "negatives_held_out")),
         escape(row["measured_by"])]
        for name, row in report["tomograms"].items()
    ]  # fmt: skip
    heads = ["tomogram", "particles learnt", "negatives learnt", "particles held out",
             "negatives held out", "measured by"]  # fmt: skip
    counts = {
        f"{role}, {key.replace('_', ' ')}": str(value)
        for role, own in report["learnt"].items() for key, value in own.items()
    }  # fmt: skip
    columns = [Column(head=h, kind="number" if 0 < k < 5 else "") for k, h in enumerate(heads)]
    return table(columns, rows) + facts(counts)


def _shown(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
