"""The page of a whole data set: what came in, what came out, what failed, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from tomoline.contracts import BACKGROUND, EXPECTED_PRECISION
from tomoline.export.dialect import is_selected, what_was_asked
from tomoline.networks.cards import NAME_WHOLE
from tomoline.report import figures, pages, plots
from tomoline.report.evaluation import HEADLINES, headline, pooled_html, summary_html
from tomoline.report.methods import (
    CITATIONS,
    EVALUATION_CITATION,
    WHOLE_CITATION,
    methods_text,
)
from tomoline.report.models import models_html
from tomoline.report.palette import ClassStyle, class_order, styles
from tomoline.report.sources import Timing, as_float, finite, stage_order
from tomoline.settings import ExportSettings

MAX_ROWS = 40  # tomograms in the picture of classes
SCORE_BINS = 20
MAX_THUMBNAILS = 60
_STYLE = (
    ".thumbs{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0}"
    ".thumb{width:112px;font-size:.8rem;text-decoration:none;overflow-wrap:anywhere}"
    ".thumb img{display:block;width:112px;height:112px;object-fit:contain;background:#777}"
    "blockquote{margin:6px 0;padding:2px 14px;border-left:4px solid var(--line)}"
    "#methods-citations p{margin:2px 0}"
)
STATE_WORDS = {
    "finished": "finished",
    "failed": "failed",
    "refused": "refused",
    "unused": "left out in the sheet",
    "interrupted": "interrupted",
    "running": "running",
    "to do": "not run yet",
}


@dataclass(frozen=True, kw_only=True)
class TomogramRow:
    """One tomogram's line. `state` is a key of `STATE_WORDS`; `link` is relative to the page."""

    tomogram: str
    state: str
    stage: str = ""
    reason: str = ""
    particles: pd.DataFrame = field(default_factory=pd.DataFrame)  # status, class, score
    class_names: tuple[str, ...] = ()
    size_xyz: tuple[int, int, int] | None = None
    voxel_size_angstrom: float = float("nan")
    warnings: tuple[str, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    in_domain: str = ""  # yes, doubtful, no, unknown; empty where nothing was said
    domain_reason: str = ""
    timings: Sequence[Timing] = ()
    link: str = ""
    thumbnail_jpeg: bytes = b""

    @cached_property
    def accepted(self) -> pd.DataFrame:
        """Kept particles; no rows where there is no table."""
        if "status" not in self.particles.columns:
            return self.particles.iloc[:0]
        return self.particles[self.particles["status"] == "accepted"]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Kept particles by class."""
        if "class" not in self.particles.columns:
            return {}
        return {str(k): int(v) for k, v in self.accepted["class"].value_counts().items()}


@dataclass(frozen=True, kw_only=True)
class DatasetResult:
    """Everything the page is made of."""

    dataset: str
    rows: Sequence[TomogramRow]
    cards: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    exports: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @cached_property
    def class_styles(self) -> dict[str, ClassStyle]:
        """Colour and shape of each class: the tables' order, else the classifier card's."""
        names = dict.fromkeys(name for row in self.rows for name in row.class_names)
        if not names:
            cards = [card for card in self.cards if card.get("role") == "classifier"]
            names = dict.fromkeys(n for c in cards for n in c.get("classes", []) if n != BACKGROUND)
        seen = {name for row in self.rows for name in row.counts}
        return styles(class_order([f"p_{name}" for name in names], seen))

    def in_state(self, *states: str) -> list[TomogramRow]:
        """Rows in one of the states."""
        return [row for row in self.rows if row.state in states]


def dataset_page(result: DatasetResult) -> str:
    """Return the page's HTML."""
    page = pages.Page(
        title=f"Data set {result.dataset}",
        style=_STYLE + plots.STYLE,
        subtitle="Particles found and classified by Tomoline",
        head_html=_head(result),
    )
    page.add("What needs attention", _attention_html(result))
    page.add("Tomograms", _tomograms_html(result))
    page.add("Particles by class", _classes_html(result))
    course = trends_html(result)
    page.add("From tomogram to tomogram", course)
    page.script_html = plots.inline_script() if course else ""
    evaluations = {row.tomogram: row.evaluation for row in result.rows}
    page.add("Against the truth", summary_html(evaluations) + pooled_html(evaluations))
    page.add("Where the files are", _files_html(result))
    page.add("Time and memory", _timings_html(result))
    page.add("The networks", models_html(result.cards, result.curves))
    page.add("Methods and citations", _methods_html(result))
    page.add("Software and settings", _software_html(result))
    return page.html()


def summary_table(result: DatasetResult) -> pd.DataFrame:
    """Return one row a tomogram: state, counts by class, headline figures of the evaluation.

    Times are not in it, so that the same results give the same bytes.
    """
    names = list(result.class_styles)
    evaluated = any(row.evaluation for row in result.rows)
    lines = []
    for row in result.rows:
        nx, ny, nz = row.size_xyz or ("", "", "")
        line: dict[str, Any] = {
            "tomogram": row.tomogram,
            "state": row.state,
            "stage": row.stage,
            "reason": row.reason,
            "nx": nx,
            "ny": ny,
            "nz": nz,
            "voxel_size_angstrom": _blank(row.voxel_size_angstrom),
            "particles": len(row.accepted) if row.particles.columns.size else "",
            "rejected": len(row.particles) - len(row.accepted)
            if row.particles.columns.size
            else "",
            "median_score": _blank(_median_score(row)),
            "in_domain": row.in_domain,
            "domain_reason": row.domain_reason,
            "warnings": "; ".join(row.warnings),
        }
        line |= {f"n_{name}": row.counts.get(name, 0) if row.counts else "" for name in names}
        if evaluated:
            figures_of = headline(row.evaluation)
            line |= {key: _blank(figures_of.get(key, float("nan"))) for key in HEADLINES}
        lines.append(line)
    return pd.DataFrame(lines)


def _head(result: DatasetResult) -> str:
    n_particles = sum(len(row.accepted) for row in result.rows)
    failed, refused = len(result.in_state("failed", "interrupted")), len(result.in_state("refused"))
    waiting = len(result.in_state("to do", "running"))
    tiles: list[Any] = [
        (f"{len(result.rows):,}", f"tomogram{_s(len(result.rows))} came in"),
        (f"{len(result.in_state('finished')):,}", "finished"),
        (f"{failed:,}", "failed", "bad" if failed else ""),
        (f"{refused:,}", "refused when onboarded", "bad" if refused else ""),
    ]
    if waiting:
        tiles.append((f"{waiting:,}", "not finished yet"))
    tiles.append((f"{n_particles:,}", f"particle{_s(n_particles)} came out"))
    problem = pages.box([result.problem], "bad") if result.problem else ""
    return (
        f'<p class="lead">{escape(_sentence(result))}</p>{problem}{pages.tiles(tiles)}'
        f"{_minute_html(result)}"
    )


def _minute_html(result: DatasetResult) -> str:
    """Four boxes: what came in, what came out, what failed and why, what to do."""
    if not result.rows:
        return ""
    broken = result.in_state("failed", "interrupted", "refused")
    doubts = [row for row in result.rows if row.in_domain in ("no", "doubtful")]
    boxes = (
        ("What came in", "", _came_in(result)),
        ("What came out", "", _came_out(result)),
        ("What failed, and why", "bad" if broken else "warn" if doubts else "",
         _what_failed(result)),
        ("What to do", "", [escape(text) for text in _to_do(result)] + _look_first(result)),
    )  # fmt: skip
    cells = "".join(
        f'<div class="{kind}"><h2>{head}</h2>{"".join(f"<p>{text}</p>" for text in texts)}</div>'
        for head, kind, texts in boxes
    )
    return f'<div class="minute">{cells}</div>'


def _came_in(result: DatasetResult) -> list[str]:
    known = [row for row in result.rows if row.size_xyz]
    n = len(result.rows)
    texts = [f"{n:,} tomogram{_s(n)}."]
    if known:
        sizes = sorted({row.size_xyz for row in known if row.size_xyz}, key=np.prod)
        voxels = sorted({round(row.voxel_size_angstrom, 3) for row in known})
        first, last = (" × ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        texts.append(
            (f"{first} voxels" if first == last else f"{first} to {last} voxels")
            + " of "
            + " to ".join(dict.fromkeys(figures.number(v, 4) for v in (voxels[0], voxels[-1])))
            + "\u00a0Å."
        )
        depths = [row.size_xyz[2] * row.voxel_size_angstrom / 10 for row in known if row.size_xyz]
        ends = dict.fromkeys(f"{depth:,.0f}" for depth in (min(depths), max(depths)))
        texts.append(f"{' to '.join(ends)} nm deep.")
    truths = sum(bool(row.evaluation) for row in result.rows)
    if truths:
        texts.append(f"The truth is known for {truths:,}: see “Against the truth”.")
    return texts


def _came_out(result: DatasetResult) -> list[str]:
    done = [row for row in result.rows if row.particles.columns.size]
    kept = [len(row.accepted) for row in done]
    if not sum(kept):
        return ["No particle was kept."]
    seen = {name for row in done for name in row.counts}
    texts = [
        f"<b>{sum(kept):,} particle{_s(sum(kept))}</b> of "
        f"{len(seen)} class{'es' if len(seen) > 1 else ''}, "
        f"{np.median(kept):,.0f} in a usual tomogram (median; {min(kept):,} to {max(kept):,})."
    ]
    texts += _exported(result, done)
    promised = [
        finite(row.accepted[EXPECTED_PRECISION])
        for row in done
        if EXPECTED_PRECISION in row.accepted.columns
    ]
    every = np.concatenate(promised) if promised else np.zeros(0)
    every = every[np.isfinite(every)]
    if every.size:
        texts.append(
            f"By their scores about {100 * every.mean():.0f} in 100 are particles (as measured on "
            "simulated tomograms)."
        )
    lists = [path for path in result.exports if path.endswith("/particles.star")]
    if lists:
        first = next((path for path in lists if "relion5" in path), lists[0])
        texts.append(f"For RELION: <code>{escape(first)}</code>")
    return texts


def _exported(result: DatasetResult, done: Sequence[TomogramRow]) -> list[str]:
    """Say how many particles the settings of the export leave, where they leave any out."""
    try:
        settings = ExportSettings.model_validate(result.config.get("export") or {})
    except ValidationError:  # a hand-edited config.yaml: the page is made anyway
        return []
    asked = what_was_asked(settings)
    if not asked or (
        settings.min_expected_precision > 0
        and not all(EXPECTED_PRECISION in row.particles.columns for row in done)
    ):
        return []
    left = sum(int(is_selected(row.particles, settings).sum()) for row in done)
    return [f"<b>{left:,} of them</b> are in the files for other programs ({escape(asked)})."]


def _what_failed(result: DatasetResult) -> list[str]:
    broken = result.in_state("failed", "interrupted", "refused")
    texts = []
    for row in broken[:3]:
        cause = split_remedy(row.reason)[0] or "no reason was left"
        cause = cause if len(cause) <= 110 else f"{cause[:109]}…"
        where = f" in {row.stage}" if row.stage else ""
        texts.append(f"<b>{escape(row.tomogram)}</b>{escape(where)}: {escape(cause)}")
    if len(broken) > 3:
        texts.append(f"and {len(broken) - 3} more, all in the table below.")
    if not broken:
        texts.append("Nothing failed.")
    for flag, words in (("no", "The models cannot judge"), ("doubtful", "The models may not know")):
        n = sum(row.in_domain == flag for row in result.rows)
        if n:
            texts.append(f"{words} {n} tomogram{_s(n)}: see below.")
    return texts


def _look_first(result: DatasetResult) -> list[str]:
    """Name the tomograms that say most: the one of lowest scores, of fewest and most particles."""
    done = [row for row in result.in_state("finished") if len(row.accepted)]
    if len(done) < 2:
        return []
    chosen: dict[str, TomogramRow] = {}
    counts = {len(row.accepted) for row in done}
    named = [("lowest scores", min(done, key=_median_score))]
    if len(counts) > 1:
        named += [
            ("fewest particles", min(done, key=lambda row: len(row.accepted))),
            ("most particles", max(done, key=lambda row: len(row.accepted))),
        ]
    for words, row in named:
        before = next((w for w, r in chosen.items() if r is row), None)
        if before is None:
            chosen[words] = row
        else:
            chosen = {f"{w}, {words}" if w == before else w: r for w, r in chosen.items()}
    listed = "; ".join(f"{_link_html(row)} ({words})" for words, row in chosen.items())
    return [f"Look first at {listed}."]


def _median_score(row: TomogramRow) -> float:
    scores = finite(row.accepted["score"]) if "score" in row.accepted.columns else np.zeros(0)
    scores = scores[np.isfinite(scores)]
    return float(np.median(scores)) if scores.size else float("nan")


def _link_html(row: TomogramRow) -> str:
    name = escape(row.tomogram)
    return f'<a class="page" href="{escape(row.link)}">{name}</a>' if row.link else name


def _sentence(result: DatasetResult) -> str:
    total, done = len(result.rows), len(result.in_state("finished"))
    n_particles = sum(len(row.accepted) for row in result.rows)
    if total == 0:
        return "No tomogram is listed for this data set."
    failed = result.in_state("failed", "interrupted")
    if done == total:
        text = f"All {total} tomograms finished" if total > 1 else "The tomogram finished"
    else:
        text = f"{done} of {total} tomograms finished"
    text += f" with {n_particles:,} particle{_s(n_particles)}."
    if failed:
        names = ", ".join(row.tomogram for row in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        text += f" Failed: {names}{more}; the reasons and what to do are below."
    return text


def _attention_html(result: DatasetResult) -> str:
    broken = result.in_state("failed", "interrupted", "refused")
    warned = [row for row in result.rows if row.warnings]
    finished = result.in_state("finished")
    empty = [row for row in finished if row.particles.columns.size and row.accepted.empty]
    text = pages.box(_to_do(result), "bad") if broken else ""
    if broken:
        rows = []
        for row in broken:
            cause, remedy = split_remedy(row.reason)
            rows.append(
                [
                    escape(row.tomogram),
                    escape(STATE_WORDS.get(row.state, row.state)),
                    escape(row.stage or "–"),
                    escape(cause or "no reason was left"),
                    escape(remedy or _default_remedy(row)),
                ]
            )
        columns = [
            pages.Column(head="Tomogram"),
            pages.Column(head="What happened"),
            pages.Column(head="Stage"),
            pages.Column(head="Why", kind="prose"),
            pages.Column(head="What to do", kind="prose"),
        ]
        text += pages.table(columns, rows, stack=True)
    if empty:
        names = ", ".join(row.tomogram for row in empty)
        text += pages.box(
            [
                f"No particle was found in: {names}. Their files are valid and empty. If you "
                "see particles by eye, check the contrast and the voxel size on their pages."
            ],
            "warn",
        )
    if warned:
        text += "<h3>Warnings</h3>" + pages.box(_grouped_warnings(warned), "warn")
    for flag, head, kind in (
        ("no", "Tomograms that the model cannot judge", "bad"),
        ("doubtful", "Tomograms unlike those the model was made for", "warn"),
    ):
        lines = [f"{r.tomogram}: {r.domain_reason}" for r in result.rows if r.in_domain == flag]
        if lines:
            text += f"<h3>{head}</h3>" + pages.box(lines, kind)
    return text


def _grouped_warnings(rows: Sequence[TomogramRow]) -> list[str]:
    """One line a warning with the tomograms that have it, the commonest first."""
    names: dict[str, list[str]] = {}
    for row in rows:
        for warning in dict.fromkeys(row.warnings):
            names.setdefault(warning, []).append(row.tomogram)
    ranked = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"{', '.join(found)}: {warning}" for warning, found in ranked]


def _to_do(result: DatasetResult) -> list[str]:
    failed, refused = result.in_state("failed", "interrupted"), result.in_state("refused")
    steps = []
    if failed:
        steps.append(
            "Mend what the table names, then run the same command again: only the failed "
            "tomograms are done again, the finished ones stay as they are."
        )
    if refused:
        steps.append(
            "Refused files were never run. Mend the file and run “tomoline onboard” again, or "
            "leave them out."
        )
    if result.in_state("to do", "running"):
        steps.append("Some tomograms are not finished; run the workflow (again) to do them.")
    if not steps and result.rows:
        steps.append("See whether the marks sit on particles before you go on.")
    return steps


def split_remedy(reason: str) -> tuple[str, str]:
    """Split an error's message "source: expected ...; found ... Remedy: ..." into cause, remedy."""
    reason = re.sub(r"^[A-Za-z.]*(?:Error|Exception): ", "", reason.strip())
    cause, mark, remedy = reason.partition("Remedy:")
    return (cause.strip(), remedy.strip()) if mark else (reason.strip(), "")


def _default_remedy(row: TomogramRow) -> str:
    if row.state == "refused":
        return "Mend the file, then run “tomoline onboard” again."
    log = f"results/…/{row.tomogram}/logs/{row.stage or '<stage>'}.log"
    return f"Read {log}, then run the workflow again."


def _tomograms_html(result: DatasetResult) -> str:
    if not result.rows:
        return ""
    looks = result.class_styles
    hint = "whether the model was made for such a tomogram"
    columns = [pages.Column(head="Tomogram"), pages.Column(head="State")]
    columns.append(pages.Column(head="Model fits", hint=hint))
    columns += [
        pages.Column(head=head, kind="number")
        for head in ("Size\u00a0x\u00a0×\u00a0y\u00a0×\u00a0z", "Å/voxel", "Particles", "Rejected")
    ]
    columns += [pages.Column(head=name, kind="number") for name in looks]
    columns.append(pages.Column(head="Warnings", kind="number"))
    rows, kinds = [], {}
    for i, row in enumerate(result.rows):
        rows.append(_tomogram_cells(row, list(looks)))
        if row.state in ("failed", "refused", "interrupted"):
            kinds[i] = "bad"
    total = {name: sum(row.counts.get(name, 0) for row in result.rows) for name in looks}
    kept = sum(len(row.accepted) for row in result.rows)
    everything = sum(len(row.particles) for row in result.rows)
    rows.append(
        ["all", "", "", "", "", f"{kept:,}", f"{everything - kept:,}"]
        + [f"{count:,}" for count in total.values()]
        + [str(sum(len(row.warnings) for row in result.rows))]
    )
    kinds[len(rows) - 1] = "sum"
    note = (
        "A tomogram's name opens its own page (results/<data set>/<tomogram>/report/). Click a "
        "heading to sort."
    )
    table = pages.table(columns, rows, caption=note, row_kinds=kinds, sort=True)
    return _thumbnails(result) + table


def _tomogram_cells(row: TomogramRow, names: Sequence[str]) -> list[str]:
    known = row.particles.columns.size > 0
    return [
        _link_html(row),
        escape(STATE_WORDS.get(row.state, row.state)),
        escape(row.in_domain) or "–",
        " × ".join(map(str, row.size_xyz)) if row.size_xyz else "–",
        figures.number(row.voxel_size_angstrom, 4),
        f"{len(row.accepted):,}" if known else "–",
        f"{len(row.particles) - len(row.accepted):,}" if known else "–",
        *(f"{row.counts.get(n, 0):,}" if known else "–" for n in names),
        str(len(row.warnings)) if row.warnings else "",
    ]


def _thumbnails(result: DatasetResult) -> str:
    shown = [row for row in result.rows if row.thumbnail_jpeg][:MAX_THUMBNAILS]
    if not shown:
        return ""
    items = "".join(
        f'<a class="thumb page" href="{escape(row.link or "#")}">'
        f'<img alt="Middle slice of {escape(row.tomogram)}" '
        f'src="{pages.data_uri(row.thumbnail_jpeg, "image/jpeg")}">'
        f"<span>{escape(row.tomogram)}</span></a>"
        for row in shown
    )
    return f'<div class="thumbs">{items}</div>'


def _classes_html(result: DatasetResult) -> str:
    looks = result.class_styles
    counts = {n: float(sum(row.counts.get(n, 0) for row in result.rows)) for n in looks}
    if not sum(counts.values()):
        return pages.paragraph("No particle was kept in this data set.")
    colours = {name: style.colour for name, style in looks.items()}
    total = figures.bars(counts, title="Particles of each class, all tomograms", colours=colours)
    shown = [row for row in result.rows if row.counts][:MAX_ROWS]
    each = figures.heatmap(
        np.array([[float(row.counts.get(name, 0)) for name in looks] for row in shown]),
        rows=[row.tomogram for row in shown], columns=list(looks),
        title="Particles of each tomogram by class", row_label="tomogram", column_label="class",
    )  # fmt: skip
    hidden = sum(bool(row.counts) for row in result.rows) - len(shown)
    extra = f" ({hidden} more tomograms are in the table above.)" if hidden else ""
    both = pd.concat([row.particles for row in result.rows if row.particles.columns.size])
    groups = {
        word: finite(both.loc[both["status"] == status, "score"])
        for word, status in (("kept", "accepted"), ("rejected", "rejected"))
        if "score" in both.columns
    }
    scores = figures.histogram(groups, title="Scores", label="score", span=(0.0, 1.0))
    return pages.grid(
        pages.figure(total, "Particles kept, by class, all tomograms together."),
        pages.figure(
            each,
            "Particles kept in each tomogram, by class; the darker, the larger a share of the "
            f"tomogram's.{extra}",
        ),
        pages.figure(scores, "Scores of all candidates: 1 is certain."),
        wide=True,
    )


def trends_html(result: DatasetResult) -> str:
    """Return what changed from tomogram to tomogram; empty for fewer than two."""
    numbered_rows = [
        (n, row)
        for n, row in enumerate(result.rows, start=1)
        if row.state == "finished" and row.particles.columns.size
    ]
    if len(numbered_rows) < 2:
        return ""
    course, scores, classes = _course(numbered_rows), [], []
    edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
    for n, row in numbered_rows:
        for word, status in (("kept", "accepted"), ("rejected", "rejected")):
            mine = row.particles.loc[row.particles["status"] == status, "score"]
            counts = np.histogram(finite(mine), bins=edges)[0]
            scores += [
                (n, round(edges[k], 3), round(edges[k + 1], 3), word, counts[k])
                for k in np.flatnonzero(counts)
            ]
        classes += [(n, name, row.counts[name]) for name in result.class_styles
                    if row.counts.get(name)]  # fmt: skip
    spec = plots.trends(
        course,
        pd.DataFrame(scores, columns=["n", "low", "high", "status", "count"]),
        pd.DataFrame(classes, columns=["n", "class", "count"]),
        class_order=list(result.class_styles),
    )
    still = pages.grid(
        *(
            pages.figure(
                figures.lines({label: (course["n"], course[key])}, title=label,
                              x_label="tomogram, in the order they came", y_label=label),
                caption,
            )
            for key, label, caption in (
                ("particles", "particles", "Particles kept in each tomogram."),
                ("score", "median score", "Median score of the particles kept."),
            )
        ),
        wide=True,
    )  # fmt: skip
    note = (
        "Each dot is a tomogram, in the order of the data set's list (the order they were "
        "onboarded in). A slow fall is a specimen or a microscope that changes, a single low one "
        "a bad tomogram."
    )
    live = pages.paragraph(
        "Hover over a dot for its name, click it for its page; drag over the blue strip to "
        "choose tomograms: everything below shows these alone.", "note",
    )  # fmt: skip
    return pages.paragraph(note) + plots.plot(
        spec, label="Course of the data set", live_html=live, still_html=still
    )


def _course(rows: Sequence[tuple[int, TomogramRow]]) -> pd.DataFrame:
    """One line a tomogram, as `plots.trends` takes it."""
    lines = [
        {
            "n": n,
            "tomogram": row.tomogram,
            "particles": len(row.accepted),
            "score": round(_median_score(row), 4),
            "rejected": round(1 - len(row.accepted) / max(len(row.particles), 1), 4),
            "minutes": round(sum(t.seconds for t in row.timings) / 60, 2) if row.timings else None,
            "fits": row.in_domain if row.in_domain in plots.FITS_COLOURS else "unknown",
            "link": row.link,
        }
        for n, row in rows
    ]
    return pd.DataFrame(lines).astype({"score": float, "minutes": float})


def _files_html(result: DatasetResult) -> str:
    if not any(row.particles.columns.size for row in result.rows):
        return ""
    root = f"results/{result.dataset}"
    each = {
        f"{root}/<tomogram>/export/": "a tomogram's particle lists for other programs",
        f"{root}/<tomogram>/particles.csv": "its candidates, rejected ones too, with scores",
        f"{root}/report/summary.csv": "the table above, for a spreadsheet",
    }
    items = _exported_items(result.exports)
    items += [f"<code>{escape(path)}</code>: {escape(what)}" for path, what in each.items()]
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _exported_items(paths: Sequence[str]) -> list[str]:
    """A line a folder of a dialect: its main files by name, those of single classes counted."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    items = []
    for folder, names in folders.items():
        main = [name for name in names if name.split(".")[0] in ("particles", "import")]
        items += [
            f"<code>{escape(folder)}/{escape(name)}</code>: "
            + ("for RELION-5's Import job" if name == "import.star" else "all tomograms together")
            for name in main
        ]
        rest = [name for name in names if name not in main]
        if rest:
            more = f"{len(rest)} more, such as {rest[0]}" if main else ", ".join(rest[:4])
            more += f" ({len(rest) - 4} more)" if not main and len(rest) > 4 else ""
            items.append(f"<code>{escape(folder)}/</code>: {escape(more)}")
    return items


def _timings_html(result: DatasetResult) -> str:
    by_stage: dict[str, list[Timing]] = {}
    for row in result.rows:
        for timing in row.timings:
            by_stage.setdefault(timing.stage, []).append(timing)
    if not by_stage:
        return ""
    order = sorted(by_stage, key=stage_order)
    rows, totals = [], {}
    for stage in order:
        seconds = np.array([t.seconds for t in by_stage[stage]])
        memory = np.array([t.memory_mb for t in by_stage[stage]])
        memory = memory[np.isfinite(memory)]
        totals[stage] = float(seconds.sum())
        rows.append(
            [
                escape(stage),
                str(len(seconds)),
                f"{np.median(seconds):,.1f}",
                f"{seconds.max():,.1f}",
                f"{seconds.sum():,.1f}",
                f"{memory.max():,.0f}" if memory.size else "–",
            ]
        )
    rows.append(["all", "", "", "", f"{sum(totals.values()):,.1f}", ""])
    columns = [pages.Column(head="Stage")] + [
        pages.Column(head=head, kind="number")
        for head in ("Tomograms", "Median (s)", "Longest (s)", "Sum (s)", "Peak memory (MB)")
    ]
    chart = figures.bars(totals, title="Wall time of each stage, all tomograms", unit=" s")
    return pages.grid(
        pages.table(
            columns, rows, caption="Wall time a tomogram, shards added up; the largest memory.",
            row_kinds={len(rows) - 1: "sum"},
        ),
        pages.figure(chart, "Wall time of each stage, all tomograms added up."),
    )  # fmt: skip


def _methods_html(result: DatasetResult) -> str:
    cards = {str(card.get("role", "")): card for card in result.cards}
    text = methods_text(
        version=result.versions.get("tomoline", ""),
        localizer=cards.get("localizer", {}),
        classifier=cards.get("classifier", {}),
        n_tomograms=len(result.in_state("finished")),
        n_particles=sum(len(row.accepted) for row in result.rows),
        evaluated=any(row.evaluation for row in result.rows),
    )
    cited = list(CITATIONS)
    if cards.get("classifier", {}).get("network") in NAME_WHOLE:
        cited.append(WHOLE_CITATION)
    if any(row.evaluation for row in result.rows):
        cited.append(EVALUATION_CITATION)
    items = "".join(pages.paragraph(entry) for entry in cited)
    return (
        pages.paragraph("To be copied into a methods section, and checked:", "note")
        + pages.copied("methods-text", pages.paragraph(text))
        + "<h3>Please cite</h3>"
        + pages.copied("methods-citations", items)
    )


def _software_html(result: DatasetResult) -> str:
    text = pages.facts(result.versions)
    if result.config:
        settings = yaml.safe_dump(dict(result.config), sort_keys=True, allow_unicode=True)
        text += pages.details("All settings of this run", f"<pre>{escape(settings)}</pre>")
    return text


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _blank(value: Any) -> Any:
    number = as_float(value)
    return round(number, 4) if np.isfinite(number) else ""
