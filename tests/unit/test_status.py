"""Status of a fabricated results tree, by files alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tomoline.contracts import STAGES
from tomoline.errors import InputError
from tomoline.io.jobs import FORGOTTEN, HISTORY, append, last_record
from tomoline.io.sheet import SheetRow, write_dataset, write_sheet
from tomoline.log import job_log
from tomoline.settings import DatasetSettings
from tomoline.stages.status import (
    collect_status,
    format_status,
    last_error,
    status_json,
)

LONG_AGO = 1_000_000_000.0
EXPORTS = ("relion5.star", "relion4.star", "particles.csv")


class Tree:
    """A project folder with one dataset; files get rising times, one second apart."""

    def __init__(self, root: Path, *tomograms: str, **changes: str) -> None:
        self.root = root
        self.time = LONG_AGO
        rows = [
            SheetRow(tomogram=name, path=f"/data/{name}.mrc", use="yes", verdict="ok")
            for name in tomograms
        ]
        rows = [row.model_copy(update=changes) for row in rows]
        write_dataset(root / "config/datasets/d.yaml", DatasetSettings(name="d", sheet="d.tsv"))
        write_sheet(root / "config/datasets/d.tsv", rows)

    def add(self, tomogram: str, *names: str, text: str = "") -> None:
        for name in names:
            path = self.root / "results/d" / tomogram / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            self.time += 1
            os.utime(path, (self.time, self.time))

    def log(self, tomogram: str, stage: str, error: str | None = None) -> None:
        path = self.root / f"results/d/{tomogram}/logs/{stage}.log"
        try:
            with job_log(path) as log:
                log.info("began")
                if error is not None:
                    raise InputError("file.mrc", expected="x", found=error, remedy="y")
        except InputError:
            pass
        self.time += 1
        os.utime(path, (self.time, self.time))

    def states(self, tomogram: str, *, now: float | None = None) -> dict[str, str]:
        (dataset,) = collect_status(self.root, now=now or self.time + 1e6)
        (row,) = [row for row in dataset.tomograms if row.tomogram == tomogram]
        return {name: stage.state for name, stage in row.stages.items()}

    def reason(self, tomogram: str, stage: str) -> str:
        (dataset,) = collect_status(self.root, now=self.time + 1e6)
        (row,) = [row for row in dataset.tomograms if row.tomogram == tomogram]
        return row.stages[stage].reason


def test_nothing_begun_is_to_do(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    assert set(tree.states("a").values()) == {"to do", "-"}


def test_finished_although_intermediates_have_gone(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    for stage in STAGES:
        tree.log("a", stage)
    tree.add("a", "prepared.json", "candidates.csv")
    tree.add("a", "particles.csv", text="status,score\naccepted,1\nrejected,0\naccepted,1\n")
    tree.add("a", *(f"export/{name}" for name in EXPORTS), "report/tomogram.html")
    states = tree.states("a")
    assert {states[stage] for stage in STAGES} == {"done"}
    (dataset,) = collect_status(tmp_path)
    assert dataset.tomograms[0].summary == "finished"
    assert dataset.tomograms[0].particles == 2
    assert dataset.counts == {"tomograms": 1, "finished": 1, "particles": 2}


def test_one_of_three_exports_is_not_all(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "particles.csv", "export/relion5.star")
    assert tree.states("a")["export"] == "to do"
    (tmp_path / "config/config.yaml").write_text("export: {dialects: [relion5]}\n")
    assert tree.states("a")["export"] == "done"


def test_failure_has_the_last_error_as_its_reason(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a", "b")
    tree.log("a", "prepare", error="a truncated file")
    tree.add("b", "prepared.json", "plan.json")
    states = tree.states("a")
    assert (states["prepare"], states["tile"]) == ("failed", "to do")
    assert tree.reason("a", "prepare") == (
        "InputError: file.mrc: expected x; found a truncated file. Remedy: y"
    )
    assert tree.states("b")["tile"] == "done"
    text = format_status(collect_status(tmp_path, now=tree.time + 1e6))
    assert "a: prepare failed: InputError: file.mrc" in text
    assert "2 tomograms: 1 failed, 1 to do, 0 accepted particles" in text


def test_failure_after_an_older_success_counts_and_before_it_does_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a", "b")
    tree.add("a", "particles.csv")
    tree.log("a", "merge", error="new")
    tree.log("b", "merge", error="old")
    tree.add("b", "particles.csv")
    assert tree.states("a")["merge"] == "failed"
    assert tree.states("b")["merge"] == "done"


def test_output_that_is_there_outweighs_the_log(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "candidates.csv")
    tree.log("a", "cluster", error="whatever")
    assert tree.states("a")["cluster"] == "done"


def test_shards_count_one_by_one(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "prepared.json", "plan.json", "segment/1-of-2.h5")
    assert tree.states("a")["segment"] == "to do"
    tree.log("a", "segment_2-of-2", error="out of memory")
    assert tree.states("a")["segment"] == "failed"
    assert "out of memory" in tree.reason("a", "segment")
    tree.add("a", "segment/2-of-2.h5")
    assert tree.states("a")["segment"] == "done"


def test_running_needs_a_lock_or_a_recent_log(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "prepared.json")
    tree.log("a", "tile")
    assert tree.states("a", now=tree.time + 5)["tile"] == "running"
    assert tree.states("a", now=tree.time + 1e6)["tile"] == "interrupted"
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("")
    assert tree.states("a", now=tree.time + 1e6)["tile"] == "running"


def test_evaluation_is_shown_where_there_is_truth(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a", truth="t.csv")
    tree.add("a", "particles.csv", *(f"export/{name}" for name in EXPORTS), "report/tomogram.html")
    assert tree.states("a")["evaluate"] == "to do"
    assert collect_status(tmp_path)[0].tomograms[0].summary == "to do"
    tree.add("a", "evaluation.json")
    assert tree.states("a")["evaluate"] == "done"
    assert collect_status(tmp_path)[0].tomograms[0].summary == "finished"


def test_failed_report_does_not_hide(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "particles.csv", *(f"export/{name}" for name in EXPORTS))
    tree.log("a", "report_tomogram", error="no picture")
    assert tree.states("a")["report"] == "failed"
    assert "no picture" in tree.reason("a", "report")


@pytest.mark.parametrize("changes", [{"use": "no"}, {"verdict": "refused"}])
def test_rows_that_are_not_run_say_why(tmp_path: Path, changes: dict[str, str]) -> None:
    Tree(tmp_path, "a", reason="truncated", **changes)
    (dataset,) = collect_status(tmp_path)
    assert dataset.tomograms[0].stages == {}
    assert dataset.tomograms[0].summary in ("unused", "refused")
    assert "truncated" in format_status([dataset])


def test_results_without_a_row_are_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.log("gone", "prepare")
    tree.log("a", "prepare")
    (tmp_path / "results/d/report").mkdir()
    assert collect_status(tmp_path)[0].left_over == ("gone",)


def test_a_dataset_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    Tree(tmp_path, "a")
    (tmp_path / "config/datasets/broken.yaml").write_text("name: [")
    datasets = {dataset.name: dataset for dataset in collect_status(tmp_path)}
    assert datasets["d"].problem == ""
    assert "YAML" in datasets["broken"].problem
    assert "cannot be read" in format_status(list(datasets.values()))
    with pytest.raises(InputError):
        collect_status(tmp_path, dataset="broken")
    with pytest.raises(InputError, match="there are: broken, d"):
        collect_status(tmp_path, dataset="nobody")


def test_a_job_ended_from_outside_has_failed_and_says_where_to_look(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.add("a", "prepared.json", "plan.json")
    tree.log("a", "segment")  # begun, and cut off
    history = tmp_path / "results/d/a" / HISTORY
    job = {"run": "r", "job": "77", "rules": ["segment", "merge"]}
    append(history, state="TIMEOUT", reason="it ended without an exit code", log="/x/77.log", **job)
    (dataset,) = collect_status(tmp_path)
    stage = dataset.tomograms[0].stages["segment"]
    assert stage.state == "failed"
    assert "SLURM job 77 TIMEOUT" in stage.reason
    assert "/x/77.log" in format_status([dataset])
    append(history, state=FORGOTTEN, **(job | {"job": ""}))
    (dataset,) = collect_status(tmp_path)
    assert dataset.tomograms[0].stages["segment"].state == "interrupted"


def test_a_stage_that_failed_names_its_log_and_its_job(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.log("a", "prepare", error="bad")
    history = tmp_path / "results/d/a" / HISTORY
    append(history, run="r", job="8", state="FAILED", rules=["prepare"], log="/x/8.log")
    (dataset,) = collect_status(tmp_path)
    text = format_status([dataset])
    assert "results/d/a/logs/prepare.log" in text
    assert "SLURM job 8 FAILED, log /x/8.log" in text
    (row,) = json.loads(status_json([dataset]))["datasets"][0]["tomograms"]
    assert row["job"]["job"] == "8"


def test_a_job_that_waits_is_queued_while_a_run_is_under_way(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a", "b")
    tree.add("a", "prepared.json")
    for name, state in (("a", "PENDING"), ("b", "RUNNING")):
        rules = ["tile", "segment"] if name == "a" else ["prepare"]
        append(tmp_path / "results/d" / name / HISTORY, run="r", job="9", state=state, rules=rules)
    (dataset,) = collect_status(tmp_path)
    a, b = dataset.tomograms
    assert (a.summary, a.stages["tile"].state) == ("queued", "queued")
    assert "SLURM job 9 PENDING" in a.stages["tile"].reason
    assert (b.summary, b.stages["prepare"].state) == ("running", "running")
    assert "9 RUNNING" in format_status([dataset])
    (later,) = collect_status(tmp_path, now=time.time() + 1e5)
    assert later.tomograms[0].summary == "to do"


def test_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "slurm.jsonl"
    assert last_record(path) is None
    append(path, run="r", job="1", state="RUNNING")
    with path.open("a") as handle:
        handle.write('{"job": "2", "sta')
    record = last_record(path)
    assert record is not None
    assert (record.job, record.state) == ("1", "RUNNING")


def test_no_dataset_points_to_the_next_step(tmp_path: Path) -> None:
    assert "tomoline onboard" in format_status(collect_status(tmp_path))


def test_json_holds_the_same(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a")
    tree.log("a", "prepare", error="bad")
    (dataset,) = json.loads(status_json(collect_status(tmp_path)))["datasets"]
    (row,) = dataset["tomograms"]
    assert row["summary"] == "failed"
    assert row["stages"]["prepare"]["state"] == "failed"
    assert dataset["counts"]["failed"] == 1


def test_last_error_of_long_and_odd_logs(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    stamp = "2026-01-02 03:04:05,678"
    log.write_text(
        f"{stamp} INFO    tomoline: x\n" * 5000
        + f"{stamp} ERROR   tomoline: ToolError: trimvol:\nPIP: no input\n\n"
    )
    assert last_error(log) == "ToolError: trimvol: PIP: no input"
    log.write_text(f"{stamp} ERROR   tomoline: a\n{stamp} INFO    tomoline: went on\n")
    assert last_error(log) is None
    log.write_bytes(b"\xff\xfe")
    assert last_error(log) is None
    log.write_text("")
    assert last_error(log) is None


def test_a_tomogram_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "a", "b")
    told = {"in_domain": "no", "reason": "The model cannot judge this tomogram: inverted contrast?"}
    tree.add("a", "domain.json", text=json.dumps(told))
    tree.add("b", "domain.json", text=json.dumps({"in_domain": "yes", "reason": "as usual"}))
    text = format_status(collect_status(tmp_path))
    assert "a: The model cannot judge this tomogram: inverted contrast?" in text
    assert "as usual" not in text
    rows = json.loads(status_json(collect_status(tmp_path)))["datasets"][0]["tomograms"]
    assert [row["in_domain"] for row in rows] == ["no", "yes"]
