"""A large tomogram's segmentation is shared between GPU jobs, one a shard."""

from __future__ import annotations

import pytest
from cluster import Job
from facility import Driver, Facility, kind_of, numbers

SHARDS = 2


@pytest.fixture(scope="module")
def run(facility: Facility) -> Driver:
    facility.make(["large"])
    facility.project.configure(tiling={"shards": SHARDS, "size_vox": 32, "halo_vox": 4})
    return facility.run()


@pytest.fixture(scope="module")
def jobs(facility: Facility, run: Driver) -> list[Job]:
    assert run.process.returncode == 0, run.text()
    return facility.ended_jobs()


def test_each_shard_is_a_job_with_a_gpu_of_its_own(jobs: list[Job]) -> None:
    shards = [job for job in jobs if kind_of(job).startswith("segment-")]
    assert {kind_of(job) for job in shards} == {f"segment-{k}-of-2" for k in (1, 2)}
    assert [(job.partition, job.gpus) for job in shards] == [("gpu", 1)] * SHARDS


def test_the_rest_takes_the_usual_jobs_and_one_for_the_plan(jobs: list[Job]) -> None:
    rest = [kind_of(job) for job in jobs if not kind_of(job).startswith("segment-")]
    assert sorted(rest) == ["network", "plan", "prepare", "results"]
    assert len(numbers(jobs)) == SHARDS + 4


def test_the_ball_is_found_once(facility: Facility, jobs: list[Job]) -> None:
    assert facility.status()["large"]["particles"] == 1
