"""SLURM's controller and its accounting go away for a while; a run waits for them and goes on.

While they are away one tomogram's job ends and another's becomes ready to be submitted.
"""

from __future__ import annotations

import time

import pytest
from cluster import Job
from facility import Driver, Facility, kind_of, numbers, set_resources, tomograms_of

AWAY_S = 20.0
ENDS, FOLLOWS, STAYS = "ends", "follows", "stays"
TOMOGRAMS = (ENDS, FOLLOWS, STAYS)


@pytest.fixture(scope="module")
def driver(facility: Facility) -> Driver:
    """Restarted daemons: questions are refused at once."""
    facility.make(TOMOGRAMS)
    meanwhile, after = facility.hold("meanwhile"), facility.hold("after")
    facility.hinder(
        {"stage": "segment", "tomogram": ENDS, "hold": str(meanwhile)},
        {"stage": "prepare", "tomogram": FOLLOWS, "hold": str(meanwhile)},
        {"stage": "segment", "tomogram": STAYS, "hold": str(after)},
    )
    driver = facility.start(*set_resources(bundle=1))
    facility.wait_for_held(ENDS, "meanwhile")
    facility.wait_for_held(FOLLOWS, "meanwhile")
    facility.wait_for_held(STAYS, "after")
    with facility.cluster.away("slurmctld", "slurmdbd"):
        meanwhile.unlink()
        time.sleep(AWAY_S)
    with facility.cluster.stalled("slurmctld", "slurmdbd"):
        time.sleep(AWAY_S / 2)
    after.unlink()
    driver.wait()
    return driver


@pytest.fixture(scope="module")
def jobs(facility: Facility, driver: Driver) -> list[Job]:
    return facility.ended_jobs()


def test_the_run_completes(facility: Facility, driver: Driver) -> None:
    assert driver.process.returncode == 0, driver.text()
    assert {row["summary"] for row in facility.status().values()} == {"finished"}


def test_no_job_is_lost_or_done_twice(driver: Driver, jobs: list[Job]) -> None:
    assert {job.state for job in jobs} == {"COMPLETED"}, driver.text()
    for name in TOMOGRAMS:
        for kind in ("prepare", "network", "results"):
            own = [j for j in jobs if kind_of(j) == kind and name in tomograms_of(j)]
            assert len(numbers(own)) == 1, (kind, name)
