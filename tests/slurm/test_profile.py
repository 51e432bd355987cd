"""`tomoline init-profile` asks the real sinfo."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from facility import SHIPPED, Facility


@pytest.fixture(scope="module")
def said(facility: Facility) -> str:
    facility.make(["one"])
    done = facility.project.run("tomoline", "init-profile")
    assert done.returncode == 0, done.stderr
    return done.stdout


def profile(folder: Path) -> dict[str, object]:
    read: dict[str, object] = yaml.safe_load((folder / "config.yaml").read_text())
    return read


def test_it_lists_what_sinfo_says(said: str, cluster: Cluster) -> None:
    listed = cluster.command("sinfo", "--noheader", "--format=%R").split()
    assert sorted(listed) == ["cpu", "gpu", "gpu_low"]
    assert all(name in said.split() for name in listed)


def test_it_takes_the_partitions_that_are_meant_for_work(facility: Facility, said: str) -> None:
    # The shipped profile names its partitions as this cluster does, and a preemptible one is not
    # taken unasked, so the two say the same.
    assert profile(facility.folder / "slurm") == profile(Path(SHIPPED))


def test_sbatch_takes_what_the_profile_asks_for(facility: Facility, said: str) -> None:
    written = profile(facility.folder / "slurm")
    rules = {"default": written["default-resources"], **written["set-resources"]}  # type: ignore[dict-item]
    for name, resources in rules.items():
        gpus = [f"--gres=gpu:{resources['gpu']}"] if resources.get("gpu") else []
        facility.cluster.command(
            "sbatch", "--test-only", f"--partition={resources.get('slurm_partition', 'cpu')}",
            f"--time={resources.get('runtime', 30)}", *gpus, "--wrap=true", f"--comment={name}",
        )  # fmt: skip
