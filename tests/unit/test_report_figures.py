"""Charts and page shell: what is drawn, and that it is whole and plain."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tomoline.report import figures, pages
from tomoline.report.palette import COLOURS, SHAPES, class_order, styles

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_classes_differ_in_colour_or_shape_and_keep_their_look() -> None:
    names = [f"class{i}" for i in range(len(COLOURS) * len(SHAPES))]
    looks = {(s.colour, s.shape) for s in styles(names).values()}
    assert len(looks) == len(names)
    assert styles(names[:5]) == {name: styles(names)[name] for name in names[:5]}


def test_class_order_is_the_tables_then_the_unknown_ones() -> None:
    columns = ["particle_id", "p_b", "p_a", "score"]
    assert class_order(columns, ["z", "a", ""]) == ["b", "a", "z"]


def test_bars_are_as_long_as_their_values() -> None:
    chart = parsed(figures.bars({"a": 4, "b": 1, "none": 0}, title="t"))
    widths = [float(rect.get("width", "nan")) for rect in chart.iter(f"{SVG}rect")]
    assert widths[1] == pytest.approx(widths[0] / 4, abs=0.1)
    assert widths[2] == 0


def test_histogram_counts_every_finite_value_once() -> None:
    values = [0.05, 0.05, 0.55, 1.0, math.nan]
    text = figures.histogram({"kept": values}, title="t", label="score", span=(0, 1), n_bins=10)
    counts = [int(n) for n in re.findall(r"<title>kept: (\d+) from", text)]
    assert sum(counts) == 4 and max(counts) == 2


def test_histogram_marks_a_threshold_and_draws_what_was_expected() -> None:
    text = figures.histogram(
        {"kept": [0.5] * 4}, title="t", label="x", span=(0, 1), n_bins=2, marks={"least": 0.5},
        expected={"at random": [1.0, 8.0]},
    )  # fmt: skip
    chart = parsed(text)
    (points,) = [line.get("points", "") for line in chart.iter(f"{SVG}polyline")]
    (first, last) = [tuple(map(float, pair.split(","))) for pair in points.split()]
    mark = next(e for e in chart.iter(f"{SVG}line") if e.get("class") == "ax mark")
    assert first[0] < float(mark.get("x1")) < last[0]
    bar = next(e for e in chart.iter(f"{SVG}rect"))
    floor = float(bar.get("y")) + float(bar.get("height"))
    # Eight expected stand twice as high as four found.
    assert floor - last[1] == pytest.approx(2 * float(bar.get("height")), abs=0.2)
    assert "least" in text and "at random" in text


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [2.0, 2.0]])
def test_histogram_of_next_to_nothing_is_a_chart(values: list[float]) -> None:
    parsed(figures.histogram({"kept": values}, title="t", label="x"))


def test_heatmap_writes_counts_and_shades_by_row_share() -> None:
    counts = np.array([[8.0, 2.0], [0.0, 0.0]])
    chart = parsed(
        figures.heatmap(
            counts, rows=["a", "b"], columns=["a", "b"], title="t", row_label="r", column_label="c"
        )
    )
    tips = [title.text for title in chart.iter(f"{SVG}title")]
    assert "a called b: 2" in tips
    fills = [rect.get("fill") for rect in chart.iter(f"{SVG}rect")]
    assert fills[2] == fills[3] == "#ffffff"  # an empty row is white, not a division by zero
    assert fills[0] < fills[1]  # darker


def test_lines_leave_gaps_out_and_stay_finite() -> None:
    text = figures.lines(
        {"a": ([1, 2, 3], [1.0, math.nan, 0.5]), "b": ([1], [math.nan])},
        title="t", x_label="x", y_label="y",
    )  # fmt: skip
    assert "nan" not in text
    (points,) = [line.get("points", "") for line in parsed(text).iter(f"{SVG}polyline")]
    assert len(points.split()) == 2


def test_names_from_files_cannot_break_or_script_a_page() -> None:
    evil = "<script>alert(1)</script>&\"'"
    page = pages.Page(title=evil, subtitle=evil)
    page.add("Part", figures.bars({evil: 1}, title=evil) + pages.box([evil], "warn"))
    html = page.html()
    assert html.count("<script") == 1 and evil not in html  # the page's own
    parsed(figures.bars({evil: 1}, title=evil))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 37, [0, 10, 20, 30]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert figures.ticks(low, high, wanted=5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1,234"), (0.12345, "0.123"), (math.nan, "–"), (1234.6, "1,235")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_marks_stand_at_their_place_and_reliability_is_drawn_to_scale() -> None:
    chart = figures.lines(
        {"precision": ([0.5, 1.0], [0.8, 1.0])}, title="t", x_label="x", y_label="y",
        x_span=(0.0, 1.0), y_span=(0.0, 1.0), marks={"kept": 0.5},
    )  # fmt: skip
    upright = [
        e for e in parsed(chart).iter() if e.tag.endswith("line") and e.get("x1") == e.get("x2")
    ]
    points = next(e for e in parsed(chart).iter() if e.tag.endswith("polyline")).get("points")
    assert points.split(",")[0] in {e.get("x1") for e in upright}
    assert "kept" in chart
    drawn = figures.reliability({"p": [[90, 0.0, 0.0], [10, 1.0, 1.0]]}, title="t", x_label="",
                                y_label="")  # fmt: skip
    dots = [e for e in parsed(drawn).iter() if e.tag.endswith("circle")]
    diagonal = next(e for e in parsed(drawn).iter() if e.get("stroke-dasharray") == "4 4")
    assert [(d.get("cx"), d.get("cy")) for d in dots] == [
        (diagonal.get("x1"), diagonal.get("y1")), (diagonal.get("x2"), diagonal.get("y2")),
    ]  # fmt: skip
    assert float(dots[0].get("r")) > float(dots[1].get("r"))
