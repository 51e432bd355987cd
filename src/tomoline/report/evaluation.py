"""The evaluation section: localization both ways of counting, classes, confusion, DoG beside it.

Reads evaluation.json (`tomoline.evaluation.scores.Evaluation.to_json`) by its measures: every
nested mapping that holds a recall, precision or F1 becomes a line of the localization table,
named by where it stands, so a branch that adds a way of counting is shown without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from tomoline.evaluation.calibration import Bin, expected_calibration_error, merged_bins
from tomoline.evaluation.curve import pooled_curve
from tomoline.report import figures, pages
from tomoline.report.sources import as_float, finite

HEADLINES = (
    "shrec_precision", "shrec_recall", "shrec_f1", "one_to_one_precision", "one_to_one_recall",
    "one_to_one_f1", "dog_f1", "mean_class_accuracy",
)  # fmt: skip
_WORDS = {
    "one_to_one": "Tomoline, one to one",
    "shrec": "Tomoline, as SHREC counts",
    "czii": "Tomoline, as the CZII competition counts",
    "shrec_ceiling": "The true centres themselves, as SHREC counts",
    "dog: one_to_one": "Difference of Gaussians, one to one",
    "dog: shrec": "Difference of Gaussians, as SHREC counts",
}
_SHOWN_ELSEWHERE = ("per_class", "classes", "score_curve", "reliability")
_MEASURES = ("precision", "recall", "f1", "f_beta")
_COLUMNS = (
    (("predictions",), "Picks", 0),
    (("particles",), "True", 0),
    (("tp",), "Hits", 0),
    (("fp",), "False", 0),
    (("fn",), "Missed", 0),
    (("mh",), "Hit twice", 0),
    (("ro",), "Outside", 0),
    (("precision",), "Precision", 3),
    (("recall",), "Recall", 3),
    (("f1",), "F1", 3),
    (("f_beta",), "F-beta", 3),
    (("ad_vox",), "Distance (voxels)", 2),
    (("mean_class_accuracy",), "Class accuracy", 3),
)  # fmt: skip


def evaluation_html(
    evaluation: Mapping[str, Any],
    classes: pd.DataFrame,
    confusion: pd.DataFrame,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Return the section of one tomogram; empty where there is no truth.

    `marks` are scores to be marked on the curve of precision and recall.
    """
    if not evaluation and classes.empty and confusion.empty:
        return ""
    text = _how_counted(evaluation) + _localization_html(evaluation)
    if np.isfinite(headline(evaluation)["mean_class_accuracy"]):
        text += pages.paragraph(
            "Class accuracy: particles found and given the right class, of all true particles of "
            "the class, averaged over the classes.",
            "note",
        )
    text += _class_html(classes)
    text += curves_html(
        as_mapping(evaluation.get("score_curve")),
        as_mapping(evaluation.get("reliability")),
        marks,
        first_html=confusion_html(confusion),
    )
    return text + _others_html(evaluation)


def curves_html(
    curve: Mapping[str, Any],
    reliability: Mapping[str, Any],
    marks: Mapping[str, float] | None,
    *,
    first_html: str = "",
) -> str:
    """Return precision and recall against the score, and what confidences were worth.

    `first_html` is a figure to stand before them.
    """
    charts = [first_html] if first_html else []
    if curve.get("min_score"):
        x = curve["min_score"]
        charts.append(
            pages.figure(
                figures.lines(
                    {"precision": (x, curve["precision"]), "recall": (x, curve["recall"])},
                    title="Precision and recall against the score", x_label="least score kept",
                    y_label="", y_span=(0.0, 1.0), marks=marks,
                ),
                "Precision and recall, one to one, if only particles from a score on are kept "
                "(export.min_score).",
            )
        )  # fmt: skip
    for key, head, words in (
        ("particle", "Is it a particle?", "that a candidate is a particle"),
        ("class", "Is it of this class?", "that a particle found is of the class it was given"),
    ):
        part = as_mapping(reliability.get(key))
        if not part.get("bins"):
            continue
        of = "the score" if part.get("of") == "score" else f"{part.get('of')}"
        charts.append(
            pages.figure(
                figures.reliability(
                    {of: part["bins"]}, title=head, x_label=f"promised ({of})",
                    y_label="came true",
                ),
                f"Reliability of {of}, the probability {words}: on the dashed line promises are "
                "kept, below it they are too bold. Ten groups of about equal number; expected "
                f"calibration error {_fixed(as_float(part.get('ece')))}.",
            )
        )  # fmt: skip
    return pages.grid(*charts, wide=True) if charts else ""


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, an empty one for anything else: an older release wrote less."""
    return value if isinstance(value, Mapping) else {}


def pooled_html(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the curves of a data set's tomograms taken together."""
    curve = pooled_curve([dict(as_mapping(e.get("score_curve"))) for e in evaluations.values()])
    reliability: dict[str, Any] = {}
    for key in ("particle", "class"):
        parts = [
            as_mapping(as_mapping(e.get("reliability")).get(key)) for e in evaluations.values()
        ]
        parts = [part for part in parts if part.get("bins")]
        if not parts or len({part.get("of") for part in parts}) > 1:
            continue
        bins = merged_bins(
            [Bin(n=b[0], confidence=b[1], right=b[2]) for part in parts for b in part["bins"]]
        )
        reliability[key] = {
            "of": parts[0].get("of"),
            "ece": expected_calibration_error(bins),
            "bins": [[b.n, b.confidence, b.right] for b in bins],
        }
    marks = {"kept": min(curve["min_score"])} if curve.get("min_score") else None
    return curves_html(curve, reliability, marks)


def summary_html(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the data set's table: the headline figures of each tomogram that has a truth."""
    known = {name: headline(value) for name, value in evaluations.items() if value}
    if not known:
        return ""
    keys = [key for key in HEADLINES if any(np.isfinite(row[key]) for row in known.values())]
    rows = [[escape(name), *(_fixed(row[key]) for key in keys)] for name, row in known.items()]
    if len(known) > 1:
        means = [np.array([row[key] for row in known.values()]) for key in keys]
        rows.append(["mean", *(_fixed(float(np.mean(m[np.isfinite(m)]))) for m in means)])
    columns = [pages.Column(head="Tomogram")]
    columns += [pages.Column(head=_head(key), kind="number") for key in keys]
    note = (
        "SHREC counts a particle as found when a pick falls into its volume (dilated by one "
        "voxel); one to one asks for a pick of its own near its centre. DoG, a "
        "difference-of-Gaussians picker that is told the true number of particles, knows no class."
    )
    return pages.table(
        columns, rows, caption=note, row_kinds={len(known): "sum"} if len(known) > 1 else None
    )


def blocks(
    evaluation: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Mapping[str, Any]]:
    """Return every nested mapping that holds localization measures, by its dotted place."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in evaluation.items():
        if not isinstance(value, Mapping) or key in ("per_class", "classes"):
            continue
        here = (*path, str(key))
        if any(np.isfinite(as_float(value.get(measure))) for measure in _MEASURES):
            found[": ".join(here)] = value
        found |= blocks(value, here)
    return found


def headline(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of `HEADLINES`, NaN where the evaluation has none."""
    found = dict.fromkeys(HEADLINES, float("nan"))
    known = blocks(evaluation)
    for kind in ("shrec", "one_to_one"):
        for measure in ("precision", "recall", "f1"):
            found[f"{kind}_{measure}"] = as_float(known.get(kind, {}).get(measure))
    found["dog_f1"] = as_float(known.get("dog: one_to_one", {}).get("f1"))
    accuracy = known.get("one_to_one", {}).get("mean_class_accuracy")
    found["mean_class_accuracy"] = as_float(accuracy)
    return found


def confusion_html(confusion: pd.DataFrame) -> str:
    """Return the confusion matrix as a picture; its first column names the true classes."""
    if confusion.empty:
        return ""
    rows = [str(name) for name in confusion.iloc[:, 0]]
    columns = [str(name) for name in confusion.columns[1:]]
    counts = np.nan_to_num(np.column_stack([finite(confusion[c]) for c in confusion.columns[1:]]))
    picture = figures.heatmap(
        counts, rows=rows, columns=columns, title="Confusion matrix",
        row_label="true class", column_label="called",
    )  # fmt: skip
    return pages.figure(
        picture,
        "Confusion matrix: each row holds the true particles of a class, each column what they "
        "were called; “not found” and “not a particle” stand for misses and for false picks. A "
        "perfect result is all on the diagonal.",
    )


def _how_counted(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return ""
    distance = as_float(evaluation.get("hit_distance_vox"))
    near = (
        f"within {distance:g} voxels of its centre" if np.isfinite(distance) else "near its centre"
    )
    return pages.paragraph(
        "This tomogram's truth is known. SHREC's way counts a particle as found when a pick falls "
        f"into its volume; one to one asks for a pick of its own {near}. Beside it stands a "
        "difference-of-Gaussians picker that is told the true number of particles and takes the "
        "best of three scales; it knows no class."
    )


def _localization_html(evaluation: Mapping[str, Any]) -> str:
    found = blocks(evaluation)
    if not found:
        return ""
    used = [
        (names, head, digits)
        for names, head, digits in _COLUMNS
        if any(np.isfinite(_first(block, names)) for block in found.values())
    ]
    rows = [
        [escape(_name(name))] + [_fixed(_first(block, names), digits) for names, _, digits in used]
        for name, block in found.items()
    ]
    columns = [pages.Column(head="Finding particles", kind="prose")]
    columns += [pages.Column(head=head, kind="number") for _, head, _ in used]
    return pages.table(columns, rows)


def _class_html(classes: pd.DataFrame) -> str:
    if classes.empty:
        return ""
    columns = [pages.Column(head=str(classes.columns[0]).replace("_", " "))]
    columns += [
        pages.Column(head=str(c).replace("_", " "), kind="number") for c in classes.columns[1:]
    ]
    rows = [
        [escape(str(record[0])), *(_any(value) for value in record[1:])]
        for record in classes.itertuples(index=False, name=None)
    ]
    return pages.table(columns, rows, caption="Class by class.")


def _others_html(evaluation: Mapping[str, Any]) -> str:
    """Measures of other kinds (segmentation, settings of the comparison), named as they are."""
    taken = set(blocks(evaluation))
    pairs: dict[str, str] = {}

    def collect(value: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, item in value.items():
            here = (*path, str(key))
            if isinstance(item, Mapping):
                if ": ".join(here) not in taken and key not in _SHOWN_ELSEWHERE:
                    collect(item, here)
            elif isinstance(item, bool | int | float | str):
                pairs[": ".join(here).replace("_", " ")] = _any(item)

    collect(evaluation, ())
    return pages.details("All other figures of the evaluation", pages.facts(pairs)) if pairs else ""


def _first(block: Mapping[str, Any], names: Sequence[str]) -> float:
    """The first of several names that the block has: branches may spell a measure differently."""
    return next((as_float(block[name]) for name in names if name in block), float("nan"))


def _name(place: str) -> str:
    if place in _WORDS:
        return _WORDS[place]
    return place.replace("_", " ").capitalize()


def _head(key: str) -> str:
    text = key.replace("one_to_one_", "one to one ").replace("shrec_", "SHREC ")
    return text.replace("dog_", "DoG ").replace("f1", "F1").replace("_", " ")


def _fixed(value: float, digits: int = 3) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def _any(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return escape(value)
    number = as_float(value)
    return f"{number:.3f}" if np.isfinite(number) and number % 1 else figures.number(number)
