"""What a job may take, with stand-ins for the GPU's tool and SLURM's variables."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tomoline.io.warm_folder import VARIABLE
from tomoline.stages import memory
from tomoline.stages.memory import SHARE_VARIABLE, available


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that says 1000 MiB of the GPU asked for by number 0, 500 of another; 9000 in total."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *total*) echo 9000;; *--id=1*) echo 500;; '
        "*) echo 1000; echo 9;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("gpu")
def test_the_gpu_that_the_job_sees_counts() -> None:
    assert available(environment={}).bytes == 500 * 2**20  # half is for driver and torch
    assert available(environment={}).on_gpu
    assert not available(environment={}, device="cpu").on_gpu
    assert available(environment={"CUDA_VISIBLE_DEVICES": "1,0"}).bytes == 250 * 2**20
    shared = {"CUDA_VISIBLE_DEVICES": "0", SHARE_VARIABLE: "4"}
    assert available(environment=shared).bytes == 125 * 2**20


@pytest.mark.usefixtures("gpu")
def test_a_warm_server_has_the_gpu_to_itself() -> None:
    shared = {"CUDA_VISIBLE_DEVICES": "0", SHARE_VARIABLE: "4"}
    assert available(environment={**shared, VARIABLE: "/tmp/x"}).bytes == 9000 * 2**20 - 2e9
    assert available(environment={**shared, VARIABLE: ""}).bytes == 125 * 2**20
    host = {**shared, VARIABLE: "/tmp/x", "SLURM_MEM_PER_NODE": "400"}
    assert available(environment=host, device="cpu").bytes == 100e6


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("hidden", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}])
def test_a_hidden_gpu_does_not(hidden: dict[str, str]) -> None:
    host = {**hidden, "SLURM_MEM_PER_NODE": "300"}
    assert available(environment=host).bytes == 300e6
    assert available(device="cpu", environment={"SLURM_MEM_PER_NODE": "300"}).bytes == 300e6


def test_the_allocation_bounds_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert available(environment={}).bytes <= psutil.virtual_memory().total
    given = {"SLURM_MEM_PER_NODE": "1000", SHARE_VARIABLE: "4"}
    assert available(environment=given).bytes == 250e6


def test_memory_asked_for_by_the_processor_counts():
    given = {"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}
    assert available(device="cpu", environment=given).bytes == 300e6


@pytest.mark.parametrize(
    ("line", "top"),
    [
        ("0::/slurm/job_7/step_batch", "memory.max"),
        ("9:memory:/slurm/job_7", "memory.limit_in_bytes"),
    ],
)
def test_the_limit_of_a_group_above_counts(tmp_path, monkeypatch, line, top):
    """As in a SLURM job, whose control group lies below those that all processes see."""
    (tmp_path / "slurm" / "job_7" / "step_batch").mkdir(parents=True)
    (tmp_path / "slurm" / "job_7" / top).write_text("250000000\n")
    (tmp_path / "slurm" / top).write_text("max\n")
    (tmp_path / "own").write_text(f"4:cpu:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(
        memory, "_CGROUPS", (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    )
    assert available(device="cpu", environment={}).bytes == 250e6
