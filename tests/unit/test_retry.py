"""`tomoline retry`: what it removes, what it leaves alone, and that Snakemake agrees."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_project import CENTRES, Project, make_project

from tomoline import cli
from tomoline.errors import InputError
from tomoline.io.sheet import SheetRow, write_dataset, write_sheet
from tomoline.log import job_log
from tomoline.settings import DatasetSettings
from tomoline.stages.retry import MADE, Selection, following, retry
from tomoline.stages.status import COLUMNS, collect_status

# What is left of a finished tomogram: the intermediate files have gone.
KEPT = (
    "prepared.mrc", "prepared.json", "middle.png", "plan.json", "candidates.csv", "domain.json",
    "particles.csv",
    "segmentation.mrc.gz", "export/relion5.star", "export/relion4.star", "export/particles.csv",
    "report/tomogram.html", "report/slices.png",
)  # fmt: skip
LOGGED = (
    "prepare", "tile", "segment_1-of-1", "merge", "cluster", "extract", "classify", "vote",
    "export", "report_tomogram",
)  # fmt: skip


def dataset(root: Path, name: str, *tomograms: str, **changes: str) -> None:
    rows = [SheetRow(tomogram=t, path=f"/d/{t}.mrc", use="yes", verdict="ok") for t in tomograms]
    folder = root / "config/datasets"
    write_dataset(folder / f"{name}.yaml", DatasetSettings(name=name, sheet=f"{name}.tsv"))
    write_sheet(folder / f"{name}.tsv", [row.model_copy(update=changes) for row in rows])


def finished(root: Path, tomogram: str, name: str = "d") -> Path:
    folder = root / "results" / name / tomogram
    for stage in LOGGED:
        with job_log(folder / "logs" / f"{stage}.log"):
            pass
        os.utime(folder / "logs" / f"{stage}.log", (1e9, 1e9))
        (folder / "benchmarks").mkdir(exist_ok=True)
        (folder / f"benchmarks/{stage}.jsonl").write_text("{}\n")
    for file in KEPT:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("status\n")
    (folder / "logs/slurm.jsonl").write_text('{"job": 7}\n')
    return folder


def failing(folder: Path, stage: str) -> None:
    with pytest.raises(InputError), job_log(folder / "logs" / f"{stage}.log"):
        raise InputError("x.mrc", expected="a", found="b", remedy="c")


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def states(root: Path, tomogram: str) -> dict[str, str]:
    (row,) = [r for d in collect_status(root) for r in d.tomograms if r.tomogram == tomogram]
    return {name: stage.state for name, stage in row.stages.items()}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A dataset of two finished tomograms."""
    dataset(tmp_path, "d", "TS_01", "TS_02")
    for name in ("TS_01", "TS_02"):
        finished(tmp_path, name)
    return tmp_path


def test_a_stage_is_followed_by_what_reads_it_and_nothing_else() -> None:
    assert following("export") == ("export",)
    assert following("evaluate") == ("evaluate", "report")
    assert following("vote") == ("vote", "export", "evaluate", "report")
    assert following("prepare") == COLUMNS


def test_from_vote_leaves_what_came_before_and_the_other_tomogram(two: Path) -> None:
    other = files(two / "results/d/TS_02")
    (done,) = retry(Selection(names=("TS_01",), stage="vote"), project=two)
    left = files(two / "results/d/TS_01")
    for name in ("vote", "export", "report"):
        assert not left & set(MADE[name])
        assert not [
            file for file in left if file.startswith((f"logs/{name}", f"benchmarks/{name}"))
        ]
    assert {"prepared.mrc", "candidates.csv", "plan.json", "logs/cluster.log"} <= left
    assert "logs/slurm.jsonl" in left
    assert files(two / "results/d/TS_02") == other
    assert not (two / "results/d/TS_01/export").exists()
    # vote reads classes.h5, classify subtomograms.h5: both were intermediate
    assert done.again == ("extract", "classify")
    assert done.missing == ("subtomograms.h5", "classes.h5")
    shown = states(two, "TS_01")
    assert {shown[name] for name in ("extract", "classify", "vote", "export")} == {"to do"}
    assert {shown[name] for name in ("prepare", "tile", "segment", "cluster")} == {"done"}


def test_export_is_forgotten_alone(two: Path) -> None:
    (two / "results/d/TS_01/export/my_notes.txt").write_text("mine")
    (done,) = retry(Selection(names=("TS_01",), stage="export"), project=two)
    assert (done.stages, done.again) == (("export",), ())
    left = files(two / "results/d/TS_01")
    assert {"export/my_notes.txt", "report/tomogram.html", "particles.csv"} <= left
    assert "export/relion5.star" not in left


def test_a_missing_prepared_volume_means_all_is_done_again(two: Path) -> None:
    (two / "results/d/TS_01/prepared.mrc").unlink()
    (done,) = retry(Selection(names=("TS_01",), stage="report"), project=two)
    assert done.stages == ("report",)
    assert set(done.again) == set(COLUMNS) - {"report", "evaluate"}
    assert done.missing[0] == "prepared.mrc"
    assert "particles.csv" in files(two / "results/d/TS_01")  # only what was asked for is removed


def test_default_is_the_stage_that_failed(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two / "results/d/TS_02"
    for name in ("classify", "vote", "export", "report"):
        for file in MADE[name]:
            (folder / file).unlink(missing_ok=True)
    failing(folder, "classify")
    assert states(two, "TS_02")["classify"] == "failed"
    assert cli.main(["retry", "--failed", "--project", str(two)]) == 0
    text = capsys.readouterr().out
    assert "d/TS_02: forgotten from classify on (classify, vote, export, report)" in text
    assert "TS_01" not in text
    assert "also done again: extract, because subtomograms.h5" in text
    assert "snakemake --cores all" in text
    assert states(two, "TS_02")["classify"] == "to do"
    assert cli.main(["retry", "--failed", "--project", str(two)]) == 0
    assert "No tomogram has failed" in capsys.readouterr().out


def test_a_finished_one_needs_a_stage_named(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(two)
    assert cli.main(["retry", "TS_*", "--project", str(two)]) == 0
    assert "nothing to forget: it is finished; name a stage with --from" in capsys.readouterr().out
    assert files(two) == before


def test_dry_run_removes_nothing(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(two)
    arguments = ["retry", "*_0[1]", "--from", "cluster", "--dry-run", "--project", str(two)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "d/TS_01: would be forgotten from cluster on" in text
    assert "TS_02" not in text
    assert "candidates.csv" in text
    assert files(two) == before


def test_partial_files_of_killed_jobs_go_too(two: Path) -> None:
    partial = two / "results/d/TS_01/.candidates.csv.part123.csv"
    partial.write_text("half")
    retry(Selection(names=("TS_01",), stage="cluster"), project=two)
    assert not partial.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TS_03"], r"the nearest are: TS_0[12], TS_0[12]\. Remedy"),
        (["zzz*"], "there are: TS_01, TS_02"),
        (["TS_01", "--from", "clusters"], "expected a stage: prepare, tile, segment"),
        (["TS_01", "--dataset", "e"], "there are: d"),
        (["../TS_02"], "none that is called or matches so"),
        ([], "--failed"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    two: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    before = files(two)
    assert cli.main(["retry", *arguments, "--project", str(two)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert files(two) == before


def test_a_name_of_two_datasets_wants_the_dataset(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(two, "e", "TS_01")
    finished(two, "TS_01", "e")
    arguments = ["retry", "TS_01", "--from", "vote", "--project", str(two)]
    assert cli.main(arguments) == 2
    assert "in the datasets d, e. Remedy: say which with --dataset" in capsys.readouterr().err
    assert cli.main([*arguments, "--dataset", "e"]) == 0
    assert (two / "results/d/TS_01/particles.csv").exists()
    assert not (two / "results/e/TS_01/particles.csv").exists()


def test_nothing_happens_while_a_run_holds_the_lock(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two / ".snakemake/locks").mkdir(parents=True)
    (two / ".snakemake/locks/0.input.lock").write_text("")
    before = files(two)
    arguments = ["retry", "TS_01", "--from", "vote", "--project", str(two)]
    assert cli.main(arguments) == 2
    assert "the lock of one" in capsys.readouterr().err
    assert files(two) == before
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert files(two) == before
    assert cli.main([*arguments, "--force"]) == 0
    assert files(two) < before


@pytest.mark.parametrize("linked", [".", "export", "logs"])
def test_links_out_of_the_results_are_not_followed(two: Path, linked: str) -> None:
    folder = two / "results/d/TS_01" / linked
    away = two / "elsewhere"
    shutil.move(folder, away)
    folder.symlink_to(away)
    before = files(away)
    for names in (("TS_01",), ("TS_02", "TS_01")):
        with pytest.raises(InputError, match="a link to"):
            retry(Selection(names=names, stage="prepare"), project=two)
    assert files(away) == before
    assert (two / "results/d/TS_02/particles.csv").exists()  # all is checked before any goes


def test_a_linked_results_folder_is_the_users_own_disk(two: Path) -> None:
    shutil.move(two / "results", two / "big_disk")
    (two / "results").symlink_to(two / "big_disk")
    outside = two / "given.mrc"
    outside.write_text("data")
    table = two / "results/d/TS_01/particles.csv"
    table.unlink()
    table.symlink_to(outside)
    retry(Selection(names=("TS_01",), stage="vote"), project=two)
    assert not os.path.lexists(table)
    assert outside.read_text() == "data"


def test_tomograms_that_are_not_run_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "d", "TS_01", use="no")
    folder = finished(tmp_path, "TS_01")
    before = files(folder)
    assert cli.main(["retry", "TS_01", "--from", "vote", "--project", str(tmp_path)]) == 0
    assert "its `use` is no" in capsys.readouterr().out
    assert files(folder) == before


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A real run of two tomograms, of which every file was kept."""
    project = make_project(
        tmp_path_factory.mktemp("retry"), {"one": CENTRES["two"], "two": CENTRES["two"]}
    )
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    return project


def test_the_tables_name_every_file_of_a_real_run(ran: Project) -> None:
    folder = ran.file("two")
    known = {path for names in MADE.values() for name in names for path in folder.glob(name)}
    left = {folder / name for name in files(folder)} - known
    assert {path.parent.name for path in left} == {"logs", "benchmarks"}


@pytest.mark.parametrize(("stage", "lost"), [("classify", ""), ("report", "prepared.mrc")])
def test_snakemake_does_what_was_announced(
    ran: Project, tmp_path: Path, stage: str, lost: str
) -> None:
    shutil.copytree(ran.folder / "results", tmp_path / "results")
    try:
        if lost:
            ran.file("two", lost).unlink()
        (done,) = retry(Selection(names=("two",), stage=stage), project=ran.folder)
        rules = {"report_tomogram" if n == "report" else n for n in (*done.stages, *done.again)}
        planned = ran.planned()
        assert {
            name for name in planned if name not in ("combine", "report_dataset", "all")
        } == rules
        assert set(planned.values()) == {1}  # of one tomogram only
    finally:
        shutil.rmtree(ran.folder / "results")
        shutil.copytree(tmp_path / "results", ran.folder / "results")
