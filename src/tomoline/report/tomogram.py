"""The page of one tomogram: what was found in it, shown and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from tomoline.contracts import EXPECTED_PRECISION, VolumeTransform
from tomoline.evaluation.calibration import least_score
from tomoline.report import densities, figures, neighbours, pages, plots, slices
from tomoline.report.evaluation import evaluation_html
from tomoline.report.palette import REJECTED, ClassStyle, class_order, styles
from tomoline.report.sources import Timing, count_reasons, finite

DOUBTFUL_MARGIN = 0.2
_DATASET_REPORT = "../../report"  # as seen from a tomogram's page
WANTED_PRECISIONS = (0.9, 0.95, 0.98, 0.99)
QUALITY_NAMES = {
    "given_mean": "Mean grey value as given",
    "given_sd": "Standard deviation as given",
    "given_min": "Smallest value as given",
    "given_max": "Largest value as given",
    "not_finite_share": "Share of voxels repaired (NaN or infinite)",
    "clipped_share": "Share of voxels clipped at 10 standard deviations",
    "skewness": "Skewness of the middle slices (below 0: dark on bright)",
    "depth_vox": "Depth as searched (voxels)",
    "thin": "Thin",
}


@dataclass(frozen=True, kw_only=True)
class TomogramResult:
    """Everything the page is made of. Tables and mappings may be empty, never None."""

    tomogram: str
    dataset: str
    particles: pd.DataFrame
    transform: VolumeTransform
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    evaluation_classes: pd.DataFrame = field(default_factory=pd.DataFrame)
    confusion: pd.DataFrame = field(default_factory=pd.DataFrame)
    timings: Sequence[Timing] = ()
    domain: Mapping[str, Any] = field(default_factory=dict)
    min_score: float = 0.0

    @cached_property
    def accepted(self) -> pd.DataFrame:
        """The particles that were kept."""
        return self.particles[self.particles["status"] == "accepted"]

    @cached_property
    def class_styles(self) -> dict[str, ClassStyle]:
        """Colour and shape of each class, in the model's order."""
        return styles(class_order(list(self.particles.columns), self.accepted["class"]))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Accepted particles of each class, classes without any too."""
        found = self.accepted["class"].value_counts()
        return {name: int(found.get(name, 0)) for name in self.class_styles}


def picks_of(result: TomogramResult) -> slices.Picks:
    """Return the accepted particles in voxels of the prepared volume."""
    kept = result.accepted
    given = np.column_stack([finite(kept[c]) for c in ("z_vox", "y_vox", "x_vox")])
    sizes = pd.Series(_column(kept, "size_vox")).groupby(kept["class"].to_numpy()).median()
    return slices.Picks(
        zyx=result.transform.to_prepared(given.reshape(-1, 3)),
        names=kept["class"].to_numpy(dtype=object),
        scores=np.nan_to_num(_column(kept, "score")),
        radius_vox=slices.marker_radii({str(k): float(v) for k, v in sizes.items()}),
    )


def tomogram_page(result: TomogramResult, shown: Sequence[slices.Plane], picks: slices.Picks,
                  looks: Sequence[densities.Density] = ()) -> str:  # fmt: skip
    """Return the page's HTML. `shown` are slices and projections, `looks` a class's picks each.

    The page lies in <data set>/<tomogram>/report, and finds the data set's page from there.
    """
    voxel = result.transform.prepared_voxel_size_angstrom
    page = pages.Page(
        title=result.tomogram,
        subtitle=f"Data set {result.dataset} · particles found and classified by Tomoline",
        style=_switches(result.class_styles) + densities.STYLE + plots.STYLE,
        head_html=_head(result),
        above_html=f'<a class="folder" href="{_DATASET_REPORT}/summary.html">All tomograms</a>',
        script_html=plots.linked_script(f"{_DATASET_REPORT}/{plots.BUNDLE}"),
    )
    page.add("Slices", _slices_html(result, shown, picks))
    page.add("Particles by class", _classes_html(result))
    page.add(
        "What they look like",
        densities.densities_html(looks, result.class_styles, voxel_size_angstrom=voxel),
    )
    page.add("How sure is it?", _confidence_html(result))
    page.add("Rejected candidates", _rejects_html(result))
    page.add(
        "Neighbours and depth",
        neighbours.neighbours_html(
            picks.zyx,
            np.array([picks.radius(name) for name in picks.names]),
            result.transform.prepared_shape_zyx,
            nm_per_voxel=voxel / 10,
        ),
    )
    page.add(
        "Against the truth",
        evaluation_html(
            result.evaluation, result.evaluation_classes, result.confusion, _marks(result)
        ),
    )
    page.add("The tomogram", _facts_html(result.transform))
    page.add("Time and memory", timings_html(result.timings))
    return page.html()


def _head(result: TomogramResult) -> str:
    n, counts = len(result.accepted), result.counts
    rejected = int((result.particles["status"] == "rejected").sum())
    present = sum(count > 0 for count in counts.values())
    tiles: list[Any] = [
        (f"{n:,}", "particles kept"),
        (f"{present} of {len(counts)}", "classes seen"),
        (f"{rejected:,}", "candidates rejected"),
    ]
    flag = str(result.domain.get("in_domain", ""))
    if flag in ("yes", "doubtful", "no"):
        tiles.append((flag, "model fits", "bad" if flag == "no" else ""))
    return (
        f'<p class="lead">{escape(summary_sentence(result))}</p>{pages.tiles(tiles)}'
        f"{domain_html(result.domain)}{pages.box(list(result.transform.warnings), 'warn')}"
        f"{_nothing_found(n)}"
    )


def domain_html(domain: Mapping[str, Any]) -> str:
    """Return a box that says whether the model can judge the tomogram; empty where unknown."""
    flag, reason = str(domain.get("in_domain", "")), str(domain.get("reason", ""))
    if flag not in ("yes", "doubtful", "no") or not reason:
        return ""
    return pages.box([reason], {"no": "bad", "doubtful": "warn"}.get(flag, ""))


def _marks(result: TomogramResult) -> dict[str, float]:
    """Scores to be marked on the curve: where the picks begin, and where the export does."""
    scores = _column(result.accepted, "score")
    scores = scores[np.isfinite(scores)]
    marks = {"least kept": float(scores.min())} if scores.size else {}
    if result.min_score > 0:
        marks["exported"] = result.min_score
    wanted = _least_score(result, 0.95)
    if wanted is not None and marks and wanted[0] > marks["least kept"]:
        marks["for 95 %"] = wanted[0]
    return marks


def _least_score(result: TomogramResult, precision: float) -> tuple[float, int] | None:
    kept = result.accepted
    if EXPECTED_PRECISION not in kept or kept.empty:
        return None
    return least_score(_column(kept, "score"), _column(kept, EXPECTED_PRECISION), precision)


def _thresholds_html(result: TomogramResult) -> str:
    """Return which score to ask for, for a wanted precision."""
    if EXPECTED_PRECISION not in result.accepted or result.accepted.empty:
        return ""
    rows = []
    for precision in WANTED_PRECISIONS:
        found = _least_score(result, precision)
        score, count = ("–", "none") if found is None else (_floor(found[0]), f"{found[1]:,}")
        rows.append([f"{100 * precision:g} %", score, count])
    expected = float(np.mean(_column(result.accepted, EXPECTED_PRECISION)))
    columns = [
        pages.Column(head="For a precision of"),
        pages.Column(head="take export.min_score", kind="number"),
        pages.Column(head="Particles left", kind="number"),
    ]
    doubt = str(result.domain.get("in_domain")) in ("doubtful", "no")
    note = " The model may not know such tomograms (see above): trust these less." if doubt else ""
    return pages.table(
        columns, rows,
        caption=f"Expected of all that were kept: {100 * expected:.1f} % are particles, by scores "
        f"on simulated tomograms.{note} export.min_expected_precision asks it of each particle.",
    )  # fmt: skip


def _floor(score: float) -> str:
    """Write a score so that the particle that has it is kept."""
    return f"{np.floor(score * 1e4) / 1e4:.4g}"


def _nothing_found(n_kept: int) -> str:
    if n_kept:
        return ""
    return pages.box(
        [
            "If you see particles in the slices below, check three things: that they are dark "
            "there (else set contrast in the data set's file), that the voxel size under “The "
            "tomogram” is right, and that the classifier knows such particles (see the data "
            "set's page). If all three hold, look at the rejects, and lower vote.min_probability "
            "or, where there are no candidates either, merge.threshold in config/config.yaml.",
        ]
    )


def summary_sentence(result: TomogramResult) -> str:
    """Return in one sentence what was found."""
    n, rejects = len(result.accepted), count_reasons(result.particles)
    n_rejected = sum(rejects.values())
    tail = ""
    if rejects:
        tail = (
            f" {n_rejected:,} candidate{_s(n_rejected)} {'was' if n_rejected == 1 else 'were'} "
            f"rejected, most often for this reason: {next(iter(rejects))}."
        )
    if n == 0:
        return f"No particle was found in this tomogram.{tail}" + (
            " All its files are valid and empty." if not rejects else ""
        )
    counts = {name: c for name, c in result.counts.items() if c}
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
    named = ", ".join(f"{name} ({count:,})" for name, count in top)
    most = "most of them" if len(counts) > len(top) else "they are"
    return (
        f"{n:,} particle{_s(n)} of {len(counts)} class{'es' if len(counts) != 1 else ''} "
        f"found; {most}: {named}.{tail}"
    )


def _slices_html(result: TomogramResult, shown: Sequence[slices.Plane],
                 picks: slices.Picks) -> str:  # fmt: skip
    looks, voxel = result.class_styles, result.transform.prepared_voxel_size_angstrom
    encoded = slices.encode(shown)
    pictures = [
        pages.figure(
            slices.plane_svg(plane, jpeg, picks, looks, voxel_size_angstrom=voxel),
            _plane_caption(plane, result.transform),
        )
        for plane, jpeg in zip(shown, encoded, strict=True)
    ]
    slab = 2 * max(round(slices.SLAB_ANGSTROM / voxel) // 2, 0) + 1
    note = (
        f"Each slice is the mean of {slab} neighbouring slices of the prepared volume; marks are "
        "the kept particles that it cuts, each as large as particles of its class usually come "
        "out. x runs to the right, y (or z) upwards, as in 3dmod. Untick a class to hide it."
    )
    both = list(zip(shown, pictures, strict=True))
    top = [html for plane, html in both if plane.axis == 0 and plane.index >= 0]
    side = [html for plane, html in both if plane.axis != 0 and plane.index >= 0]
    whole = [html for plane, html in both if plane.index < 0]
    text = pages.paragraph(note, "note") + _legend(result) + pages.grid(*top)
    text += "<h3>From the side</h3>" + pages.grid(*side, wide=True)
    if whole:
        text += "<h3>Projections</h3>" + pages.grid(*whole, wide=True)
    return text


def _plane_caption(plane: slices.Plane, transform: VolumeTransform) -> str:
    n_marks = f"{len(plane.marks)} particle{_s(len(plane.marks))}"
    extra = f"; {plane.n_left_out} more of lower score not drawn" if plane.n_left_out else ""
    if plane.index < 0:
        return f"Mean of the whole tomogram {plane.name}, {n_marks}{extra}"
    place = np.zeros((1, 3))
    place[0, plane.axis] = plane.index
    given = transform.to_given(place)[0, plane.axis]
    axis = plane.name[0]
    where = "" if round(given) == plane.index else f" ({axis} = {given:.0f} as given)"
    return f"{plane.name}{where}, {n_marks}{extra}"


def _legend(result: TomogramResult) -> str:
    counts = result.counts
    items = "".join(
        f'<li><label><input type="checkbox" id="c{style.index}" checked> '
        f"{figures.swatch(style)}{escape(name)}: {counts[name]:,}</label></li>"
        for name, style in result.class_styles.items()
        if counts[name]
    )
    if not items:
        return ""
    buttons = "".join(
        f'<li class="js-only"><button type="button" data-tick="{word}">{word}</button></li>'
        for word in ("all", "none")
    )
    return f'<ul class="legend switch" aria-label="Classes">{items}{buttons}</ul>'


def _switches(looks: Mapping[str, ClassStyle]) -> str:
    """Style rules that hide a class when its box in the legend is not ticked: no script."""
    return "".join(
        f"body:has(#c{s.index}:not(:checked)) g.c{s.index}{{display:none}}" for s in looks.values()
    )


def _classes_html(result: TomogramResult) -> str:
    counts, looks, kept = result.counts, result.class_styles, result.accepted
    if not counts or kept.empty:
        return pages.paragraph("No particle was kept, so there is nothing to count by class.")
    rows = []
    for name, count in counts.items():
        mine = kept[kept["class"] == name]
        rows.append(
            [
                figures.swatch(looks[name]) + escape(name),
                f"{count:,}",
                f"{100 * count / len(kept):.1f} %",
                _median(mine, "score"),
                _median(mine, "size_vox"),
                _median(mine, "vote_share"),
                _median(mine, "margin"),
            ]
        )
    columns = [pages.Column(head="Class")] + [
        pages.Column(head=head, kind="number", hint=hint)
        for head, hint in (
            ("Particles", ""),
            ("Share", "of all particles kept"),
            ("Score", "median; how sure the models are that it is a particle"),
            ("Core size", "median; voxels the localizer marked"),
            (
                "Vote share",
                "median; share of the votes (voxels or views) for its class",
            ),
            ("Margin", "median; lead over the second class"),
        )
    ]
    chart = figures.bars(
        counts,
        title="Particles of each class",
        colours={name: style.colour for name, style in looks.items()},
    )
    return pages.grid(
        pages.figure(chart, "Particles kept, by class."),
        pages.table(columns, rows, caption="Score, size, share and margin are medians."),
        wide=True,
    )


def _confidence_html(result: TomogramResult) -> str:
    table, kept = result.particles, result.accepted
    if table.empty:
        return ""
    rejected = table[table["status"] == "rejected"]
    both = {"kept": kept, "rejected": rejected}
    charts = [
        pages.figure(
            figures.histogram(
                {name: _column(part, "score") for name, part in both.items()},
                title="Scores", label="score", span=(0.0, 1.0), marks=_marks(result),
            ),
            "Score: how sure the models are that there is a particle (1 is certain). A hump near "
            "1, well apart from the rest, is what a clear tomogram gives. Dashed: the least score "
            "kept, and those for the export and for 95 % real particles where they differ.",
        ),
        pages.figure(
            figures.histogram(
                {name: _column(part, "size_vox") for name, part in both.items()},
                title="Sizes", label="size of the marked core (voxels of the prepared volume)",
                span=(0.0, _largest(table, "size_vox") + 1),
            ),
            "Size of what the localizer marked. It marks the core of a particle, not all of it.",
        ),
    ]  # fmt: skip
    if not kept.empty:
        charts += [
            pages.figure(
                figures.histogram({"kept": _column(kept, name)}, title=head, label=label,
                                  span=(0.0, 1.0)),
                caption,
            )
            for name, head, label, caption in (
                ("vote_share", "Vote share", "share of votes",
                 "Vote share: of the votes on a particle (of its voxels, or of mirrored views of "
                 "it), how many said its class."),
                ("margin", "Margin", "lead over the second class",
                 "Margin: the lead of a particle's class over the runner-up. Small margins are "
                 "doubtful classes."),
            )
        ]  # fmt: skip
    return (
        _doubt(kept)
        + _thresholds_html(result)
        + pages.grid(*charts, wide=True)
        + _explorer_html(result)
    )


def _explorer_html(result: TomogramResult) -> str:
    """Return score against size of every candidate, to be searched with the mouse."""
    table = result.particles
    kept = (table["status"] == "accepted").to_numpy()
    points = pd.DataFrame(
        {
            "id": table["particle_id"].to_numpy(),
            "class": np.where(kept, table["class"].astype(str), "rejected"),
            "score": _column(table, "score").round(4),
            "size": _column(table, "size_vox").round(),
            "depth": _column(table, "z_vox").round(),
        }
    )
    note = (
        "Drag over the plot: the bars count what lies inside. Click a class in the legend to see "
        "it alone; hover over a dot for its particle_id."
    )
    spec = plots.candidates(points, result.class_styles)
    still = pages.paragraph(
        "Where the whole report lies in one folder, a plot of every candidate is drawn here.",
        "note",
    )
    head = "Score and size of every candidate"
    live = f"<h3>{head}</h3>{pages.paragraph(note, 'note')}"
    return plots.plot(spec, label=head, live_html=live, still_html=still)


def _doubt(kept: pd.DataFrame) -> str:
    margin = _column(kept, "margin")
    margin = margin[np.isfinite(margin)]
    if margin.size == 0:
        return ""
    n = int((margin < DOUBTFUL_MARGIN).sum())
    if n:
        share = f"{n:,} of {margin.size:,} particles ({100 * n / margin.size:.0f} %) have"
        text = f"{share} a margin under {DOUBTFUL_MARGIN:g}: take their class as a guess."
    else:
        text = f"No particle has a margin under {DOUBTFUL_MARGIN:g}: no class is a mere guess."
    return pages.paragraph(
        f"{text} The columns score, vote_share and margin of particles.csv let you set your own "
        "limits."
    )


def _rejects_html(result: TomogramResult) -> str:
    reasons = count_reasons(result.particles)
    if not reasons:
        return pages.paragraph("No candidate was rejected.")
    total = sum(reasons.values())
    rows = [
        [escape(reason), f"{count:,}", f"{100 * count / total:.0f} %"]
        for reason, count in reasons.items()
    ]
    columns = [
        pages.Column(head="Reason", kind="prose"),
        pages.Column(head="Candidates", kind="number"),
        pages.Column(head="Share", kind="number"),
    ]
    chart = figures.bars(
        {reason: float(count) for reason, count in list(reasons.items())[:12]},
        title="Rejected candidates by reason",
        colours=dict.fromkeys(reasons, REJECTED),
    )
    return pages.paragraph(
        "Nothing is dropped silently: these candidates stay in particles.csv with status "
        "“rejected” and their reason. They are not exported."
    ) + pages.grid(
        pages.table(columns, rows, caption="“…” stands for numbers that differ."),
        pages.figure(chart, "Rejected candidates, by reason."),
    )


def _facts_html(transform: VolumeTransform) -> str:
    given, prepared = transform.given_shape_zyx, transform.prepared_shape_zyx
    pairs = {
        "File": transform.source,
        "Size as given (x × y × z)": _shape(given),
        "Voxel size as given": f"{figures.number(transform.given_voxel_size_angstrom, 4)} Å",
        "Field of view (x × y × z)": " × ".join(
            f"{n * transform.given_voxel_size_angstrom / 10:.0f}" for n in given[::-1]
        )
        + " nm",
        "Axes on file": {
            "xyz": "x, y, z: taken as it is",
            "xzy": "x, depth, y, straight out of IMOD's tilt: turned as trimvol -rx does",
        }.get(transform.axes, transform.axes),
        "Contrast as given": {
            "dark": "particles dark: taken as it is",
            "bright": "particles bright: inverted",
        }.get(transform.contrast, transform.contrast),
        "Size as searched (x × y × z)": _shape(prepared),
        "Voxel size as searched": f"{figures.number(transform.prepared_voxel_size_angstrom, 4)} Å"
        + (" (rescaled)" if tuple(given) != tuple(prepared) else " (not rescaled)"),
    }
    quality = {
        QUALITY_NAMES.get(key, key.replace("_", " ").capitalize()): _value(value)
        for key, value in sorted(transform.quality.items(), key=_quality_order)
        if not isinstance(value, Mapping)
    }
    text = pages.facts(pairs)
    if quality:
        text += "<h3>Quality figures</h3>" + pages.facts(quality)
    return text


def _quality_order(item: tuple[str, Any]) -> tuple[int, str]:
    names = list(QUALITY_NAMES)
    return (names.index(item[0]) if item[0] in names else len(names)), item[0]


def timings_html(timings: Sequence[Timing]) -> str:
    """Return a table and a chart of what each stage took."""
    if not timings:
        return pages.paragraph("No timings were kept for this tomogram.")
    rows = [
        [
            escape(t.stage),
            f"{t.jobs}",
            f"{t.seconds:,.1f}",
            figures.number(round(t.cpu_seconds, 1), 4),
            figures.number(round(t.memory_mb)) if np.isfinite(t.memory_mb) else "–",
        ]
        for t in timings
    ]
    total = sum(t.seconds for t in timings)
    rows.append(["all", str(sum(t.jobs for t in timings)), f"{total:,.1f}", "", ""])
    columns = [pages.Column(head="Stage")] + [
        pages.Column(head=head, kind="number")
        for head in ("Jobs", "Wall time (s)", "Processor time (s)", "Peak memory (MB)")
    ]
    chart = figures.bars(
        {t.stage: t.seconds for t in timings}, title="Wall time of each stage", unit=" s"
    )
    return pages.grid(
        pages.table(
            columns,
            rows,
            caption="As Snakemake measured it. “–”: the job was over before the first look.",
            row_kinds={len(rows) - 1: "sum"},
        ),
        pages.figure(chart, "Wall time of each stage; shards of a stage are added up."),
    )


def _column(table: pd.DataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return finite(table[name]) if name in table.columns else np.full(len(table), np.nan)


def _largest(table: pd.DataFrame, name: str) -> float:
    values = _column(table, name)
    values = values[np.isfinite(values)]
    return float(values.max()) if values.size else 1.0


def _median(table: pd.DataFrame, name: str) -> str:
    values = _column(table, name)
    values = values[np.isfinite(values)]
    return figures.number(round(float(np.median(values)), 3)) if values.size else "–"


def _shape(zyx: Sequence[int]) -> str:
    return " × ".join(str(n) for n in zyx[::-1]) + " voxels"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figures.number(float(value), 4)
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _s(n: int) -> str:
    return "" if n == 1 else "s"
