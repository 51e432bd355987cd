"""The shipped demo by the command that the README names, beside the same run without a cluster."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from cluster import Cluster, Job
from facility import SNAKEMAKE, TIMES, Facility
from tiny_project import ROOT

# One flip instead of several, on both sides: the comparison needs the same, not the best.
SETTINGS = ("--config", "datasets=[demo]", "segment={test_time_flips: 1}",
            "classify={test_time_flips: 1}")  # fmt: skip
GPU_RULES = {"segment", "classify"}


def clone(folder: Path) -> Path:
    """The files of the repository that a run reads, as after a fresh clone."""
    folder.mkdir(exist_ok=True)
    for name in ("Snakefile", "workflow", "profiles", "config", "envs", "slurm"):
        path = ROOT / name
        if path.is_symlink():
            (folder / name).symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, folder / name, symlinks=True)
        else:
            shutil.copy2(path, folder / name)
    (folder / "resources").symlink_to(ROOT / "resources")
    return folder


@pytest.fixture(scope="module")
def facility(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Facility:
    return Facility(cluster, clone(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="module")
def local(facility: Facility) -> Path:
    """The results of the local run, which was made in the same folder: STAR files name paths."""
    driver = facility.launch([SNAKEMAKE, "--cores", "2", *SETTINGS])
    assert driver.wait() == 0, driver.text()
    return (facility.folder / "results").rename(facility.folder / "local") / "demo"


@pytest.fixture(scope="module")
def results(facility: Facility, local: Path) -> Path:
    """The results of the cluster's run."""
    driver = facility.launch([SNAKEMAKE, "--profile", "slurm", *TIMES, *SETTINGS])
    assert driver.wait() == 0, driver.text()
    return facility.folder / "results" / "demo"


@pytest.fixture(scope="module")
def jobs(facility: Facility, results: Path) -> dict[str, Job]:
    return {job.id: job for job in facility.ended_jobs()}


@pytest.fixture(scope="module")
def records(results: Path) -> list[dict[str, object]]:
    """The lines of every history of jobs, each with the folder it lies in."""
    return [
        json.loads(line) | {"of": path.parents[1].name}
        for path in results.glob("**/logs/slurm.jsonl")
        for line in path.read_text().splitlines()
    ]


def test_star_files_are_those_of_the_local_run(local: Path, results: Path) -> None:
    names = sorted(path.relative_to(local) for path in local.rglob("*.star"))
    assert Path("export/relion5/particles.star") in names
    assert Path("demo_01/export/relion5.star") in names
    assert sorted(path.relative_to(results) for path in results.rglob("*.star")) == names
    for name in names:
        assert (results / name).read_bytes() == (local / name).read_bytes(), name


def test_rules_that_use_a_gpu_get_one_and_no_others_do(
    jobs: dict[str, Job], records: list[dict[str, object]]
) -> None:
    rules: dict[str, set[str]] = defaultdict(set)
    for record in records:
        rules[str(record["job"])] |= set(record["rules"])  # type: ignore[call-overload]
    assert set(rules) == set(jobs)
    assert set().union(*rules.values()) >= GPU_RULES
    for number, job in jobs.items():
        expected = ("gpu", 1) if rules[number] & GPU_RULES else ("cpu", 0)
        assert (job.partition, job.gpus) == expected, (rules[number], job)
        assert job.state == "COMPLETED"


def test_a_tomogram_costs_at_most_three_submissions(
    jobs: dict[str, Job], records: list[dict[str, object]]
) -> None:
    for tomogram in ("demo_01", "demo_02"):
        assert len({r["job"] for r in records if r["of"] == tomogram}) <= 3
    assert len(jobs) <= 6
