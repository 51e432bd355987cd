"""Plots to work with: altair's charts, drawn in the reader's browser without any network.

A plot is a Vega-Lite description in the page. What draws it, Vega and Vega-Embed as one script
(`bundle`), is inlined once in the data set's page and lies as one file beside it for the
tomograms' pages, which are whole without it: where a script cannot run (a mail reader, paper) or
the file is not there, the house's own charts stay, in the same place or beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tomoline.report.palette import ACCENT, REJECTED, ClassStyle

if TYPE_CHECKING:
    import altair as alt

BUNDLE = "plots.js"  # beside the data set's page
FITS_COLOURS = {
    "yes": (ACCENT, "circle"),
    "doubtful": ("#E69F00", "triangle-up"),
    "no": ("#D55E00", "cross"),
    "unknown": (REJECTED, "square"),
}
MOST_POINTS = 3000  # of a tomogram's plot; more would only lie upon each other
_SHAPES = {"circle": "circle", "square": "square", "diamond": "diamond", "triangle": "triangle-up"}
_TENTHS: dict[str, Any] = {"values": [0, 0.2, 0.4, 0.6, 0.8, 1], "format": ".1f"}
_PAGE_WIDE = 777  # altair's type for widths has no "as wide as the page": `_fit` puts it in
_FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'

_NOTICE = (
    "Vega, Vega-Lite and Vega-Embed: Copyright University of Washington Interactive Data Lab, "
    "BSD-3-Clause licence, provided as is, without any warranty (github.com/vega). They contain "
    "D3: Copyright Mike Bostock, ISC licence (github.com/d3). As bundled by vl-convert, "
    "BSD-3-Clause licence (github.com/vega/vl-convert)."
)

# Runs once the page is there. A width "page" becomes what the window has room for. Warnings are
# not logged: a choice in which nothing lies, for a moment, has no extent, and is none the worse.
_DRAW = """
(() => {
const fit = (o, w) => { if (o && typeof o == "object") for (const k in o) {
  if (k == "width" && o[k] == "page") o[k] = w; else fit(o[k], w); } };
const draw = () => document.querySelectorAll(".plot").forEach(place => {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const box = document.createElement("div");
  place.append(box);
  fit(spec, Math.max(160, Math.min(place.clientWidth, 1000) - 66));
  const actions = {export: true, source: false, compiled: false, editor: false};
  vegaEmbed(box, spec, {renderer: "svg", logLevel: 1, actions: actions}).then(() => {
      place.querySelectorAll(".still").forEach(e => e.hidden = true);
      place.classList.add("drawn");
    }).catch(e => { box.remove(); console.error("plot: " + e); });
});
const inFolder = /^(file|https?):$/.test(location.protocol);
if (window.vegaEmbed) draw();
else if (inFolder && document.currentScript.dataset.from) {
  const script = document.createElement("script");
  script.src = document.currentScript.dataset.from;
  script.onload = draw;
  document.head.append(script);
}
})();
"""

STYLE = (
    ".plot{overflow-x:auto;margin:8px 0}.plot .vega-embed{width:100%}"
    ".plot .live{display:none}.plot.drawn .live{display:block}"
    ".plot .vega-bindings{font-size:.92rem}"
    ".vega-embed details{margin:0}"
)


@cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed (BSD) as one script of about 0.9 MB.

    It comes out of the package vl-convert-python, which holds them; nothing is fetched.
    """
    import vl_convert  # noqa: PLC0415  (84 MB that only the writer of this file needs)

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"/* {_NOTICE} */\n{script}"


def inline_script() -> str:
    """Return the script element that draws a page's plots and needs no other file."""
    # An end tag within the script would end it early.
    whole = (bundle() + _DRAW).replace("</script", "<\\/script")
    return f"<script>{whole}</script>"


def linked_script(address: str) -> str:
    """Return the script element that draws a page's plots if `address` (of `bundle`) is there."""
    return f'<script data-from="{escape(address)}">{_DRAW}</script>'


def plot(spec: Mapping[str, Any], *, label: str, live_html: str = "", still_html: str = "") -> str:
    """Return a plot's place in the page: what stands there until it is drawn, and above it then."""
    data = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="plot" role="group" aria-label="{escape(label)}">'
        f'<div class="live">{live_html}</div><div class="still">{still_html}</div>'
        f'<script type="application/json">{data}</script></div>'
    )


def trends(rows: pd.DataFrame, scores: pd.DataFrame, classes: pd.DataFrame, *,
           class_order: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Return a data set's course as a linked plot.

    Parameters
    ----------
    rows:
        A row a tomogram: `n` (its place in the data set), `tomogram`, `particles`, `score`
        (median), `rejected` (share of all candidates), `minutes`, `fits` (a key of
        `FITS_COLOURS`), `link`.
    scores:
        Histogram: `n`, `low`, `high`, `status`, `count`; empty bins may be left out.
    classes:
        `n`, `class`, `count`; shown in `class_order`.
    """
    import altair as alt  # noqa: PLC0415  (takes a second, and only pages need it)

    brush = alt.selection_interval(encodings=["x"], name="chosen")
    looks = alt.Scale(domain=list(FITS_COLOURS), range=[c for c, _ in FITS_COLOURS.values()])
    forms = alt.Scale(domain=list(FITS_COLOURS), range=[s for _, s in FITS_COLOURS.values()])
    tip = [
        alt.Tooltip("tomogram:N"),
        alt.Tooltip("particles:Q", format=","),
        alt.Tooltip("score:Q", title="median score", format=".3f"),
        alt.Tooltip("rejected:Q", title="candidates rejected", format=".0%"),
        alt.Tooltip("minutes:Q", format=".1f"),
        alt.Tooltip("fits:N", title="model fits"),
    ]
    course = alt.Chart(_data(rows))

    whole = alt.Axis(labelExpr="datum.value % 1 ? '' : datum.label", format="d", grid=False)
    legend = alt.Legend(title="model fits", orient="top")

    def panel(field: str, title: str, *, top: float | None = None, last: bool = False,
              first: bool = False, **axis: Any) -> Any:  # fmt: skip
        x = alt.X("n:Q", title="tomogram, in the order they came" if last else "",
                  scale=alt.Scale(domain=brush, nice=False, padding=12), axis=whole)  # fmt: skip
        limits = alt.Undefined if top is None else [0, top]
        y = alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=limits, padding=8, zero=True),
                  axis=alt.Axis(tickCount=4, **axis))  # fmt: skip
        base = course.encode(x=x, y=y)
        # Those that the model may not know are larger, so that they are seen among hundreds.
        size = alt.condition("datum.fits == 'yes'", alt.value(40), alt.value(90))
        dots = base.mark_point(filled=True, opacity=0.9, clip=True).encode(
            size=size,
            color=alt.Color("fits:N", scale=looks, legend=legend if first else None),
            shape=alt.Shape("fits:N", scale=forms, legend=legend if first else None),
            tooltip=tip, href="link:N",
        )  # fmt: skip
        line = base.mark_line(color="#9aa4ad", strokeWidth=1, clip=True)
        return (line + dots).properties(width=_PAGE_WIDE, height=96)

    overview = (
        course.mark_area(color="#9cc3de", line={"color": ACCENT, "strokeWidth": 1})
        .encode(
            x=alt.X("n:Q", title="drag here to choose; double click: all",
                    scale=alt.Scale(nice=False, padding=12), axis=whole),
            y=alt.Y("particles:Q", title="", axis=None),
        )
        .add_params(brush)
        .properties(name="overview", width=_PAGE_WIDE, height=34)
    )  # fmt: skip
    histogram = (
        alt.Chart(_data(scores))
        .transform_filter(brush)
        .mark_bar()
        .encode(
            x=alt.X("low:Q", title="score, of the chosen tomograms", bin="binned",
                    scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(**_TENTHS)),
            x2="high:Q",
            y=alt.Y("sum(count):Q", title="candidates", axis=alt.Axis(tickCount=4)),
            color=alt.Color(
                "status:N", legend=alt.Legend(title="", orient="top"),
                scale=alt.Scale(domain=["kept", "rejected"], range=[ACCENT, "#E69F00"]),
            ),
            tooltip=[alt.Tooltip("low:Q", title="from"), alt.Tooltip("status:N"),
                     alt.Tooltip("sum(count):Q", title="candidates", format=",")],
        )
        .properties(width=_PAGE_WIDE, height=110)
    )  # fmt: skip
    by_class = (
        alt.Chart(_data(classes))
        .transform_filter(brush)
        .mark_bar(color=ACCENT)
        .encode(
            x=alt.X("class:N", sort=list(class_order),
                    title="particles by class, of the chosen tomograms",
                    axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("sum(count):Q", title="particles", axis=alt.Axis(tickCount=4)),
            tooltip=[alt.Tooltip("class:N"), alt.Tooltip("sum(count):Q", title="particles")],
        )
        .properties(width=_PAGE_WIDE, height=110)
    )  # fmt: skip
    parts = [overview, panel("particles", "particles", first=True),
             panel("score", "median score", top=1.08, values=[0, 0.25, 0.5, 0.75, 1]),
             panel("rejected", "rejected", top=1.08, format="%", values=[0, 0.25, 0.5, 0.75, 1]),
             panel("minutes", "minutes", last=True), histogram, by_class]  # fmt: skip
    chart = alt.vconcat(*parts, spacing=10)
    return _finished(chart.resolve_scale(color="independent", shape="independent"))


def candidates(table: pd.DataFrame, styles: Mapping[str, ClassStyle]) -> dict[str, Any]:
    """Return a tomogram's candidates, score against size, with bars of what is chosen in it.

    `table` has a row a candidate: `score`, `size`, `class` ("rejected" for those), `id`, `depth`.
    """
    import altair as alt  # noqa: PLC0415

    points = _data(thinned(table))
    names = [name for name in styles if (table["class"] == name).any()]
    colours = [styles[name].colour for name in names]
    shapes = [_SHAPES[styles[name].shape] for name in names]
    if (table["class"] == "rejected").any():
        names, colours, shapes = [*names, "rejected"], [*colours, REJECTED], [*shapes, "cross"]
    brush = alt.selection_interval(name="chosen")
    pick = alt.selection_point(fields=["class"], bind="legend", name="named")
    look = alt.Scale(domain=names, range=colours)
    legend = alt.Legend(orient="bottom", columns=4, title="click a class; shift for more",
                        symbolSize=70)  # fmt: skip
    dots = (
        alt.Chart(points)
        .mark_point(filled=True, size=34, stroke="#222", strokeWidth=0.4)
        .encode(
            x=alt.X("score:Q", title="score", scale=alt.Scale(domain=[0, 1.01]),
                    axis=alt.Axis(**_TENTHS)),
            y=alt.Y("size:Q", title="size of the marked core (voxels)"),
            color=alt.Color("class:N", scale=look, legend=legend, title="class"),
            shape=alt.Shape("class:N", scale=alt.Scale(domain=names, range=shapes),
                            legend=legend),
            opacity=alt.condition(pick, alt.value(0.85), alt.value(0.06)),
            tooltip=[alt.Tooltip("id:Q", title="particle_id"), alt.Tooltip("class:N"),
                     alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("size:Q"),
                     alt.Tooltip("depth:Q", title="z as given (voxels)")],
        )
        .add_params(brush, pick)
        .properties(name="candidates", width=_PAGE_WIDE, height=240)
    )  # fmt: skip
    bars = (
        alt.Chart(points)
        .transform_filter(brush)
        .mark_bar()
        .encode(
            y=alt.Y("class:N", sort=names, title="", scale=alt.Scale(domain=names)),
            x=alt.X("count():Q", title="how many of those chosen", axis=alt.Axis(tickCount=5)),
            color=alt.Color("class:N", scale=look, legend=None),
            opacity=alt.condition(pick, alt.value(1.0), alt.value(0.15)),
            tooltip=[alt.Tooltip("class:N"), alt.Tooltip("count():Q", title="how many")],
        )
        .properties(width=_PAGE_WIDE, height=alt.Step(17))
    )  # fmt: skip
    chart = alt.vconcat(dots, bars, spacing=18)
    return _finished(chart.resolve_scale(color="independent", shape="independent"))


def thinned(table: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """Return at most `most` rows, evenly over the table."""
    if len(table) <= most:
        return table
    kept: pd.DataFrame = table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)]
    return kept


def _data(table: pd.DataFrame) -> alt.InlineData:
    """Return a table as CSV within the description: half the size of its rows as objects."""
    import altair as alt  # noqa: PLC0415

    numbers = {str(c): "number" for c in table.columns if pd.api.types.is_numeric_dtype(table[c])}
    parse: Any = {str(c): numbers.get(str(c), "string") for c in table.columns}
    return alt.InlineData(
        values=table.to_csv(index=False, lineterminator="\n"),
        format=alt.CsvDataFormat(type="csv", parse=parse),
    )


def _finished(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return the description, in the house's look, as wide as the page where it said so."""
    chart = chart.configure(font=_FONT, background="transparent")
    chart = chart.configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal",
                                 gridColor="#e1e5e9", labelLimit=140)  # fmt: skip
    chart = chart.configure_legend(orient="bottom", labelFontSize=12, titleFontSize=12,
                                   titleFontWeight="normal")  # fmt: skip
    chart = chart.configure_view(stroke="#d5dae0")
    return _plain(_fit(chart.to_dict()))


def _fit(value: Any) -> Any:
    """Write "page" for every width that stands for it."""
    if isinstance(value, dict):
        return {
            key: "page" if key == "width" and item == _PAGE_WIDE else _fit(item)
            for key, item in value.items()
        }
    return [_fit(item) for item in value] if isinstance(value, list) else value


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out what no drawing needs: the schema's address, which nothing may fetch."""
    spec.pop("$schema", None)
    return spec


__all__: Sequence[str] = (
    "BUNDLE", "STYLE", "bundle", "candidates", "inline_script", "linked_script", "plot", "thinned",
    "trends",
)  # fmt: skip
