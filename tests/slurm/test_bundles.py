"""Small tomograms share submissions, and still succeed and fail each on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Job
from facility import Driver, Facility, kind_of, numbers, tomograms_of
from tiny_project import make_project

TOMOGRAMS = [f"b{number:02}" for number in range(1, 13)]
BAD = "b04"
GOOD = [name for name in TOMOGRAMS if name != BAD]
# Those that are also run without a cluster: the same files, as their numbers among all say.
BOTH = TOMOGRAMS[:2]


@pytest.fixture(scope="module")
def whole_file(facility: Facility) -> bytes:
    facility.make(TOMOGRAMS)
    return (facility.folder / "tomograms" / f"{BAD}.mrc").read_bytes()


@pytest.fixture(scope="module")
def first(facility: Facility, whole_file: bytes) -> Driver:
    bad = facility.folder / "tomograms" / f"{BAD}.mrc"
    bad.write_bytes(whole_file[: len(whole_file) // 2])
    return facility.run()


@pytest.fixture(scope="module")
def first_jobs(facility: Facility, first: Driver) -> list[Job]:
    return facility.ended_jobs()


@pytest.fixture(scope="module")
def second(facility: Facility, first_jobs: list[Job], whole_file: bytes) -> Driver:
    (facility.folder / "tomograms" / f"{BAD}.mrc").write_bytes(whole_file)
    return facility.run()


def test_there_are_fewer_submissions_than_tomograms(first_jobs: list[Job]) -> None:
    assert len(numbers(first_jobs)) < len(TOMOGRAMS)
    for kind in ("prepare", "network", "results"):
        assert any(len(tomograms_of(j)) > 1 for j in first_jobs if kind_of(j) == kind), kind


def test_a_bundle_of_networks_has_one_gpu(first_jobs: list[Job]) -> None:
    for job in first_jobs:
        assert job.gpus == (1 if kind_of(job) == "network" else 0)


def test_one_bad_member_fails_alone(facility: Facility, first: Driver) -> None:
    assert first.process.returncode != 0
    assert not facility.project.file(BAD, "prepared.json").exists()
    for name in GOOD:
        assert facility.project.file(name, "export", "relion5.star").is_file(), first.text()
        assert facility.project.file(name, "report", "tomogram.html").is_file()
    assert facility.status()[BAD]["summary"] == "failed"


def test_only_the_bad_member_is_tried_again(first_jobs: list[Job]) -> None:
    shared = next(job for job in first_jobs if BAD in tomograms_of(job))
    again = [j for j in first_jobs if BAD in tomograms_of(j) and j.id != shared.id]
    assert len(tomograms_of(shared)) > 1
    assert again
    assert all(tomograms_of(job) == {BAD} for job in again)
    for name in GOOD:
        prepared = [j for j in first_jobs if kind_of(j) == "prepare" and name in tomograms_of(j)]
        assert len(numbers(prepared)) == 1, name


def test_the_next_run_submits_only_what_failed(
    facility: Facility, second: Driver, first_jobs: list[Job]
) -> None:
    assert second.process.returncode == 0, second.text()
    new = [job for job in facility.ended_jobs() if job.id not in numbers(first_jobs)]
    assert set().union(*map(tomograms_of, new)) == {BAD}


def test_what_a_bundle_writes_is_what_a_local_run_writes(
    facility: Facility, first: Driver, tmp_path: Path
) -> None:
    local = make_project(tmp_path / "local", {name: [(20, 24, 28)] for name in BOTH})
    done = local.snakemake()
    assert done.returncode == 0, done.stderr
    for name in BOTH:
        for file in ("export/relion5.star", "export/relion4.star", "particles.csv"):
            own = facility.project.file(name, file).read_bytes()
            assert own == local.file(name, file).read_bytes(), (name, file)
