"""The report in a real browser, offline: it loads whole, draws, answers the mouse, fits a phone.

Screenshots of the whole pages at both widths are kept in `screenshots/` of the working tree, or
where TOMOLINE_SCREENSHOTS says.
"""

import os
import shutil
import zipfile
from pathlib import Path

import fabricated_run
import pytest
from devtools import Browser
from needed import absent

from tomoline.io.atomic import write_json
from tomoline.stages import report_dataset

WIDTHS = (1280, 390)
PAGES = {
    "dataset": "report/summary.html",
    "tomogram": "tomo_01/report/tomogram.html",
    "empty": "empty_04/report/tomogram.html",
    "folder": "report/pages/tomo_02/report/tomogram.html",
}
SECTIONS = {
    "dataset": {
        "what-needs-attention", "tomograms", "particles-by-class", "from-tomogram-to-tomogram",
        "against-the-truth", "where-the-files-are", "time-and-memory", "the-networks",
        "methods-and-citations", "software-and-settings",
    },
    "tomogram": {
        "slices", "particles-by-class", "what-they-look-like", "how-sure-is-it",
        "rejected-candidates", "neighbours-and-depth", "against-the-truth", "the-tomogram",
        "time-and-memory",
    },
    "empty": {"slices", "the-tomogram", "time-and-memory"},
    "folder": {"slices", "what-they-look-like"},
}  # fmt: skip

# What reaches beyond the window, unless it scrolls by itself.
WIDE = """[...document.querySelectorAll("body *")].filter(e =>
  !e.closest(".scroll, .plot") && !e.closest("svg") && !e.closest("details:not([open])") &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
SMALL = """[...document.querySelectorAll("p, td, figcaption, label")].filter(e =>
  parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML.slice(0, 80))"""
# The house's charts without a bar, a line or a dot.
EMPTY_CHARTS = """[...document.querySelectorAll("svg.chart")].filter(e =>
  e.querySelectorAll("rect, polyline, circle").length == 0).map(e => e.outerHTML.slice(0, 120))"""
PICTURES = """Promise.all([
  ...[...document.querySelectorAll("img")].map(e => [e.naturalWidth, e.outerHTML.slice(0, 60)]),
  ...[...document.querySelectorAll("svg image")].map(e => new Promise(done => {
    const copy = new Image(), told = w => done([w, "image of a slice"]);
    copy.onload = () => told(copy.naturalWidth); copy.onerror = () => told(0);
    copy.src = e.getAttribute("href");
  }))])"""
MARKS = ".plot svg .mark-symbol path, .plot svg .mark-rect path"
DRAWN = (
    "document.querySelectorAll('.plot').length == document.querySelectorAll('.plot.drawn').length"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser; without one the tests are skipped, except in CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        absent("no Chromium here (apt-get install chromium)")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = fabricated_run.make_project(tmp_path_factory.mktemp("project"))
    report_dataset.from_results(folder, "demo")
    return folder


@pytest.fixture(scope="module")
def screenshots(repository: Path) -> Path:
    return Path(os.environ.get("TOMOLINE_SCREENSHOTS") or repository / "screenshots")


def marks(browser: Browser) -> int:
    return browser.run(f"document.querySelectorAll({MARKS!r}).length")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_loads_offline_draws_and_fits(browser, results, screenshots, name, width) -> None:
    browser.open((results / PAGES[name]).as_uri(), width=width)
    browser.wait_for(DRAWN)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(WIDE) == []
    assert browser.run(SMALL) == []
    assert browser.run(EMPTY_CHARTS) == []
    assert [told for size, told in browser.run(PICTURES) if not size] == []
    sections = "[...document.querySelectorAll('section')].map(e => [e.id, e.offsetHeight])"
    found = dict(browser.run(sections))
    assert set(found) >= SECTIONS[name] and min(found.values()) > 40
    assert browser.outside() == [] and browser.errors == []
    browser.screenshot(screenshots / f"{name}_{width}.png")


@pytest.mark.parametrize(("name", "least"), [("dataset", 3 * 4), ("tomogram", 24), ("folder", 24)])
def test_plots_draw_their_marks(browser, results, name, least) -> None:
    browser.open((results / PAGES[name]).as_uri(), width=1280)
    browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1")
    assert marks(browser) >= least
    assert browser.run("[...document.querySelectorAll('.still')].every(e => !e.offsetHeight)")


def test_without_the_script_beside_it_a_page_is_whole(browser, results, tmp_path) -> None:
    """A tomogram's page that was mailed alone."""
    page = tmp_path / "tomogram.html"
    shutil.copyfile(results / PAGES["tomogram"], page)
    browser.open(page.as_uri(), width=390)
    assert browser.run("document.querySelectorAll('.plot.drawn, .live:not(:empty)').length") <= 1
    assert browser.run("document.querySelector('.still').offsetHeight > 0")
    assert browser.run("document.querySelectorAll('svg.chart').length") > 8


@pytest.mark.parametrize("width", WIDTHS)
def test_unticking_a_class_hides_its_marks(browser, results, width) -> None:
    browser.open((results / PAGES["tomogram"]).as_uri(), width=width)
    shown = """[...document.querySelectorAll("svg.plane g[class^=c]")].filter(e =>
      getComputedStyle(e).display != "none").length"""
    before = browser.run(shown)
    first = "document.querySelector('.legend input')"
    mine = browser.run(f"document.querySelectorAll('svg.plane g.' + {first}.id).length")
    browser.run(f"{first}.click()")
    assert 0 < mine == before - browser.run(shown)
    browser.run("document.querySelector('button[data-tick=none]').click()")
    assert browser.run(shown) == 0
    browser.run("document.querySelector('button[data-tick=all]').click()")
    assert browser.run(shown) == before


def test_choosing_tomograms_narrows_what_is_below(browser, tmp_path) -> None:
    """Dragging over the strip of a data set of six leaves the dots of some."""
    results = tmp_path / "results" / "many"
    for n in range(6):
        fabricated_run.make_tomogram(
            results / f"t{n}", n=3 + n, shape=(8, 24, 24), truth=False, seed=n
        )
    page = report_dataset.from_results(results, "many")
    browser.open(page.as_uri(), width=1280)
    browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1")
    box = """(() => { scrollTo({top: document.querySelector('.plot').offsetTop - 40,
        behavior: 'instant'});
      const r = document.querySelector('.plot svg .mark-area path').getBoundingClientRect();
      return [r.left, r.top, r.width, r.height]; })()"""
    left, top, wide, high = browser.run(box)
    bars = "document.querySelectorAll('.plot svg .mark-rect path[aria-label]').length"
    total = """[...document.querySelectorAll('.plot svg .mark-rect path')].map(e =>
      e.getAttribute('aria-label') || '').join()"""
    before, told = browser.run(bars), browser.run(total)
    y = top + high / 2
    browser.mouse("Moved", left + 2, y)
    browser.mouse("Pressed", left + 2, y)
    for part in (0.1, 0.2, 0.3):
        browser.mouse("Moved", left + wide * part, y)
    browser.mouse("Released", left + wide * 0.3, y)
    browser.wait_for(f"{bars} != {before} || ({total}) != {told!r}")
    assert browser.errors == []


def test_a_heading_sorts_and_the_sum_stays_last(browser, results) -> None:
    browser.open((results / PAGES["dataset"]).as_uri(), width=1280)
    column = """[...document.querySelector("table.sort").tBodies[0].rows].map(r =>
      [r.cells[0].textContent, parseInt(r.cells[5].textContent)])"""
    head = "document.querySelector('table.sort').tHead.rows[0].cells[5]"
    assert browser.run(f"{head}.textContent") == "Particles"
    browser.run(f"{head}.click()")
    *rows, last = browser.run(column)
    counts = [n for _, n in rows if n is not None]
    assert counts == sorted(counts, reverse=True) and last[0] == "all"
    browser.run(f"{head}.click()")
    again = [n for _, n in browser.run(column)[:-1] if n is not None]
    assert again == sorted(counts)


def test_the_folders_first_page_leads_to_a_tomogram_and_back(browser, results) -> None:
    browser.open((results / "report" / "pages" / "index.html").as_uri(), width=1280)
    browser.wait_for("document.title == 'Data set demo'")
    browser.run("document.querySelector('table a.page').click()")
    browser.wait_for("document.title == 'tomo_01'")
    browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1")
    browser.run("document.querySelector('a.folder').click()")
    browser.wait_for("document.title == 'Data set demo'")
    assert browser.outside() == []


@pytest.mark.slow
def test_two_hundred_tomograms_open_in_a_few_seconds(browser, tmp_path, screenshots) -> None:
    results = fabricated_run.make_many(tmp_path, 200)
    page = report_dataset.from_results(results, "many")
    assert page.stat().st_size < 3_000_000
    seconds = browser.open(page.as_uri(), width=1280)
    browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1")
    assert seconds < 8  # 1 s on a quiet machine
    assert marks(browser) >= 4 * 200
    assert browser.run("document.documentElement.scrollWidth") <= 1280
    assert browser.run(WIDE) == [] and browser.errors == []
    browser.screenshot(screenshots / "many_1280.png")


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """What `snakemake --report` makes of a real run, as one file and as a zip file."""
    from tiny_project import make_project  # noqa: PLC0415  (loads torch)

    project = make_project(tmp_path_factory.mktemp("run"))
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "report.zip"):
        done = project.snakemake("--report", name)
        assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(project.folder / "report.zip") as archive:
        archive.extractall(project.folder / "unpacked")
    return {
        "html": project.folder / "report.html",
        "zip": project.folder / "unpacked" / "report" / "report.html",
    }


def complaints(browser: Browser) -> list[str]:
    """Errors but for what Snakemake's report says of its own style sheet."""
    return [told for told in browser.errors if "tailwind" not in told]


def show(browser: Browser, path: str) -> None:
    """Have Snakemake's report show one of its results."""
    browser.run(
        f"app.setView({{content: 'html', contentPath: results[{path!r}].data_uri, "
        f"resultPath: {path!r}}})"
    )


def test_snakemakes_report_of_one_file_shows_the_pages(browser, reports, screenshots) -> None:
    browser.open(reports["html"].as_uri(), width=1280)
    found = browser.run("Object.entries(results).map(([p, r]) => [p, r.data_uri.slice(0, 15)])")
    kinds = dict(found)
    assert set(kinds.values()) == {"data:text/html;"}
    dataset = "results/tiny/report/summary.html"
    tomograms = [path for path in kinds if path.endswith("/tomogram.html")]
    assert dataset in kinds and len(tomograms) == len(kinds) - 1 > 0
    for path, head in ((dataset, "Data set tiny"), (tomograms[0], "Slices")):
        browser.open(reports["html"].as_uri(), width=1280)
        show(browser, path)
        browser.wait_for(f"document.body.textContent.includes({head!r})", framed=True)
        # There is no folder here: links out of the page are plain text.
        assert browser.run_framed(
            "[...document.querySelectorAll('a.folder')].every(e => !e.offsetHeight) && "
            "[...document.querySelectorAll('a.page')].every(e => "
            "getComputedStyle(e).pointerEvents == 'none')"
        )
        if path == dataset:
            browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1", framed=True)
            assert browser.run_framed(f"document.querySelectorAll({MARKS!r}).length") >= 3 * 4
        assert browser.outside() == [] and complaints(browser) == []
        browser.screenshot(screenshots / f"snakemake_{Path(path).stem}.png", whole=False)


def test_snakemakes_zip_holds_the_folder_with_its_links(browser, reports, screenshots) -> None:
    browser.open(reports["zip"].as_uri(), width=1280)
    (path,) = browser.run("Object.keys(results)")
    address = browser.run(f"results[{path!r}].data_uri")
    show(browser, path)
    browser.wait_for("document.title == 'Data set tiny'", framed=True)
    browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1", framed=True)
    assert complaints(browser) == [] and browser.outside() == []
    browser.screenshot(screenshots / "snakemake_zip.png", whole=False)
    browser.open((reports["zip"].parent / address).as_uri(), width=1280)
    browser.wait_for("document.title == 'Data set tiny'")
    links = browser.run("[...document.querySelectorAll('table a.page')].map(e => e.href)")
    assert len(links) == 3
    for link in links:
        browser.open(link, width=1280)
        assert "Slices" in browser.run("document.body.textContent")
        browser.wait_for(DRAWN)
        assert complaints(browser) == [] and browser.outside() == []


# What a user may write into a sheet or call a class; each would do harm where it is not escaped.
EVIL = ("<img src=x onerror='window.harmed=1'>", "</script><script>window.harmed=2</script>",
        'a"b', "O'Reilly & Sons", "{{7*7}}", "a.b[0]", "α-β ßtrange", "50% 'done'", "#c0", "NaN",
        "1e5", "2cg9")  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_names_are_shown_as_they_are_and_run_nothing(browser, tmp_path, monkeypatch, width) -> None:
    monkeypatch.setattr(fabricated_run, "CLASSES", EVIL)
    monkeypatch.setattr(fabricated_run, "TOO_SMALL", EVIL[0])
    results = tmp_path / "results" / "evil"
    for n in range(2):
        fabricated_run.make_tomogram(results / f"t{n}", n=30, shape=(16, 48, 48), truth=True,
                                     seed=n, warnings=EVIL)  # fmt: skip
        write_json(results / f"t{n}" / "domain.json", {"in_domain": "no", "reason": EVIL[1]})
        fabricated_run.report_tomogram_of(results / f"t{n}", slices=1)
    (results / "bad" / "logs").mkdir(parents=True)
    (results / "bad" / "particles.csv").write_bytes((results / "t0" / "particles.csv").read_bytes())
    page = report_dataset.from_results(results, "evil")
    for address in (page, results / "t0" / "report" / "tomogram.html"):
        browser.open(address.as_uri(), width=width)
        browser.wait_for("document.querySelectorAll('.plot.drawn').length == 1")
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert browser.run("window.harmed") is None
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(WIDE) == []
        told = browser.run("document.body.textContent")
        assert all(name in told for name in EVIL)
        assert browser.outside() == [] and browser.errors == []
        assert not browser.run("[...document.querySelectorAll('img')].some(e => !e.src)")
