"""SLURM's controller and its accounting go away for a while; a run waits for them and goes on.

First their machine restarts: questions are refused at once. Then the controller hangs: it takes a
question and does not answer in time, but does later what was asked. Each time a job ends
meanwhile, and another becomes ready to be submitted.
"""

from __future__ import annotations

import json
import time

import pytest
from cluster import Job
from facility import Driver, Facility, kind_of, numbers, set_resources, tomograms_of

# sbatch and squeue give up after ten seconds; a job has three attempts.
RESTART_S, HANGING_S = 40.0, 25.0
ENDS, FOLLOWS, LATER_ENDS, LATER_FOLLOWS = "ends", "follows", "later-ends", "later-follows"
TOMOGRAMS = (ENDS, FOLLOWS, LATER_ENDS, LATER_FOLLOWS)


@pytest.fixture(scope="module")
def driver(facility: Facility) -> Driver:
    facility.make(TOMOGRAMS)
    first, second = facility.hold("first"), facility.hold("second")
    facility.hinder(
        {"stage": "segment", "tomogram": ENDS, "hold": str(first)},
        {"stage": "prepare", "tomogram": FOLLOWS, "hold": str(first)},
        {"stage": "segment", "tomogram": LATER_ENDS, "hold": str(second)},
        {"stage": "prepare", "tomogram": LATER_FOLLOWS, "hold": str(second)},
    )
    driver = facility.start(*set_resources(bundle=1))
    for name, hold in zip(TOMOGRAMS, ("first", "first", "second", "second"), strict=True):
        facility.wait_for_held(name, hold)
    with facility.cluster.away("slurmctld", "slurmdbd"):
        first.unlink()
        time.sleep(RESTART_S)
    with facility.cluster.stalled("slurmctld", "slurmdbd"):
        second.unlink()
        time.sleep(HANGING_S)
    driver.wait()
    return driver


@pytest.fixture(scope="module")
def jobs(facility: Facility, driver: Driver) -> list[Job]:
    return facility.ended_jobs()


def test_the_run_completes(facility: Facility, driver: Driver) -> None:
    assert driver.process.returncode == 0, driver.text()
    assert {row["summary"] for row in facility.status().values()} == {"finished"}


def test_no_job_is_lost_or_done_twice(facility: Facility, driver: Driver, jobs: list[Job]) -> None:
    done = [job for job in jobs if job.state == "COMPLETED"]
    for name in TOMOGRAMS:
        for kind in ("prepare", "network", "results"):
            own = [j for j in done if kind_of(j) == kind and name in tomograms_of(j)]
            assert len(numbers(own)) == 1, (kind, name, driver.text())
    # The hanging controller may have taken a job that it seemed to refuse: that one does nothing.
    logs = facility.folder / "results" / "slurm-logs"
    for job in (job for job in jobs if job not in done):
        (log,) = logs.rglob(f"{job.id}.log")
        assert "given this job up, nothing is done" in log.read_text(), driver.text()


def test_it_costs_no_attempt(facility: Facility, jobs: list[Job]) -> None:
    for name in TOMOGRAMS:
        history = facility.project.file(name, "logs", "slurm.jsonl").read_text().splitlines()
        assert {json.loads(line)["attempt"] for line in history} == {1}, name
