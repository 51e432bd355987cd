"""The page of a data set of micrographs: counts, micrographs with their picks, curves."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tomoline.report import figures
from tomoline.report.pages import (
    Column,
    Page,
    box,
    data_uri,
    facts,
    figure,
    grid,
    paragraph,
    table,
    tiles,
)
from tomoline.report.palette import COLOURS

PICTURE_PX, QUALITY = 640, 70
PICKED, MISSED, REJECTED = COLOURS[0], COLOURS[1], "#8a8f98"


@dataclass(frozen=True, kw_only=True)
class MicrographResult:
    """One micrograph's outcome; `picks` as picks.csv, `truth` `(n, 2)` yx or None.

    `picture` are the grey values `(Y, X)` that the network saw, `scale_yx` given pixels a pixel of
    it.
    """

    micrograph: str
    facts: Mapping[str, Any]
    picks: pd.DataFrame
    picture: NDArray[np.uint8]
    truth: NDArray[np.float64] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> pd.DataFrame:
        """The picks."""
        return self.picks[self.picks["status"] == "accepted"]


@dataclass(frozen=True, kw_only=True)
class MicrographsResult:
    """A data set's outcome; `evaluation` as the stage's evaluation.json, empty without truth."""

    dataset: str
    micrographs: Sequence[MicrographResult]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    failed: Sequence[Mapping[str, str]] = ()
    left_out: Sequence[Mapping[str, str]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def micrographs_page(result: MicrographsResult, *, pictures: int) -> str:
    """The whole page; of many micrographs `pictures` are shown, from the fewest picks to the
    most."""
    page = Page(title=f"Micrographs of {result.dataset}", subtitle="Picked particles")
    page.head_html = _head(result)
    page.add("Not finished", _not_finished(result))
    page.add("How well", _evaluation(result.evaluation))
    page.add("Distributions", _distributions(result))
    shown = chosen(result.micrographs, pictures)
    page.add("Micrographs", paragraph(_LEGEND) + grid(*map(micrograph_figure, shown), wide=True)
             if shown else "")  # fmt: skip
    page.add("All micrographs", _table(result))
    page.add("Settings", facts(result.settings))
    return page.html()


_LEGEND = (
    "Rings are as wide as the particle. Orange: picks. Blue, dashed: known particles without a "
    "pick, where a truth is given. The picture is what the network saw: rescaled, flattened, and "
    "with the first row of the file on top."
)


def chosen(rows: Sequence[MicrographResult], number: int) -> list[MicrographResult]:
    """At most `number` micrographs, evenly over the numbers of their picks."""
    ordered = sorted(rows, key=lambda row: (len(row.accepted), row.micrograph))
    if len(ordered) <= number or number == 0:
        return ordered[:number]
    places = np.linspace(0, len(ordered) - 1, number).round().astype(int)
    return [ordered[k] for k in places]


def micrograph_figure(row: MicrographResult) -> str:
    """A micrograph with its picks as rings."""
    scale = np.asarray(row.facts["scale_yx"], float)
    radius = float(row.facts["diameter_px"]) / scale.mean() / 2
    ny, nx = row.picture.shape
    own = row.accepted
    places = own[["y_px", "x_px"]].to_numpy(float).reshape(-1, 2) / scale
    rings = _rings(places, radius, PICKED, own["score"].to_numpy(float))
    missed = ""
    if row.truth is not None:
        missed = _rings(_unpicked(row) / scale, radius, MISSED, None)
    buffer = io.BytesIO()
    picture = Image.fromarray(row.picture)
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    body = (
        f'<image width="{nx}" height="{ny}" preserveAspectRatio="none" '
        f'href="{data_uri(buffer.getvalue(), "image/jpeg")}"/>{rings}{missed}'
    )
    title = f"Micrograph {row.micrograph} with {len(own)} picks"
    caption = f"{row.micrograph}: {len(own)} picks"
    if row.truth is not None and row.figures:
        caption += f" of {len(row.truth)} known particles; "
        caption += f"precision {row.figures['precision']:.2f}, recall {row.figures['recall']:.2f}"
    return figure(figures.svg(body, width=nx, height=ny, title=title, kind="plane"), caption)


def _unpicked(row: MicrographResult) -> NDArray[np.float64]:
    """Known particles with no pick within half a diameter."""
    assert row.truth is not None
    own = row.accepted[["y_px", "x_px"]].to_numpy(float).reshape(-1, 2)
    if not len(own) or not len(row.truth):
        return row.truth
    apart = np.linalg.norm(row.truth[:, None] - own[None], axis=-1).min(1)
    unpicked: NDArray[np.float64] = row.truth[apart > float(row.facts["diameter_px"]) / 2]
    return unpicked


def _rings(
    yx: NDArray[np.float64], radius: float, colour: str, scores: NDArray[np.float64] | None
) -> str:
    dash = "" if scores is not None else ' stroke-dasharray="3 2"'
    tips = ["known, not picked"] * len(yx) if scores is None else [f"{s:.2f}" for s in scores]
    shapes = "".join(
        f'<circle cx="{x + 0.5:.1f}" cy="{y + 0.5:.1f}" r="{radius:.1f}"><title>{tip}</title>'
        "</circle>"
        for (y, x), tip in zip(yx, tips, strict=True)
    )
    return f'<g fill="none" stroke="{colour}" stroke-width="1.6"{dash}>{shapes}</g>'


def _head(result: MicrographsResult) -> str:
    counts = [len(row.accepted) for row in result.micrographs]
    items: list[tuple[str, str] | tuple[str, str, str]] = [
        (f"{len(counts)}", "micrographs picked"), (f"{sum(counts):,}", "particles"),
        (f"{np.median(counts):.0f}" if counts else "-", "a micrograph, the median"),
    ]  # fmt: skip
    if result.failed:
        items.append((f"{len(result.failed)}", "micrographs failed", "bad"))
    if "ap" in result.evaluation:
        items.append((f"{result.evaluation['ap']:.3f}", "average precision (IoU 0.6)"))
    notes = []
    empty = [row.micrograph for row in result.micrographs if row.facts["empty"]]
    if empty:
        notes.append(f"Nothing varies in {', '.join(empty)}: such an image holds no particles.")
    if counts and not sum(counts):
        notes.append(
            "No particle was picked. Check the particle's diameter, the pixel size and the "
            "contrast in the data set's file; then lower micrographs.threshold."
        )
    return tiles(items) + box(notes, "warn")


def _not_finished(result: MicrographsResult) -> str:
    rows = [[escape(r["micrograph"]), escape(r["state"]), escape(r["reason"])]
            for r in (*result.failed, *result.left_out)]  # fmt: skip
    if not rows:
        return ""
    return table([Column(head="micrograph"), Column(head="state"),
                  Column(head="reason", kind="prose")], rows, stack=True)  # fmt: skip


def _evaluation(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    own, curve = values["at_threshold"], values["curve"]
    text = facts({
        "average precision": f"{values['ap']:.4f}",
        "area under the ROC curve": _or_dash(values["auroc"]),
        "at the threshold": f"precision {own['precision']:.3f}, recall {own['recall']:.3f}, "
        f"F1 {own['f1']:.3f}",
        "known particles": f"{values['particles']} in {values['micrographs']} micrographs",
        "best threshold": f"{values['best_threshold']:.3f}",
    })  # fmt: skip
    pr = figures.lines(
        {"picks": (curve["recall"], curve["precision"])}, title="Precision against recall",
        x_label="recall", y_label="precision", x_span=(0.0, 1.0), y_span=(0.0, 1.0),
    )  # fmt: skip
    roc = figures.lines(
        {"picks": (curve["false_positive_rate"], curve["recall"])}, title="ROC",
        x_label="share of false candidates", y_label="recall", x_span=(0.0, 1.0),
        y_span=(0.0, 1.0),
    )  # fmt: skip
    return text + grid(
        figure(pr, "Precision against recall over the score; a pick is right at an IoU of 0.6."),
        figure(roc, "Recall against the share of all false candidates."),
    )


def _distributions(result: MicrographsResult) -> str:
    if not result.micrographs:
        return ""
    counts = [len(row.accepted) for row in result.micrographs]
    listed = pd.concat([row.picks for row in result.micrographs], ignore_index=True)
    groups = {
        name: listed.loc[listed["status"] == status, "score"].to_numpy(float)
        for name, status in (("picks", "accepted"), ("rejected", "rejected"))
    }
    reasons = Counter(listed.loc[listed["status"] == "rejected", "reason"])
    return grid(
        figure(figures.histogram(groups, title="Scores", label="score", span=(0.0, 1.0)),
               "Scores of all candidates."),
        figure(figures.histogram({"micrographs": np.asarray(counts, float)},
                                 title="Picks a micrograph", label="picks"),
               "How many picks a micrograph has."),
        figure(figures.bars({k: float(v) for k, v in sorted(reasons.items())},
                            title="Rejected candidates", digits=0),
               "Rejected candidates by reason.")
        if reasons else "",
    )  # fmt: skip


def _table(result: MicrographsResult) -> str:
    numbers = ("picks", "mean score", "known", "precision", "recall")
    columns = [Column(head="micrograph"), *(Column(head=n, kind="number") for n in numbers)]
    rows = []
    for row in result.micrographs:
        own = row.accepted
        rows.append([
            escape(row.micrograph), str(len(own)),
            f"{own['score'].mean():.3f}" if len(own) else "-",
            "" if row.truth is None else str(len(row.truth)),
            *(f"{row.figures[k]:.3f}" if k in row.figures else "" for k in ("precision", "recall")),
        ])  # fmt: skip
    return table(columns, rows, sort=True)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
