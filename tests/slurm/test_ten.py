"""Ten tomograms in a bad week: eight finish at once, and mending the other two costs just them.

One story, told in order by module-scoped fixtures. Two files are no good (one cut short, one of a
voxel size that the model does not read), a job is cancelled, a node dies under a job, and two jobs
need more than they were given, one of memory and one of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mrcfile
import pandas as pd
import pytest
from cluster import Job
from facility import Driver, Facility, kind_of, numbers, set_resources, tomograms_of
from tiny_project import VOXEL_SIZE

TOMOGRAMS = [f"t{number:02}" for number in range(1, 11)]
SHORT, COARSE = "t03", "t07"
CANCELLED, LOST, HUNGRY, SLOW = "t02", "t05", "t06", "t09"
BAD = {SHORT, COARSE}
GOOD = sorted(set(TOMOGRAMS) - BAD)


@dataclass(frozen=True)
class FirstRun:
    """How the first run ended, and the numbers of the jobs that were disturbed."""

    driver: Driver
    cancelled: str
    lost: str
    slow: str


def set_voxel_size(path: Path, angstrom: float) -> None:
    with mrcfile.open(path, mode="r+") as file:
        file.voxel_size = angstrom


@pytest.fixture(scope="module")
def whole_file(facility: Facility) -> bytes:
    """The project, and what the file that is cut short should be."""
    project = facility.make(TOMOGRAMS)
    project.configure(prepare={"rescale": "never"})
    return (facility.folder / "tomograms" / f"{SHORT}.mrc").read_bytes()


@pytest.fixture(scope="module")
def first(facility: Facility, whole_file: bytes) -> FirstRun:
    folder = facility.folder / "tomograms"
    (folder / f"{SHORT}.mrc").write_bytes(whole_file[: len(whole_file) // 2])
    set_voxel_size(folder / f"{COARSE}.mrc", 4 * VOXEL_SIZE)
    to_cancel, to_lose, slow = (facility.hold(name) for name in ("to_cancel", "to_lose", "slow"))
    facility.hinder(
        {"stage": "prepare", "tomogram": CANCELLED, "hold": str(to_cancel)},
        {"stage": "segment", "tomogram": LOST, "hold": str(to_lose)},
        {"stage": "prepare", "tomogram": SLOW, "hold": str(slow)},
        {"stage": "prepare", "tomogram": HUNGRY, "more_memory": str(facility.folder / "memory")},
    )
    driver = facility.start(*set_resources(bundle=1))
    facility.wait_for_held(SLOW, "slow")
    timed_out = facility.wait_for_job(f"prepare: {SLOW}")
    facility.cluster.command("scontrol", "update", f"jobid={timed_out}", "timelimit=1")
    facility.wait_for_held(CANCELLED, "to_cancel")
    cancelled = facility.wait_for_job(f"prepare: {CANCELLED}")
    facility.cluster.cancel(cancelled)
    to_cancel.unlink()
    facility.wait_for_held(LOST, "to_lose")
    lost = facility.wait_for_job(f"network: {LOST}")
    node = facility.cluster.job(lost)["NodeList"]
    facility.cluster.lose_node(node)
    to_lose.unlink()
    facility.cluster.return_node(node)
    facility.cluster.wait_for_state(timed_out, "TIMEOUT")
    slow.unlink()
    driver.wait()
    return FirstRun(driver, cancelled, lost, timed_out)


@pytest.fixture(scope="module")
def first_jobs(facility: Facility, first: FirstRun) -> list[Job]:
    return facility.ended_jobs()


def summary(facility: Facility) -> pd.DataFrame:
    return pd.read_csv(facility.project.file("report", "summary.csv")).set_index("tomogram")


def states(jobs: list[Job], number: str) -> list[str]:
    return [job.state for job in jobs if job.id == number]


def of(jobs: list[Job], kind: str, tomogram: str) -> list[Job]:
    return [job for job in jobs if kind_of(job) == kind and tomogram in tomograms_of(job)]


def test_eight_finish_in_the_first_run(facility: Facility, first: FirstRun) -> None:
    assert first.driver.process.returncode != 0
    for name in GOOD:
        for file in ("export/relion5.star", "report/tomogram.html"):
            assert facility.project.file(name, file).is_file(), first.driver.text()
    found = pd.read_csv(facility.project.file("export", "csv", "particles.csv"))
    assert set(found["tomogram"]) == set(GOOD)


def test_the_report_names_the_two_and_why(facility: Facility, first: FirstRun) -> None:
    table = summary(facility)
    assert set(table.index[table["state"] == "finished"]) == set(GOOD)
    assert set(table.index[table["state"] == "failed"]) == BAD
    assert set(table.loc[sorted(BAD), "stage"]) == {"prepare"}
    assert f"tomograms/{SHORT}.mrc" in table.loc[SHORT, "reason"]
    assert "voxel size" in table.loc[COARSE, "reason"]
    page = facility.project.file("report", "summary.html").read_text()
    assert f"tomograms/{SHORT}.mrc" in page
    assert f"tomograms/{COARSE}.mrc" in page


def test_status_names_the_two_and_why(facility: Facility, first: FirstRun) -> None:
    rows = facility.status()
    assert {name for name, row in rows.items() if row["summary"] == "failed"} == BAD
    assert {name for name, row in rows.items() if row["summary"] == "finished"} == set(GOOD)
    assert f"tomograms/{SHORT}.mrc" in rows[SHORT]["stages"]["prepare"]["reason"]
    assert "voxel size" in rows[COARSE]["stages"]["prepare"]["reason"]
    for name in BAD:
        assert (
            "expected" in Path(facility.folder, rows[name]["stages"]["prepare"]["log"]).read_text()
        )


def test_status_names_the_job_that_failed_and_its_log(
    facility: Facility, first_jobs: list[Job]
) -> None:
    rows = facility.status()
    for name in BAD:
        job = rows[name]["job"]
        assert job["state"] == "FAILED"
        assert job["job"] == of(first_jobs, "prepare", name)[-1].id
        assert f"tomograms/{name}.mrc" in Path(facility.folder, job["log"]).read_text()
    said = facility.project.run("tomoline", "status", "--dataset", "tiny").stdout
    assert all(f"SLURM job {rows[name]['job']['job']} FAILED" in said for name in BAD)


def test_a_cancelled_job_is_submitted_again(first: FirstRun, first_jobs: list[Job]) -> None:
    assert states(first_jobs, first.cancelled) == ["CANCELLED"]
    again = [j for j in of(first_jobs, "prepare", CANCELLED) if j.id != first.cancelled]
    assert [job.state for job in again] == ["COMPLETED"]


def test_a_job_on_a_lost_node_runs_again(first: FirstRun, first_jobs: list[Job]) -> None:
    assert states(first_jobs, first.lost)[0] == "NODE_FAIL"
    assert [job.state for job in of(first_jobs, "network", LOST)][-1] == "COMPLETED"


def test_a_job_that_needs_more_memory_gets_it_at_its_next_attempt(
    first: FirstRun, first_jobs: list[Job]
) -> None:
    tries = of(first_jobs, "prepare", HUNGRY)
    assert tries[0].state in {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}
    assert tries[-1].state == "COMPLETED"
    assert tries[-1].memory_mb > tries[0].memory_mb


def test_a_job_that_ran_out_of_time_is_submitted_again(
    first: FirstRun, first_jobs: list[Job]
) -> None:
    assert states(first_jobs, first.slow) == ["TIMEOUT"]
    assert [job.state for job in of(first_jobs, "prepare", SLOW)] == ["TIMEOUT", "COMPLETED"]


def test_what_was_not_disturbed_was_submitted_once(first_jobs: list[Job]) -> None:
    for name in sorted(set(GOOD) - {CANCELLED, LOST, HUNGRY, SLOW}):
        for kind in ("prepare", "network"):
            assert len(numbers(of(first_jobs, kind, name))) == 1, (name, kind)
        assert len({job.id for job in first_jobs if name in tomograms_of(job)}) <= 3


@pytest.fixture(scope="module")
def second(facility: Facility, first_jobs: list[Job], whole_file: bytes) -> Driver:
    before = {name: times(facility, name) for name in GOOD}
    (facility.folder / "tomograms" / f"{SHORT}.mrc").write_bytes(whole_file)
    set_voxel_size(facility.folder / "tomograms" / f"{COARSE}.mrc", VOXEL_SIZE)
    driver = facility.run(*set_resources(bundle=1))
    assert {name: times(facility, name) for name in GOOD} == before
    return driver


def times(facility: Facility, tomogram: str) -> dict[str, int]:
    folder = facility.project.file(tomogram)
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_second_run_submits_jobs_for_the_two_only(
    facility: Facility, second: Driver, first_jobs: list[Job]
) -> None:
    assert second.process.returncode == 0, second.text()
    new = [job for job in facility.ended_jobs() if job.id not in numbers(first_jobs)]
    assert set().union(*map(tomograms_of, new)) == BAD
    assert {job.state for job in new} == {"COMPLETED"}
    assert len(numbers(new)) <= 3 * len(BAD)


def test_then_all_ten_are_there(facility: Facility, second: Driver) -> None:
    assert set(summary(facility)["state"]) == {"finished"}
    assert {row["summary"] for row in facility.status().values()} == {"finished"}
    assert facility.project.planned() == {}
