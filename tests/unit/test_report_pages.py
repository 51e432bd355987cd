"""The pages of a tomogram and of a data set, made of fabricated runs on disk."""

import json
import re
from html.parser import HTMLParser

import fabricated_run
import pandas as pd
import pytest

from tomoline.errors import InputError
from tomoline.io.tables import write_particles
from tomoline.report.dataset import split_remedy
from tomoline.settings import ReportSettings
from tomoline.stages import report_dataset

OWN_SCRIPTS = {
    "<script>", '<script type="application/json">', '<script data-from="../../report/plots.js">',
}  # fmt: skip


class Outline(HTMLParser):
    """Text, addresses and ids of a page; fails on tags that do not nest."""

    VOID = {"meta", "input", "img", "br", "link"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.addresses, self.ids, self.open = "", [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("href", "src")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data + " "


def read(page) -> tuple[Outline, str]:
    html = page.read_text(encoding="utf-8")
    outline = Outline(html)
    outside = [a for a in outline.addresses if re.match(r"(https?:)?//", a)]
    assert not outside and "@import" not in html
    # The house's own scripts and the plots' data: nothing else runs.
    assert set(re.findall("<script[^>]*>", html)) <= OWN_SCRIPTS
    assert len(outline.ids) == len(set(outline.ids))
    return outline, " ".join(outline.text.split())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return fabricated_run.make_project(tmp_path_factory.mktemp("project"))


def test_page_of_a_tomogram_says_what_is_in_its_table(project) -> None:
    table = pd.read_csv(project / "tomo_01" / "particles.csv")
    kept = table[table["status"] == "accepted"]
    outline, text = read(project / "tomo_01" / "report" / "tomogram.html")
    assert f"{len(kept)} particles of {kept['class'].nunique()} classes found" in text
    for name, count in kept["class"].value_counts().items():
        assert f"{name}: {count}" in text  # the legend
    assert fabricated_run.TOO_SMALL in text and fabricated_run.NO_CLASS in text
    assert {"slices", "against-the-truth", "time-and-memory"} <= set(outline.ids)
    assert "Difference of Gaussians, one to one" in text and "Confusion matrix" in text
    html = (project / "tomo_01" / "report" / "tomogram.html").read_text()
    planes = re.findall('<image [^>]*href="data:image/jpeg', html)
    assert len(planes) == 2 + 2 + 2  # two slices asked for, two from the side, two projections
    assert html.count('class="card"') == kept["class"].nunique()
    assert {"what-they-look-like", "neighbours-and-depth", "rejected-candidates"} <= set(
        outline.ids
    )
    assert f"Mean of {(kept['class'] == kept['class'].iloc[0]).sum()}" in text


def test_every_mark_on_a_slice_is_an_accepted_particle_of_its_class(project) -> None:
    html = (project / "tomo_01" / "report" / "tomogram.html").read_text()
    present = set(re.findall(r'<g class="c(\d+)"', html))
    switches = set(re.findall(r'id="c(\d+)"', html))
    assert present <= switches
    assert all(f"#c{n}:not(:checked)) g.c{n}" in html for n in present)


def test_shards_of_a_stage_are_one_line_of_the_timings(project) -> None:
    _, text = read(project / "tomo_01" / "report" / "tomogram.html")
    assert re.search(r"segment 2 121\.5", text)  # 61 + 58.5 + 2 x seed
    assert "segment_1-of-2" not in text


def test_given_place_of_a_slice_is_in_given_voxels(tmp_path) -> None:
    folder = tmp_path / "ds" / "scaled"
    fabricated_run.make_tomogram(folder, shape=(20, 24, 24), n=3, scale=2.0, truth=False)
    _, text = read(fabricated_run.report_tomogram_of(folder, slices=1))
    assert "z = 10 (z = 20 as given)" in text
    assert "Against the truth" not in text
    assert "5 Å" in text and "10 Å (rescaled)" in text


@pytest.mark.parametrize("n_rejected", [0, 4])
def test_an_empty_tomogram_has_a_plain_page(tmp_path, n_rejected) -> None:
    folder = tmp_path / "ds" / "empty"
    fabricated_run.make_tomogram(folder, shape=(8, 16, 16), n=0, n_rejected=n_rejected, truth=False)
    _, text = read(fabricated_run.report_tomogram_of(folder))
    assert "No particle was found in this tomogram" in text
    assert ("candidates were rejected" in text) == bool(n_rejected)
    assert (folder / "report" / "slices.png").stat().st_size > 1000


def test_names_and_warnings_are_escaped(tmp_path) -> None:
    folder = tmp_path / "ds" / "tomo"
    fabricated_run.make_tomogram(folder, shape=(8, 16, 16), n=1, warnings=["<b>size & shape</b>"])
    page = fabricated_run.report_tomogram_of(folder)
    assert "&lt;b&gt;size &amp; shape&lt;/b&gt;" in page.read_text()


def test_same_input_same_bytes(project) -> None:
    page = project / "tomo_02" / "report" / "tomogram.html"
    before = page.read_bytes(), page.with_name("slices.png").read_bytes()
    fabricated_run.report_tomogram_of(page.parents[1], slices=2)
    assert (page.read_bytes(), page.with_name("slices.png").read_bytes()) == before
    one = report_dataset.from_results(project, "demo").read_bytes()
    assert report_dataset.from_results(project, "demo").read_bytes() == one


def test_a_large_noisy_tomogram_stays_below_the_limit(tmp_path) -> None:
    folder = tmp_path / "ds" / "large"
    fabricated_run.make_tomogram(folder, shape=(12, 900, 900), n=0, truth=False)
    table = fabricated_run.particle_table(
        "large", [(6, 5 * (i % 180), 2 * (i // 4)) for i in range(1800)], [0] * 1800
    )
    fabricated_run.write_particles(folder / "particles.csv", table)
    page = fabricated_run.report_tomogram_of(folder, slices=8)
    assert page.stat().st_size < 1_500_000
    assert "more of lower score not drawn" in page.read_text()


def test_page_of_a_failed_run_names_what_failed_and_what_to_do(project) -> None:
    page = report_dataset.from_results(project, "demo")
    outline, text = read(page)
    assert text.count("3 of 5 tomograms finished with 48 particles") == 1
    assert "bad_03 failed prepare data/bad_03.mrc: expected 1048576 bytes" in text
    assert "copy the file again, it is cut off" in text
    assert "flat_05 refused – every voxel has the same value" in text
    assert "No particle was found in: empty_04" in text
    assert "../tomo_01/report/tomogram.html" in outline.addresses
    assert "results/demo/export/relion5/particles.star" in text
    assert "msdnet-localizer" in text and "Loss on the training tomograms" in text
    assert "Particles were found and classified with Tomoline" in text


def test_the_first_screen_says_what_came_in_and_out_what_failed_and_what_to_do(project) -> None:
    html = report_dataset.from_results(project, "demo").read_text()
    boxes = re.search(r'<div class="minute">(.*?)</div></div>', html, re.DOTALL)[1]
    told = " ".join(re.sub("<[^>]+>", " ", boxes).split())
    for head in ("What came in", "What came out", "What failed, and why", "What to do"):
        assert head in told
    assert "5 tomograms. 32 × 32 × 16 to 64 × 64 × 32 voxels of 10 Å." in told
    assert "48 particles of" in told and "24 in a usual tomogram (median; 0 to 24)" in told
    assert "bad_03 in prepare: data/bad_03.mrc: expected 1048576 bytes" in told
    assert "flat_05 : every voxel has the same value" in told
    assert "results/demo/export/relion5/particles.star" in told
    assert "run the same command again" in told and "Look first at tomo_0" in told


def told_of(project) -> str:
    """The four boxes of the first screen, as plain text."""
    html = report_dataset.from_results(project, "demo").read_text()
    boxes = re.search(r'<div class="minute">(.*?)</div></div>', html, re.DOTALL)[1]
    return " ".join(re.sub("<[^>]+>", " ", boxes).split())


def test_the_first_screen_says_how_many_of_the_particles_are_exported(tmp_path) -> None:
    """By the settings of the export; nothing is said where they leave none out."""
    project = fabricated_run.make_project(tmp_path)
    tables = [pd.read_csv(path, keep_default_na=False) for path in project.glob("*/particles.csv")]
    kept = pd.concat(table[table["status"] == "accepted"] for table in tables)
    wanted = kept[(kept["score"] >= 0.8) & kept["class"].isin(["1u6g", "3qm1"])]
    assert 0 < len(wanted) < len(kept)
    assert "files for other programs" not in told_of(project)
    settings = tmp_path / "config" / "config.yaml"
    settings.write_text("export: {min_score: 0.8, classes: [1u6g, 3qm1]}\n")
    said = f"{len(wanted)} of them are in the files for other programs"
    asked = "(export.min_score = 0.8, export.classes = 1u6g, 3qm1)."
    assert f"{said} {asked}" in told_of(project)
    settings.write_text("export: {min_score: much}\n")  # the page is made all the same
    assert "files for other programs" not in told_of(project)


def test_one_particle_in_each_tomogram_is_told_in_the_singular_and_looked_at_once(tmp_path) -> None:
    results = tmp_path / "results" / "demo"
    for n in range(2):
        fabricated_run.make_tomogram(results / f"t{n}", n=1, n_rejected=0, truth=False,
                                     shape=(16, 32, 32), seed=n)  # fmt: skip
        page = fabricated_run.report_tomogram_of(results / f"t{n}", slices=1)
        assert "1 particle of 1 class found" in page.read_text()
    told = told_of(results)
    look = told[told.index("Look first at") :]
    assert look.count("(") == 1 and "fewest" not in look and "most particles" not in look
    (results / "t1" / "particles.csv").unlink()
    _, text = read(report_dataset.from_results(results, "demo"))
    assert "1 particle was kept in 1 tomogram." in text
    assert "1 particles" not in text


def test_methods_text_cites_only_what_is_listed(project) -> None:
    _, text = read(report_dataset.from_results(project, "demo"))
    methods = re.search("To be copied(.*?)Please cite(.*?)Software and settings", text)
    cited = re.findall(r"(\w+) et al\., (\d{4})", methods[1])
    assert len(cited) >= 4
    assert all(re.search(rf"{name} \w.*?{year}", methods[2]) for name, year in cited)


def test_the_folder_to_hand_out_is_whole(project) -> None:
    """Every link of every page in it leads to a file in it."""
    report_dataset.from_results(project, "demo")
    folder = project / "report" / "pages"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    assert found == ["empty_04/report/tomogram.html", "index.html", "report/summary.html",
                     "tomo_01/report/tomogram.html", "tomo_02/report/tomogram.html"]  # fmt: skip
    for name in found:
        html = re.sub("<script>.*?</script>", "", (folder / name).read_text(), flags=re.DOTALL)
        links = set(re.findall(r'(?:href|data-from)="([^"#:]+)"', html))
        links |= set(re.findall(r'url=([^"]+)"', html))
        assert links
        for link in links:
            assert (folder / name).parent.joinpath(link).is_file(), (name, link)
    assert (folder / "report" / "summary.csv").is_file()


def test_summary_table_has_a_row_a_tomogram_and_adds_up(project) -> None:
    report_dataset.from_results(project, "demo")
    table = pd.read_csv(project / "report" / "summary.csv").set_index("tomogram")
    assert table["state"].to_dict() == {
        "tomo_01": "finished", "tomo_02": "finished", "bad_03": "failed",
        "empty_04": "finished", "flat_05": "refused",
    }  # fmt: skip
    counts = table.filter(regex="^n_").loc[["tomo_01", "tomo_02"]].sum(axis=1)
    assert counts.tolist() == table.loc[["tomo_01", "tomo_02"], "particles"].tolist()
    assert table.loc["tomo_01", "one_to_one_f1"] == pytest.approx(0.94, abs=0.01)


def test_the_rule_and_the_files_alone_give_the_same_lines(project, tmp_path) -> None:
    finished = ["tomo_01", "tomo_02", "empty_04"]
    outputs = {"page": project / "report" / "summary.html", "table": tmp_path / "summary.csv"}
    report_dataset.run(
        {"particles": [str(project / name / "particles.csv") for name in finished],
         "cards": []},
        outputs,
        settings=ReportSettings(),
        dataset={"name": "demo"},
        failed=[{"tomogram": "bad_03", "state": "to do", "stage": "prepare", "reason": ""}],
        refused=[{"tomogram": "flat_05", "reason": "flat"}],
        config={"merge": {"threshold": 0.4}},
    )  # fmt: skip
    _, text = read(outputs["page"])
    assert "3 of 5 tomograms finished with 48 particles" in text
    assert "1 not finished yet" in text and "threshold: 0.4" in text


def test_a_data_set_without_results_or_list_still_has_a_page(tmp_path) -> None:
    folder = tmp_path / "results" / "none"
    _, text = read(report_dataset.from_results(folder, "none"))
    assert "No tomogram is listed" in text and "cannot be read" in text


def test_a_broken_particle_table_is_named(tmp_path) -> None:
    folder = tmp_path / "ds" / "tomo"
    fabricated_run.make_tomogram(folder, shape=(8, 16, 16), n=1, truth=False)
    (folder / "particles.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"particles\.csv"):
        fabricated_run.report_tomogram_of(folder)


@pytest.mark.parametrize(
    ("reason", "cause", "remedy"),
    [
        ("InputError: f: expected a; found b. Remedy: c", "f: expected a; found b.", "c"),
        ("KeyError: 'x'", "'x'", ""),
        ("flat", "flat", ""),
    ],
)
def test_a_reason_is_split_into_cause_and_remedy(reason, cause, remedy) -> None:
    assert split_remedy(reason) == (cause, remedy)


def test_what_the_model_does_not_know_and_scores_for_a_precision_are_shown(tmp_path) -> None:
    root = tmp_path / "p"
    results = root / "results" / "demo"
    folder = results / "tomo_01"
    table = fabricated_run.make_tomogram(folder, seed=3, shape=(16, 48, 48), n=20)
    table.insert(
        table.columns.get_loc("margin") + 1, "expected_precision", 0.5 + table["score"] / 2
    )
    write_particles(folder / "particles.csv", table)
    told = "The model cannot judge this tomogram: inverted contrast?"
    (folder / "domain.json").write_text(json.dumps({"in_domain": "no", "reason": told}))
    fabricated_run.add_curves(folder)
    _, text = read(fabricated_run.report_tomogram_of(folder, slices=1))
    assert told in text
    kept = table[table["status"] == "accepted"].sort_values("score", ascending=False)
    mean = kept["expected_precision"].expanding().mean()
    count = int((mean >= 0.9).sum())
    score = kept["score"].iloc[count - 1]
    assert f"90 % {score:.4g} {count}" in text
    assert "For a precision of take export.min_score Particles left" in text
    assert "Precision and recall against the score" in text and "Is it a particle?" in text
    fabricated_run._write_sheet(root, truth=True)
    page = report_dataset.from_results(results, "demo", project=root)
    _, text = read(page)
    assert f"tomo_01: {told}" in text and "Tomograms that the model cannot judge" in text
    assert "Is it of this class?" in text
    summary = pd.read_csv(results / "report" / "summary.csv").set_index("tomogram")
    assert summary.loc["tomo_01", "in_domain"] == "no"
