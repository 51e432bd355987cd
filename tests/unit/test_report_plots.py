"""Plots' descriptions: whole, the same each time, and without any address."""

import json
import re

import pandas as pd

from tomoline.report import plots
from tomoline.report.palette import styles


def course(n: int = 5) -> dict:
    rows = pd.DataFrame(
        {
            "n": range(1, n + 1), "tomogram": [f"</script><b>{i}" for i in range(n)],
            "particles": 10, "score": [0.9] * (n - 1) + [float("nan")], "rejected": 0.5,
            "minutes": 1.0, "fits": "yes", "link": "",
        }
    )  # fmt: skip
    scores = pd.DataFrame({"n": [1], "low": [0.0], "high": [0.5], "status": ["kept"], "count": [3]})
    classes = pd.DataFrame({"n": [1], "class": ["a"], "count": [3]})
    return plots.trends(rows, scores, classes, class_order=["a"])


def test_same_data_same_description() -> None:
    assert json.dumps(course()) == json.dumps(course())


def test_a_description_holds_its_data_and_no_address() -> None:
    text = json.dumps(course())
    assert "http" not in text and '"url"' not in text
    assert '"page"' in text and "777" not in text


def test_names_cannot_end_the_script_that_holds_the_data() -> None:
    html = plots.plot(course(), label='a "plot" <here>')
    data = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1]
    assert "<b>" not in html and json.loads(data) == course()
    assert "&lt;here&gt;" in html


def test_candidates_keep_their_colours_and_are_not_too_many() -> None:
    table = pd.DataFrame(
        {"id": range(9000), "class": ["a", "b", "rejected"] * 3000, "score": 0.5, "size": 4,
         "depth": 1}
    )  # fmt: skip
    looks = styles(["b", "unused", "a"])
    spec = json.dumps(plots.candidates(table, looks))
    assert f'["b", "a", "rejected"], "range": ["{looks["b"].colour}", "{looks["a"].colour}"' in spec
    assert len(plots.thinned(table)) == plots.MOST_POINTS
    assert plots.thinned(table).iloc[-1]["id"] == 8999


def test_the_bundle_is_a_script_that_may_stand_in_a_page() -> None:
    script = plots.inline_script()
    assert 500_000 < len(script) < 1_500_000
    assert script.lower().count("</script") == 1 and "vegaEmbed" in script
    assert "<!--" not in script
