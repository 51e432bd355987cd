"""The contact sheet of a review in a real browser: keys and buttons decide, answers last."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from needed import absent

from tomoline.io.reviews import REVIEW_COLUMNS
from tomoline.report.contact import Shown, contact_sheet, three_views

# What is decided in the page's first life has to be there in its second.
PROBE = """<!DOCTYPE html><html><body><pre id="found"></pre>
<iframe id="page" src="%s" style="width:%dpx;height:900px"></iframe><script>
const page = document.getElementById("page"), found = {};
let life = 0;
page.onload = async () => {
  const doc = page.contentDocument, view = page.contentWindow;
  const press = key => doc.body.dispatchEvent(new view.KeyboardEvent("keydown",
    {key, bubbles: true}));
  if (life++ === 0) {
    found.images = [...doc.querySelectorAll("img")].length;
    found.loaded = doc.querySelector("img").naturalWidth;
    found.wide = [...doc.querySelectorAll("body *")].filter(e =>
      e.getBoundingClientRect().right > %d + 1).map(e => e.outerHTML.slice(0, 80));
    press("y");                                      // the first: yes, and on to the second
    press("2");                                      // its second class
    doc.querySelectorAll("article")[2].querySelector("[data-say=no]").click();
    doc.querySelectorAll("article")[3].querySelector("[data-say=unsure]").click();
    const select = doc.querySelectorAll("article")[4].querySelector("select");
    view.prompt = () => "a, \\"new\\" one";
    select.value = "+";
    select.dispatchEvent(new view.Event("change", {bubbles: true}));
    view.location.reload();
    return;
  }
  found.csv = view.csvText();
  found.state = doc.getElementById("state").textContent;
  found.marked = [...doc.querySelectorAll("article output")].map(e => e.textContent);
  found.fetched = view.performance.getEntriesByType("resource").map(e => e.name)
    .filter(name => !name.startsWith("data:"));
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body></html>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser's program; without one the test is skipped, except in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    absent("no Chromium here (apt-get install chromium)")


@pytest.mark.parametrize("width", [360, 1200])
def test_decisions_are_made_kept_and_given_back(browser: str, tmp_path: Path, width: int) -> None:
    box = np.random.default_rng(0).normal(0, 1, (44, 44, 44)).astype(np.float32)
    picks = [
        Shown(cells=(str(k), "t<1>", str(k), "1.000", "2.000", "3.000", "accepted",
                     "ball" if k != 3 else "", "0.6000", "0.3000", "which class?", ""),
              jpeg=three_views(box, 10.0))
        for k in range(1, 7)
    ]  # fmt: skip
    sheet = tmp_path / "review.html"
    sheet.write_text(contact_sheet(picks, columns=REVIEW_COLUMNS, classes=["ball", "cube"],
                                   dataset=f"d{width}", edge_nm=44))  # fmt: skip
    (tmp_path / "probe.html").write_text(PROBE % (sheet.as_uri(), width, width))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-dev-shm-usage",
        "--allow-file-access-from-files", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [browser, *options, (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text and text[1], done.stderr[-2000:]
    plain = text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    found = json.loads(plain)
    assert found["images"] == 6 and found["loaded"] > 300
    assert found["wide"] == [] and found["fetched"] == []
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert tuple(rows[0]) == REVIEW_COLUMNS
    said = [row["decision"] for row in rows]
    assert said == ["yes", "cube", "no", "unsure", 'a, "new" one', ""]
    assert found["marked"] == said and found["state"] == "5 of 6 decided"
    assert rows[0]["tomogram"] == "t<1>"
