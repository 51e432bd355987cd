"""Charts as inline SVG: small, sharp in print, read by screen readers, the same bytes each time.

Every function returns one `<svg>` element as text. Charts are laid out on a canvas of 440 units
so that their lettering stays legible when a phone shrinks them; they carry no ids and no styles
of their own (the page's style sheet has the classes `ax`, `grid`, `lab`, `num`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoline.report.palette import ACCENT, COLOURS, ClassStyle

WIDTH = 440
_LETTER = 6.6  # mean width of a letter at the charts' 12 unit type


def number(value: float, digits: int = 3) -> str:
    """Write a number for people: whole numbers with thin separators, others to `digits` figures."""
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def svg(body: str, *, height: float, title: str, width: float = WIDTH, kind: str = "chart") -> str:
    """Wrap drawing commands as one SVG element with an accessible title."""
    return (
        f'<svg class="{kind}" role="img" viewBox="0 0 {_n(width)} {_n(height)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{body}</svg>'
    )


def marker(shape: str, x: float, y: float, r: float) -> str:
    """Return the outline of a mark of half width `r` about (x, y), without colour."""
    if shape == "square":
        a = 0.89 * r
        return f'<rect x="{_n(x - a)}" y="{_n(y - a)}" width="{_n(2 * a)}" height="{_n(2 * a)}"/>'
    if shape in ("diamond", "triangle"):
        a = 1.2 * r
        corners = (
            [(x, y - a), (x + a, y), (x, y + a), (x - a, y)]
            if shape == "diamond"
            else [(x, y - a), (x + a, y + 0.75 * a), (x - a, y + 0.75 * a)]
        )
        points = " ".join(f"{_n(px)},{_n(py)}" for px, py in corners)
        return f'<polygon points="{points}"/>'
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"/>'


def swatch(style: ClassStyle) -> str:
    """Return a small picture of a class's mark for legends and tables."""
    body = (
        f'<g fill="{style.colour}" stroke="#222" stroke-width="1">'
        f"{marker(style.shape, 8, 8, 5.5)}</g>"
    )
    return f'<svg class="swatch" aria-hidden="true" viewBox="0 0 16 16">{body}</svg>'


def bars(values: Mapping[str, float], *, title: str, colours: Mapping[str, str] | None = None,
         digits: int = 3, unit: str = "") -> str:  # fmt: skip
    """Return horizontal bars from zero, one a label, with the number written at its end."""
    step, left = 22, _label_width(values)
    largest = max([v for v in values.values() if math.isfinite(v)], default=0.0) or 1.0
    room = WIDTH - left - 78
    parts = []
    for i, (label, value) in enumerate(values.items()):
        y = 6 + i * step
        length = room * max(value, 0.0) / largest if math.isfinite(value) else 0.0
        colour = (colours or {}).get(label, ACCENT)
        text = number(value, digits) + unit
        parts.append(
            _text(left - 6, y + 12, _shorten(label), "lab", "end")
            + f'<rect x="{left}" y="{y}" width="{_n(length)}" height="16" fill="{colour}">'
            f"<title>{escape(label)}: {text}</title></rect>"
            + _text(left + length + 5, y + 12, text, "num")
        )
    parts.append(_line(left, 2, left, 8 + len(values) * step, "ax"))
    return svg("".join(parts), height=12 + step * len(values), title=title)


def histogram(groups: Mapping[str, ArrayLike], *, title: str, label: str,
              span: tuple[float, float] | None = None, n_bins: int = 20,
              marks: Mapping[str, float] | None = None,
              expected: Mapping[str, ArrayLike] | None = None) -> str:  # fmt: skip
    """Return stacked counts of the finite values of one or more groups over common bins.

    `marks` are upright lines at some value, each with its words; `expected` are numbers, one a
    bin, drawn as a dashed line through the bins' middles.
    """
    data = {name: _finite(values) for name, values in groups.items()}
    low, high = span if span is not None else _span(list(data.values()))
    edges = np.linspace(low, high, n_bins + 1)
    counts = {name: np.histogram(v, bins=edges)[0] for name, v in data.items()}
    top = max(int(np.sum(list(counts.values()), axis=0).max()), 1) if counts else 1
    curves = {name: np.asarray(values, float) for name, values in (expected or {}).items()}
    top = max([top, *(math.ceil(values.max()) for values in curves.values())])
    frame = _Frame(x=(low, high), y=(0.0, float(top)), height=190)
    frame.y_ticks = min(4, top)  # there is no half a particle
    base = np.zeros(n_bins)
    parts = [frame.axes(label, "how many")]
    for i, (name, heights) in enumerate(counts.items()):
        for j in np.flatnonzero(heights):
            x0, x1 = frame.px(edges[j]), frame.px(edges[j + 1])
            y0, y1 = frame.py(base[j]), frame.py(base[j] + heights[j])
            tip = f"{name}: {heights[j]} from {number(edges[j])} to {number(edges[j + 1])}"
            parts.append(
                f'<rect x="{_n(x0 + 0.5)}" y="{_n(y1)}" width="{_n(max(x1 - x0 - 1, 0.5))}" '
                f'height="{_n(y0 - y1)}" fill="{_series_colour(i)}"><title>{escape(tip)}</title>'
                "</rect>"
            )
        base += heights
    middles = (edges[:-1] + edges[1:]) / 2
    for i, values in enumerate(curves.values()):
        points = " ".join(
            f"{_n(frame.px(x))},{_n(frame.py(y))}" for x, y in zip(middles, values, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_series_colour(len(data) + i)}" '
            'stroke-width="2" stroke-dasharray="6 3"/>'
        )
    parts.append(_marks(frame, marks or {}, above=True))
    names = [*data, *curves]
    legend = _legend(names, y=frame.height + 2) if len(names) > 1 else ""
    return svg("".join(parts) + legend, height=frame.height + (20 if legend else 0), title=title)


def lines(series: Mapping[str, tuple[ArrayLike, ...]], *, title: str, x_label: str,
          y_label: str, x_span: tuple[float, float] | None = None,
          y_span: tuple[float, float] | None = None,
          marks: Mapping[str, float] | None = None,
          size: tuple[float, float] = (WIDTH, 200)) -> str:  # fmt: skip
    """Return curves over a common x; points that are not finite are left out of their curve.

    A curve is its x, its y and, if it has one, its error, which is shaded. `marks` are upright
    lines at some x, each with its words beside it; `size` is the canvas's width and height.
    """
    width, height = size
    curves = {name: _finite_pairs(xy[0], xy[1]) for name, xy in series.items()}
    curves = {name: xy for name, xy in curves.items() if len(xy)}
    xs = [xy[:, 0] for xy in curves.values()]
    ys = [xy[:, 1] for xy in curves.values()]
    shades = {
        name: [
            _finite_pairs(x, np.asarray(y, float) + sign * np.nan_to_num(np.asarray(error, float)))
            for sign in (-1, 1)
        ]
        for name, (x, y, error) in ((n, xy) for n, xy in series.items() if len(xy) > 2)
        if name in curves
    }
    ys += [xy[:, 1] for pair in shades.values() for xy in pair]
    frame = _Frame(
        x=x_span or _span(xs), y=y_span or _span(ys, zero=True), height=height, width=width
    )
    parts = [frame.axes(x_label, y_label), _marks(frame, marks or {})]
    for i, name in enumerate(curves):
        if name in shades:
            low, high = shades[name]
            points = " ".join(
                f"{_n(frame.px(x))},{_n(frame.py(y))}" for x, y in [*low, *high[::-1]]
            )
            parts.append(
                f'<polygon points="{points}" fill="{_series_colour(i)}" fill-opacity=".22"/>'
            )
    for i, xy in enumerate(curves.values()):
        points = " ".join(f"{_n(frame.px(x))},{_n(frame.py(y))}" for x, y in _thin(xy))
        dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')[i % 3]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_series_colour(i)}" '
            f'stroke-width="2"{dash}/>'
        )
    legend = _legend(list(curves), y=frame.height + 2) if len(curves) > 1 else ""
    return svg(
        "".join(parts) + legend,
        height=frame.height + (20 * math.ceil(len(curves) / 3) if legend else 0),
        width=width,
        title=title,
    )


def reliability(groups: Mapping[str, Sequence[Sequence[float]]], *, title: str, x_label: str,
                y_label: str) -> str:  # fmt: skip
    """Return what came true against what was promised, with the line where both are equal.

    Each group is a list of bins (number, mean confidence, share right); a dot's area follows the
    number.
    """
    frame = _Frame(x=(0.0, 1.0), y=(0.0, 1.0), height=260)
    most = max([b[0] for bins in groups.values() for b in bins], default=1) or 1
    parts = [frame.axes(x_label, y_label)]
    parts.append(
        f'<line x1="{_n(frame.px(0))}" y1="{_n(frame.py(0))}" x2="{_n(frame.px(1))}" '
        f'y2="{_n(frame.py(1))}" class="ax" stroke-dasharray="4 4"/>'
    )
    for i, (name, bins) in enumerate(groups.items()):
        colour = _series_colour(i)
        places = [(frame.px(b[1]), frame.py(b[2])) for b in bins]
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in places)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        for (x, y), (n, promised, kept) in zip(places, bins, strict=True):
            tip = f"{name}: {number(n)} at {number(promised)}, {number(kept)} right"
            parts.append(
                f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(2 + 4 * math.sqrt(n / most))}" '
                f'fill="{colour}"><title>{escape(tip)}</title></circle>'
            )
    legend = _legend(list(groups), y=frame.height + 2)
    return svg("".join(parts) + legend, height=frame.height + 20, title=title)


def heatmap(counts: NDArray[np.float64], *, rows: Sequence[str], columns: Sequence[str],
            title: str, row_label: str, column_label: str) -> str:  # fmt: skip
    """Return a matrix `(len(rows), len(columns))`; shade is the share of its row, text the count.

    The shade runs from white to dark blue, so it reads the same in grey and to every eye.
    """
    left = 22 + _label_width(rows)
    head = 26 + 0.75 * _LETTER * max([len(_shorten(c, 10)) for c in columns], default=1)
    cell = (WIDTH + 120 - left - 4) / max(len(columns), 1)
    cell = min(cell, 44.0)
    width, height = left + cell * len(columns) + 30, head + cell * len(rows) + 6
    width = max(width, WIDTH)  # a small matrix is not blown up
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    share = counts / totals
    parts = [
        _text(left, 12, column_label, "lab"),
        f'<text class="lab" text-anchor="middle" transform="translate(12 {_n(head + cell * len(rows) / 2)}) '  # noqa: E501
        f'rotate(-90)">{escape(row_label)}</text>',
    ]
    for j, name in enumerate(columns):
        x = left + (j + 0.5) * cell
        parts.append(
            f'<text class="lab" transform="translate({_n(x + 3)} {_n(head - 5)}) rotate(-45)">'
            f"{escape(_shorten(name, 10))}</text>"
        )
    for i, name in enumerate(rows):
        y = head + i * cell
        parts.append(_text(left - 5, y + cell / 2 + 4, _shorten(name), "lab", "end"))
        parts += [
            _cell(left + j * cell, y, cell, float(share[i, j]), float(counts[i, j]),
                  f"{name} called {column}: {number(counts[i, j])}")
            for j, column in enumerate(columns)
        ]  # fmt: skip
    return svg("".join(parts), height=height, width=width, title=title)


class _Frame:
    """The plot area of a chart with two axes."""

    def __init__(self, *, x: tuple[float, float], y: tuple[float, float], height: float,
                 width: float = WIDTH) -> None:  # fmt: skip
        self.x, self.y, self.height = x, y, height
        self.y_ticks = 4
        self.left, self.right, self.top, self.bottom = 52.0, width - 12.0, 10.0, height - 40.0

    def px(self, value: float) -> float:
        low, high = self.x
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1.0)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in ticks(*self.y, wanted=self.y_ticks):
            y = self.py(tick)
            parts.append(_line(self.left, y, self.right, y, "grid"))
            parts.append(_text(self.left - 5, y + 4, number(tick, 6), "num", "end"))
        for tick in ticks(*self.x, wanted=6):
            x = self.px(tick)
            parts.append(_line(x, self.bottom, x, self.bottom + 4, "ax"))
            parts.append(_text(x, self.bottom + 16, number(tick, 6), "num", "middle"))
        parts.append(_line(self.left, self.bottom, self.right, self.bottom, "ax"))
        middle = (self.left + self.right) / 2
        parts.append(_text(middle, self.height - 6, x_label, "lab", "middle"))
        half = (self.top + self.bottom) / 2
        parts.append(
            f'<text class="lab" text-anchor="middle" transform="translate(11 {_n(half)}) '
            f'rotate(-90)">{escape(y_label)}</text>'
        )
        return "".join(parts)


def ticks(low: float, high: float, *, wanted: int) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _cell(x: float, y: float, size: float, share: float, count: float, tip: str) -> str:
    red, green, blue = (round(255 + share * (dark - 255)) for dark in (8, 48, 107))
    ink = "#fff" if share > 0.5 else "#222"
    text = _text(x + size / 2, y + size / 2 + 4, number(count), "num", "middle", ink)
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(size)}" height="{_n(size)}" '
        f'fill="#{red:02x}{green:02x}{blue:02x}" stroke="#ddd" stroke-width="0.6">'
        f"<title>{escape(tip)}</title></rect>" + (text if count else "")
    )


def _marks(frame: _Frame, marks: Mapping[str, float], *, above: bool = False) -> str:
    """Upright lines with their words, each on a line of its own so that near ones stay legible.

    The words stand at the foot, since curves lie at the top, or `above`.
    """
    parts = []
    for n, (words, x) in enumerate(marks.items()):
        at = frame.px(x)
        low = frame.top + 9 + 15 * n if above else frame.bottom - 6 - 15 * n
        parts.append(_line(at, frame.top, at, frame.bottom, "under"))
        parts.append(_line(at, frame.top, at, frame.bottom, "ax mark"))
        right = at > (frame.left + frame.right) / 2
        parts.append(
            _text(at - 4 if right else at + 4, low, words, "lab halo", "end" if right else "start")
        )
    return "".join(parts)


def _legend(names: Sequence[str], *, y: float) -> str:
    parts = []
    for i, name in enumerate(names):
        x, row = 52 + (i % 3) * 128, y + 20 * (i // 3)
        parts.append(
            f'<rect x="{x}" y="{_n(row)}" width="12" height="12" fill="{_series_colour(i)}"/>'
            + _text(x + 17, row + 10, _shorten(name), "lab")
        )
    return "".join(parts)


def _series_colour(i: int) -> str:
    order = (ACCENT, COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[5], COLOURS[1])
    return order[i % len(order)]


def _thin(xy: NDArray[np.float64], most: int = 400) -> NDArray[np.float64]:
    """Keep at most `most` points, first and last among them: more would not be seen."""
    if len(xy) <= most:
        return xy
    kept: NDArray[np.float64] = xy[np.unique(np.linspace(0, len(xy) - 1, most).round().astype(int))]
    return kept


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, float).ravel()
    kept: NDArray[np.float64] = array[np.isfinite(array)]
    return kept


def _finite_pairs(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    xy = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    kept: NDArray[np.float64] = xy[np.isfinite(xy).all(axis=1)]
    return kept


def _span(arrays: Sequence[NDArray[np.float64]], *, zero: bool = False) -> tuple[float, float]:
    """Return the least and largest of all values, never of no width."""
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if zero:
        low = min(low, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _label_width(names: Iterable[str]) -> int:
    longest = max([len(_shorten(name)) for name in names], default=4)
    return int(min(max(44, 20 + _LETTER * longest), 180))


def _shorten(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", ink: str = "") -> str:
    fill = f' style="fill:{ink}"' if ink else ""
    return (
        f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{fill}>'
        f"{escape(text)}</text>"
    )


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{_n(x0)}" y1="{_n(y0)}" x2="{_n(x1)}" y2="{_n(y1)}"/>'


def _n(value: float) -> str:
    """Write a coordinate with at most one decimal: enough for the eye, small on disk."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


__all__ = [
    "bars", "heatmap", "histogram", "lines", "marker", "number", "reliability", "svg",
    "swatch", "ticks",
]  # fmt: skip
