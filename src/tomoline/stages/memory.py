"""How much memory a job may take: of its machine, its allocation, its GPU, its share of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

from tomoline.io.warm_folder import VARIABLE
from tomoline.log import get_logger

log = get_logger(__name__)

# Set by whoever runs several jobs side by side in one allocation.
SHARE_VARIABLE = "TOMOLINE_SHARE"
# What a GPU's driver, torch and its libraries take, at most.
SYSTEM_BYTES = 2e9
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_OWN_CGROUP = Path("/proc/self/cgroup")
_TIMEOUT_S = 20


class Available(NamedTuple):
    """Memory that a network may use, and whether it is a GPU's."""

    bytes: float
    on_gpu: bool


def available(*, device: str = "auto", environment: Mapping[str, str] = os.environ) -> Available:
    """Memory that a network may use: the GPU's where it will run on one, else the host's.

    The host's is the least of what is free, what a container allows and what SLURM gave the job.
    Both are divided by the number of jobs that share the allocation. A warm server
    (`tomoline.warm`) serves one of them at a time, and has the GPU to itself.
    """
    share = max(1, int(environment.get(SHARE_VARIABLE, "1")))
    warm = bool(environment.get(VARIABLE))
    # What is free now says nothing where the server may be computing.
    gpu = _gpu_bytes(environment, "total" if warm else "free") if device != "cpu" else None
    if gpu is not None:
        left = max(gpu - SYSTEM_BYTES, gpu / 2)
        return Available(left if warm else left / share, on_gpu=True)
    limits: list[float] = [psutil.virtual_memory().available / share]
    for path in _cgroup_files():
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text) / share)
    given = _number(environment, "SLURM_MEM_PER_NODE") or (
        _number(environment, "SLURM_MEM_PER_CPU") * _number(environment, "SLURM_CPUS_ON_NODE")
    )
    if given:
        limits.append(given * 1e6 / share)
    return Available(min(limits), on_gpu=False)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 0


def _cgroup_files() -> list[Path]:
    """Files that hold the limits of this process's control group and of those above it."""
    text = _OWN_CGROUP.read_text() if _OWN_CGROUP.is_file() else ""
    files = list(_CGROUPS)
    for line in text.splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = _CGROUPS[1] if controllers else _CGROUPS[0]
        group = PurePosixPath(place.lstrip("/"))
        files += [top.parent / above / top.name for above in (group, *group.parents)]
    return list(dict.fromkeys(files))


def _gpu_bytes(environment: Mapping[str, str], which: str) -> float | None:
    """Memory, free or total, of the first GPU that the job sees; None where it sees none."""
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    first = None if seen is None else seen.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    call = ["nvidia-smi", f"--query-gpu=memory.{which}", "--format=csv,noheader,nounits"]
    if first is not None:
        call.append(f"--id={first}")
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        return float(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
