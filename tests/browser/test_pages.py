"""The report's pages in a real browser, offline: they load whole, fit a phone and can be read.

Headless Chromium is asked for the finished document (`--dump-dom`). A probe in a frame around the
page measures it and writes what it found into its own document.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import fabricated_run
import pytest
from needed import absent

from tomoline.stages import report_dataset

PROBE = """<!DOCTYPE html><html><body><pre id="found"></pre>
<iframe id="page" src="%s" style="width:%dpx;height:900px"></iframe><script>
window.onload = async () => {
  const page = document.getElementById("page"), doc = page.contentDocument;
  const wide = [...doc.querySelectorAll("body *")].filter(e =>
    !e.closest(".scroll") && !e.closest("svg") && !e.closest("details:not([open])") &&
    e.getBoundingClientRect().right > %d + 1).map(e => e.outerHTML.slice(0, 80));
  // The frame's load event waits for its <img>s; an image in an SVG is loaded once more to see it.
  const images = [...doc.querySelectorAll("img")].map(e => e.naturalWidth);
  const slices = await Promise.all([...doc.querySelectorAll("svg image")].map(e =>
    new Promise(done => {
      const copy = new Image();
      copy.onload = () => done(copy.naturalWidth);
      copy.onerror = () => done(0);
      copy.src = e.getAttribute("href");
    })));
  const shown = () => [...doc.querySelectorAll("g[class^=c]")].filter(e =>
    page.contentWindow.getComputedStyle(e).display != "none").length;
  const before = shown(), box = doc.querySelector(".legend input");
  if (box) box.checked = false;
  document.getElementById("found").textContent = JSON.stringify({
    title: doc.title, wide, images, slices, before, after: shown(),
    small: [...doc.querySelectorAll("p, td, figcaption")].filter(e =>
      parseFloat(page.contentWindow.getComputedStyle(e).fontSize) < 11).length,
    fetched: page.contentWindow.performance.getEntriesByType("resource")
      .map(e => e.name).filter(name => !name.startsWith("data:")),
  });
};
</script></body></html>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser's program; without one the test is skipped, except in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    absent("no Chromium here (apt-get install chromium)")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = fabricated_run.make_project(tmp_path_factory.mktemp("project"))
    report_dataset.from_results(folder, "demo")
    return folder


def probe(browser: str, page: Path, folder: Path, width: int) -> dict:
    """Return what the probe measured of `page` in a frame `width` pixels wide."""
    (folder / "probe.html").write_text(PROBE % (page.resolve().as_uri(), width, width))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--allow-file-access-from-files", "--hide-scrollbars",
        # Whatever the page might want from outside would fail to be found.
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--dump-dom",
    ]  # fmt: skip
    run = subprocess.run(
        [browser, *options, (folder / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found and found[1], run.stderr[-2000:]
    unescaped = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    measured: dict = json.loads(unescaped)
    return measured


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["tomo_01/report/tomogram.html", "report/summary.html"])
def test_page_loads_offline_and_fits(browser, results, tmp_path, name, width) -> None:
    found = probe(browser, results / name, tmp_path, width)
    assert found["title"] in ("tomo_01", "Data set demo")
    assert found["fetched"] == []
    assert found["wide"] == []
    assert found["small"] == 0
    assert all(n > 0 for n in found["images"] + found["slices"])
    if "tomogram" in name:
        assert len(found["slices"]) == 4
    else:
        assert len(found["images"]) == 3


def test_unticking_a_class_hides_its_marks(browser, results, tmp_path) -> None:
    found = probe(browser, results / "tomo_01" / "report" / "tomogram.html", tmp_path, 1000)
    assert found["after"] < found["before"]


def test_empty_tomogram_opens_too(browser, results, tmp_path) -> None:
    found = probe(browser, results / "empty_04" / "report" / "tomogram.html", tmp_path, 360)
    assert found["title"] == "empty_04" and found["wide"] == []
    assert found["before"] == 0
