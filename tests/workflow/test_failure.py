"""One bad tomogram fails alone, is named everywhere, and is all that the next run does.

One story, told in order by module-scoped fixtures: a file is cut short after it was onboarded, the
workflow runs, the file is mended, the workflow runs again.
"""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from tiny_project import CENTRES, Project, make_project

from tomoline.contracts import STAGES
from tomoline.export.registry import DIALECTS

DATASET_RULES = {"combine", "report_dataset", "all"}
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("failure"))


@pytest.fixture(scope="module")
def whole_file(project: Project) -> bytes:
    return (project.folder / "tomograms" / "two.mrc").read_bytes()


@pytest.fixture(scope="module")
def first_run(project: Project, whole_file: bytes) -> Done:
    (project.folder / "tomograms" / "two.mrc").write_bytes(whole_file[: len(whole_file) // 2])
    return project.snakemake()


@pytest.fixture(scope="module")
def first_report(project: Project, first_run: Done) -> Done:
    return project.snakemake("--report", "first.html")


def summary(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.file("report", "summary.csv")).set_index("tomogram")


def combined(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.file("export", "csv", "particles.csv"))


def jobs_of(done: Done) -> list[tuple[str, str]]:
    """Rule and tomogram (empty for a dataset's) of every job that was started."""
    text = done.stdout + done.stderr
    found = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", text, re.MULTILINE)
    names = [re.search(r"tomogram=([\w.-]+)", body) for _, body in found]
    return [(rule, n[1] if n else "") for (rule, _), n in zip(found, names, strict=True)]


def test_the_run_ends_with_an_error_that_names_the_file(first_run: Done) -> None:
    assert first_run.returncode != 0
    assert "InputError: tomograms/two.mrc: expected" in first_run.stderr
    assert "Traceback" not in first_run.stderr


def test_the_others_have_finished(project: Project, first_run: Done) -> None:
    for name in ("one", "three"):
        for file in ("relion5.star", "relion4.star", "particles.csv"):
            assert project.file(name, "export", file).is_file()
        assert project.file(name, "report", "tomogram.html").is_file()
    assert not project.file("two", "particles.csv").exists()


def test_the_dataset_is_summed_up_without_it(project: Project, first_run: Done) -> None:
    assert set(combined(project)["tomogram"]) == {"one", "three"}
    listed = starfile.read(project.file("export", "relion5", "import.star"))
    assert sorted(listed["rlnTomoName"]) == ["one", "three"]
    table = summary(project)
    assert dict(table["state"]) == {"one": "finished", "three": "finished", "two": "failed"}
    assert table.loc["two", "stage"] == "prepare"
    assert "tomograms/two.mrc" in table.loc["two", "reason"]
    page = project.file("report", "summary.html").read_text()
    assert "tomograms/two.mrc" in page


def test_status_names_it_and_why(project: Project, first_run: Done) -> None:
    done = project.run("tomoline", "status", "--dataset", "tiny", "--json")
    (dataset,) = json.loads(done.stdout)["datasets"]
    rows = {row["tomogram"]: row for row in dataset["tomograms"]}
    assert {name: row["summary"] for name, row in rows.items()} == {
        "one": "finished", "two": "failed", "three": "finished",
    }  # fmt: skip
    assert "tomograms/two.mrc" in rows["two"]["stages"]["prepare"]["reason"]


def test_report_can_be_made_of_a_run_that_failed(project: Project, first_report: Done) -> None:
    assert first_report.returncode == 0, first_report.stderr
    text = (project.folder / "first.html").read_text()
    assert "summary.html" in text
    assert "one/report/tomogram.html" in text
    assert "two/report/tomogram.html" not in text


def test_taking_it_out_of_the_sheet_sums_up_anew(project: Project, first_run: Done) -> None:
    sheet = project.folder / "config" / "datasets" / "tiny.tsv"
    text = sheet.read_text()
    sheet.write_text(text.replace("two.mrc\tyes", "two.mrc\tno"))
    try:
        assert set(project.planned()) == DATASET_RULES
    finally:
        sheet.write_text(text)


@pytest.fixture(scope="module")
def second_run(project: Project, first_report: Done, whole_file: bytes) -> Iterator[Done]:
    before = {name: mtime(project, name) for name in ("one", "three")}
    (project.folder / "tomograms" / "two.mrc").write_bytes(whole_file)
    yield project.snakemake()
    assert {name: mtime(project, name) for name in ("one", "three")} == before


def mtime(project: Project, tomogram: str) -> dict[str, int]:
    folder = project.file(tomogram)
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_zip_of_a_failed_run_holds_the_pages_of_the_others(
    project: Project, first_report: Done
) -> None:
    done = project.snakemake("--report", "first.zip")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(project.folder / "first.zip") as archive:
        found = {"/".join(name.split("/")[4:]) for name in archive.namelist()}
    assert {"index.html", "report/summary.html", "report/plots.js"} <= found
    pages = {name.split("/")[0] for name in found if name.endswith("/tomogram.html")}
    assert pages == {"one", "three"}


def test_the_next_run_does_only_what_was_missing(second_run: Done) -> None:
    assert second_run.returncode == 0, second_run.stderr
    jobs = jobs_of(second_run)
    assert {tomogram for rule, tomogram in jobs if rule not in DATASET_RULES} == {"two"}
    assert {rule for rule, tomogram in jobs if not tomogram} == DATASET_RULES


def test_then_everything_is_there(project: Project, second_run: Done) -> None:
    assert set(combined(project)["tomogram"]) == {"one", "two", "three"}
    assert set(summary(project)["state"]) == {"finished"}
    assert project.planned() == {}
    report = project.snakemake("--report", "second.html")
    assert report.returncode == 0, report.stderr
    assert "two/report/tomogram.html" in (project.folder / "second.html").read_text()


@pytest.mark.parametrize("name", sorted(CENTRES))
def test_planted_balls_come_out_where_they_were_put(
    project: Project, second_run: Done, name: str
) -> None:
    table = pd.read_csv(project.file(name, "particles.csv"))
    found = table[table["status"] == "accepted"]
    places = found[["z_vox", "y_vox", "x_vox"]].to_numpy()
    assert len(places) == len(CENTRES[name])
    for centre in CENTRES[name]:
        assert np.linalg.norm(places - centre, axis=1).min() < 0.5
    assert set(found["class"]) == {"ball"}


def test_truth_is_scored_where_there_is_one(project: Project, second_run: Done) -> None:
    scores = json.loads(project.file("one", "evaluation.json").read_text())["one_to_one"]
    assert (scores["precision"], scores["recall"]) == (1.0, 1.0)
    assert not project.file("two", "evaluation.json").exists()


def test_intermediate_files_are_gone_and_costs_are_known(
    project: Project, second_run: Done
) -> None:
    for pattern in ("*.h5", "probability.mrc", "mask.mrc"):
        assert not list(project.file().rglob(pattern))
    assert len(list(project.file().rglob("prepared.mrc"))) == 3  # kept by default
    lines = project.file("one", "benchmarks", "classify.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    assert record["s"] > 0
    assert record["rule_name"] == "classify"


CHANGES: dict[str, tuple[dict[str, object], set[str], set[str]]] = {
    "export": ({"export": {"min_score": 0.5}}, {"export", "combine"}, {"vote", "evaluate"}),
    "export classes": (
        {"export": {"classes": ["ball"]}}, {"export", "combine"}, {*STAGES} - {"export"},
    ),
    "export dialects": (
        {"export": {"dialects": list(DIALECTS)}}, {"export", "combine"}, {*STAGES} - {"export"},
    ),
    "vote": ({"vote": {"min_vote_share": 0.1}}, {"vote", "extract", "evaluate"}, {"segment"}),
    "report": ({"report": {"slices": 3}}, {"report_tomogram"}, {"vote", "prepare"}),
    "evaluate": ({"evaluate": {"beta": 2.0}}, {"evaluate"}, {"vote", "prepare"}),
    "keep": ({"keep": ["prepared", "mask"]}, set(), {"vote", "segment", "prepare"}),
    "cluster": ({"cluster": {"min_size_vox": 9}}, {"segment", "cluster", "vote"}, {"prepare"}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_changed_setting_reruns_only_what_reads_it(
    project: Project, second_run: Done, name: str
) -> None:
    sections, affected, untouched = CHANGES[name]
    project.configure(**sections)
    try:
        planned = set(project.planned())
    finally:
        project.configure()
    assert affected <= planned
    assert not untouched & planned


def test_no_file_is_left_half_written(project: Project, second_run: Done) -> None:
    assert not [p for p in project.file().rglob(".*") if p.name != ".snakemake_timestamp"]
    assert (
        Path(project.file("one", "logs", "vote.log"))
        .read_text()
        .splitlines()[-1]
        .endswith("finished vote")
    )
