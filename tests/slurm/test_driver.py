"""snakemake itself is killed while its jobs run; the same command again finishes the work.

One story of three tomograms: `one` has finished, `two` is at work and ends while nobody looks,
`three` is at work and is still so when the second driver starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from cluster import Job, wait_for
from facility import Driver, Facility, kind_of, numbers, set_resources, tomograms_of

DONE, UNSEEN, ORPHAN = "one", "two", "three"


@dataclass(frozen=True)
class Interrupted:
    """What was seen before and after the first driver was killed."""

    status: dict[str, dict[str, Any]]
    readable: str
    unseen: str
    orphan: str
    jobs: list[Job]
    times: dict[str, int]


def times(facility: Facility, tomogram: str) -> dict[str, int]:
    """When each result of a tomogram was written; logs of SLURM's grow with each run."""
    files = (path for path in facility.project.file(tomogram).rglob("*") if path.is_file())
    return {str(p): p.stat().st_mtime_ns for p in files if p.name != "slurm.jsonl"}


@pytest.fixture(scope="module")
def interrupted(facility: Facility) -> Interrupted:
    project = facility.make([DONE, UNSEEN, ORPHAN])
    hold_unseen, hold_orphan = facility.hold("hold_unseen"), facility.hold("hold_orphan")
    facility.hinder(
        {"stage": "segment", "tomogram": UNSEEN, "hold": str(hold_unseen)},
        {"stage": "segment", "tomogram": ORPHAN, "hold": str(hold_orphan)},
    )
    driver = facility.start(*set_resources(bundle=1))
    facility.wait_for_held(UNSEEN, "hold_unseen")
    facility.wait_for_held(ORPHAN, "hold_orphan")
    unseen = facility.wait_for_job(f"network: {UNSEEN}")
    orphan = facility.wait_for_job(f"network: {ORPHAN}")
    wait_for(lambda: facility.status()[DONE]["summary"] == "finished", f"{DONE} to finish", 180)
    wait_for(lambda: set(facility.cluster.queue()) == {unseen, orphan}, "the others to wait", 60)
    wait_for(lambda: running(facility) == {unseen, orphan}, "status to call them RUNNING", 60)
    status = facility.status()
    readable = project.run("tomoline", "status", "--dataset", "tiny").stdout
    seen = times(facility, DONE)
    driver.kill()
    hold_unseen.unlink()
    facility.cluster.wait_for_state(unseen, "COMPLETED")
    return Interrupted(status, readable, unseen, orphan, facility.jobs(), seen)


def running(facility: Facility) -> set[str]:
    """The SLURM jobs that `tomoline status` calls RUNNING."""
    jobs = [row["job"] for row in facility.status().values() if row["job"]]
    return {job["job"] for job in jobs if job["state"] == "RUNNING"}


@pytest.fixture(scope="module")
def second(facility: Facility, interrupted: Interrupted) -> Driver:
    driver = facility.start(*set_resources(bundle=1))
    facility.cluster.wait_for_state(interrupted.orphan, "CANCELLED")
    (facility.folder / "hold_orphan").unlink()
    driver.wait()
    return driver


@pytest.fixture(scope="module")
def new_jobs(facility: Facility, second: Driver, interrupted: Interrupted) -> list[Job]:
    return [job for job in facility.ended_jobs() if job.id not in numbers(interrupted.jobs)]


def test_status_shows_where_each_is_while_the_run_goes_on(interrupted: Interrupted) -> None:
    summaries = {name: row["summary"] for name, row in interrupted.status.items()}
    assert summaries[DONE] == "finished"
    assert summaries[UNSEEN] != "finished"
    for name, number in ((UNSEEN, interrupted.unseen), (ORPHAN, interrupted.orphan)):
        assert interrupted.status[name]["job"]["job"] == number
        assert interrupted.status[name]["stages"]["segment"]["state"] == "running"
    assert {UNSEEN, ORPHAN, "running"} <= set(interrupted.readable.split())


def test_the_same_command_completes(facility: Facility, second: Driver) -> None:
    assert second.process.returncode == 0, second.text()
    assert {row["summary"] for row in facility.status().values()} == {"finished"}
    assert facility.project.planned() == {}


def test_orphans_are_cancelled_before_their_work_is_done_again(
    facility: Facility, interrupted: Interrupted, new_jobs: list[Job]
) -> None:
    states = {job.id: job.state for job in facility.jobs()}
    assert states[interrupted.orphan] == "CANCELLED"
    end = next(job.end for job in facility.jobs() if job.id == interrupted.orphan)
    again = [j for j in new_jobs if ORPHAN in tomograms_of(j) and kind_of(j) == "network"]
    assert [job.state for job in again] == ["COMPLETED"]
    assert again[0].start >= end


def test_nothing_that_was_whole_is_computed_again(
    facility: Facility, interrupted: Interrupted, new_jobs: list[Job]
) -> None:
    assert times(facility, DONE) == interrupted.times
    submitted = {(kind_of(job), name) for job in new_jobs for name in tomograms_of(job)}
    assert submitted == {("results", UNSEEN), ("network", ORPHAN), ("results", ORPHAN)}
