"""SLURM sends jobs back to its queue: on request, and preempted by those of a better partition.

Two runs side by side on the preemptible partition: a tomogram's, and a training, which goes on
from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from cluster import GPU_NODES, GPUS_PER_NODE, Cluster
from facility import Driver, Facility
from tiny_project import ROOT

LOW = "gpu_low"
TRAINING = {
    "name": "small", "task": "joint", "classes": ["1bxn", "3qm1"], "shape_zyx": [24, 40, 40],
    "shape": {"depth": 2, "width": 4, "max_dilation": 2}, "crop_vox": 16, "steps_per_epoch": 3,
    "volumes_per_epoch": 1, "validation_volumes": 1, "batch_size": 2, "max_epochs": 4,
    "box_vox": 16, "device": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Preempted:
    """Both runs after their end, and the numbers of the jobs that were sent back."""

    picking: Driver
    training: Driver
    picking_job: str
    training_job: str


def site_profile(facility: Facility) -> str:
    """The profile of a site whose GPUs are all in a preemptible partition."""
    done = facility.project.run("tomoline", "init-profile", "--gpu-partition", LOW)
    assert done.returncode == 0, done.stderr
    return "slurm"


@pytest.fixture(scope="module")
def school(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """A project that trains."""
    school = Facility(cluster, tmp_path_factory.mktemp("training"))
    (school.folder / "resources").symlink_to(ROOT / "resources")
    school.project.configure(train=TRAINING)
    yield school
    school.end()


@pytest.fixture(scope="module")
def preempted(facility: Facility, school: Facility) -> Preempted:
    facility.make(["one"])
    hold = facility.hold()
    facility.hinder({"stage": "segment", "tomogram": "one", "hold": str(hold)})
    pause = school.hold("pause")
    school.hinder({"stage": "train", "at": "epoch 1 of", "hold": str(pause)})
    picking = facility.start(profile=site_profile(facility))
    training = school.start("train", profile=site_profile(school))
    facility.wait_for_held("one")
    picking_job = facility.wait_for_job("network")
    facility.cluster.requeue(picking_job)  # on request
    facility.cluster.wait_for_state(picking_job, "RUNNING")
    school.wait_for_held("train", "pause")
    training_job = school.wait_for_job("train")
    blocker = block(facility.cluster, facility.folder)
    for number in (picking_job, training_job):
        facility.cluster.wait_for_state(number, "PENDING")
    hold.unlink()
    pause.unlink()
    facility.cluster.cancel(blocker)
    picking.wait()
    training.wait()
    return Preempted(picking, training, picking_job, training_job)


def block(cluster: Cluster, folder: Path) -> str:
    """A job of the better partition that takes all GPUs; its number, once it runs."""
    number = cluster.command(
        "sbatch", "--parsable", "--partition=gpu", f"--nodes={len(GPU_NODES)}",
        f"--gres=gpu:{GPUS_PER_NODE}", "--mem=100", "--comment=blocker: -", f"--chdir={folder}",
        "--output=/dev/null", "--wrap=sleep 300",
    ).strip()  # fmt: skip
    cluster.wait_for_state(number, "RUNNING")
    return number


def test_the_run_ends_well_with_the_same_job(facility: Facility, preempted: Preempted) -> None:
    assert preempted.picking.process.returncode == 0, preempted.picking.text()
    rows = [job for job in facility.ended_jobs() if job.id == preempted.picking_job]
    assert [job.state for job in rows] == ["REQUEUED", "PREEMPTED", "COMPLETED"]
    assert {job.partition for job in rows} == {LOW}
    assert len(facility.job_of("one", "network")) == len(rows)  # no other took its place
    found = pd.read_csv(facility.project.file("one", "particles.csv"))
    assert (found["status"] == "accepted").sum() == 1


def test_the_training_ends_well_with_the_same_job(school: Facility, preempted: Preempted) -> None:
    assert preempted.training.process.returncode == 0, preempted.training.text()
    rows = [job for job in school.ended_jobs() if job.id == preempted.training_job]
    assert [job.state for job in rows] == ["PREEMPTED", "COMPLETED"]
    assert len({job.id for job in school.jobs()}) == 1


def test_the_training_goes_on_from_its_checkpoint(school: Facility, preempted: Preempted) -> None:
    folder = school.folder / "results" / "models" / "small"
    log = (folder / "logs" / "train.log").read_text()
    assert "going on after epoch 1" in log
    assert "epoch 1 of 4" not in log
    assert len((folder / "curves.jsonl").read_text().splitlines()) == TRAINING["max_epochs"]
    assert (school.folder / "results/models/small-localizer/weights.safetensors").is_file()
