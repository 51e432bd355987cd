"""Jobs that share a submission: how they are put together, and what became of each.

A pack is a folder below `.snakemake/tomoline/packs` with `pack.json`, which the runner in the
allocation reads, and a file `<member>.rc` that it writes when a member has ended.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoline.io.atomic import write_json
from tomoline_slurm.records import FOLDER, Task

PACKS = FOLDER / "packs"
PLAN = "pack.json"
# Packs go when all their members have been reported; a driver that was killed leaves some.
OLD_S = 30 * 86400.0
# Resources that have a meaning of their own here; every other one has to be equal in a pack.
BUNDLE, PROCESSES = "bundle", "bundle_processes"
DEFAULT_PROCESSES = 4
_OWN = frozenset({BUNDLE, PROCESSES, "mem_mb", "mem_mib", "disk_mb", "disk_mib", "runtime",
                  "tmpdir", "_cores", "_nodes"})  # fmt: skip


def task_of(job: Any) -> Task:
    """Say what a job, or a group of jobs, is about."""
    members = list(job.jobs) if job.is_group() else [job]
    names = {k: v for member in members for k, v in dict(member.wildcards_dict).items()}
    return Task(
        name=_group_name(members[0]) if job.is_group() else job.rule.name,
        rules=tuple(sorted({member.rule.name for member in members})),
        dataset=str(names.get("dataset", "")),
        tomogram=str(names.get("tomogram", "")),
        attempt=int(job.attempt),
    )


def _group_name(job: Any) -> str:
    return str(job.group or job.rule.name)


def bundled(jobs: Iterable[Any]) -> Iterator[list[Any]]:
    """Put jobs together that may share a submission.

    Those of one kind, at their first attempt, with equal resources. A tomogram that failed is tried
    again by itself, with more memory. How many may go together each job's `bundle` says, of those
    that a group's rules say the smallest.
    """
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    for job in jobs:
        if limit(job) > 1 and job.attempt == 1:
            kinds.setdefault(_kind(job), []).append(job)
        else:
            yield [job]
    for alike in kinds.values():
        # The smallest tomograms allow the most companions; put together they use it.
        rest = sorted(alike, key=limit, reverse=True)
        while rest:
            count = len(rest)
            while count > limit(rest[count - 1]):
                count -= 1
            yield rest[:count]
            rest = rest[count:]


def limit(job: Any) -> int:
    """How many jobs may share this one's submission; 1 where none of its rules says it."""
    members = list(job.jobs) if job.is_group() else [job]
    said = [member.resources.get(BUNDLE) for member in members]
    return max(1, min((int(number) for number in said if number is not None), default=1))


def _kind(job: Any) -> tuple[Any, ...]:
    fixed = sorted((k, str(v)) for k, v in job.resources.items() if k not in _OWN)
    task = task_of(job)
    return (task.name, task.rules, task.dataset, job.threads, *fixed)


@dataclass(frozen=True)
class Pack:
    """Jobs of one submission, and the folder through which the runner answers."""

    folder: Path
    jobs: tuple[Any, ...]
    tasks: tuple[Task, ...]
    processes: int

    @classmethod
    def of(cls, jobs: Sequence[Any]) -> Pack:
        """A new pack; `processes` of its members run at a time."""
        wanted = int(jobs[0].resources.get(PROCESSES) or DEFAULT_PROCESSES)
        return cls(
            folder=PACKS / uuid.uuid4().hex[:16],
            jobs=tuple(jobs),
            tasks=tuple(task_of(job) for job in jobs),
            processes=max(1, min(wanted, len(jobs))),
        )

    @property
    def request(self) -> Request:
        """What the submission asks of SLURM."""
        resources = {
            k: v for k, v in self.jobs[0].resources.items() if k not in (BUNDLE, PROCESSES)
        }
        threads = int(self.jobs[0].threads)
        if len(self.jobs) > 1:
            rounds = math.ceil(len(self.jobs) / self.processes)
            resources |= {
                "mem_mb": self.processes * self._most("mem_mb"),
                # Run times have a generous fixed part, which is not needed again each round.
                "runtime": math.ceil(self._most("runtime") * (1 + rounds) / 2),
            }
            # Most of a network's group is one thread's work; a GPU's job needs few processors.
            share = max(1, threads // 2) if resources.get("gpu") else threads
            threads = self.processes * share
        return Request(resources, threads, self.tasks[0].name)

    def _most(self, name: str) -> int:
        return max(int(job.resources.get(name) or 0) for job in self.jobs)

    def save(self, commands: Sequence[str], logs: Sequence[Path]) -> None:
        """Write what the runner is to do."""
        members = [
            {"command": command, "log": str(log), "label": task.label}
            for command, log, task in zip(commands, logs, self.tasks, strict=True)
        ]
        write_json(self.folder / PLAN, {"processes": self.processes, "members": members})

    def exit_code(self, member: int) -> int | None:
        """How a member ended; None while it has not."""
        return read_exit_code(self.folder, member)

    def exit_codes(self) -> dict[int, int]:
        """How those members ended that have; the folder is listed once, whatever their number."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError:
            return {}
        ended = [int(n[:-3]) for n in names if n.endswith(".rc") and n[:-3].isdigit()]
        codes = {member: self.exit_code(member) for member in ended}
        return {member: code for member, code in codes.items() if code is not None}

    def remove(self) -> None:
        """Remove the folder. A job that SLURM starts late finds nothing to do without it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_old() -> None:
    """Remove packs that nobody has touched for a month."""
    if PACKS.is_dir():
        for folder in PACKS.iterdir():
            try:
                old = time.time() - folder.stat().st_mtime > OLD_S
            except OSError:
                continue
            if old:
                shutil.rmtree(folder, ignore_errors=True)


def read_exit_code(folder: Path, member: int) -> int | None:
    """Read a member's exit code from a pack's folder.

    None where it has not ended, or where a share cannot be read just now.
    """
    try:
        return int((folder / f"{member}.rc").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def read_plan(folder: Path) -> Mapping[str, Any]:
    """Read what `Pack.save` wrote."""
    plan: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    return plan


class Resources(dict[str, Any]):
    """Resources by key and by attribute, as the plugin reads them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Request:
    """What the plugin's functions that write the call of sbatch read of a job."""

    def __init__(self, resources: Mapping[str, Any], threads: int, name: str = "") -> None:
        self.resources = Resources(resources)
        self.threads = threads
        self.name = name
