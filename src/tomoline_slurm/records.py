"""What SLURM did with each tomogram's jobs, kept in files, where `tomoline status` reads it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoline.errors import TomolineError
from tomoline.io.atomic import write_json
from tomoline.io.jobs import HISTORY, append
from tomoline.log import get_logger

log = get_logger(__name__)

FOLDER = Path(".snakemake") / "tomoline"
QUEUE = FOLDER / "queue.json"


@dataclass(frozen=True)
class Task:
    """What a job of the workflow is about: its rules, and the tomogram where it has one."""

    name: str
    rules: tuple[str, ...]
    dataset: str = ""
    tomogram: str = ""
    attempt: int = 1

    @property
    def label(self) -> str:
        """A word for logs and comments; it holds no separator of paths."""
        words = (self.name, self.dataset, self.tomogram)
        return "_".join(word.replace("/", "_") for word in words if word)

    @property
    def history(self) -> Path:
        """The file that holds what became of its jobs."""
        return Path("results", self.dataset, self.tomogram) / HISTORY


def note(task: Task, *, run: str, job: str, state: str, **more: Any) -> None:
    """Append one line; a full disk here must not end a run that is going well."""
    try:
        append(
            task.history, run=run, job=job, state=state, rules=task.rules, task=task.name,
            attempt=task.attempt, **more,
        )  # fmt: skip
    except OSError as error:
        log.warning("the state of SLURM job %s could not be noted: %s", job, error)


def note_queue(run: str, states: Mapping[str, Mapping[str, str]]) -> None:
    """Replace the picture of the queue: the state of every job that has not ended."""
    try:
        write_json(QUEUE, {"time": time.time(), "run": run, "jobs": dict(states)})
    except (OSError, TomolineError) as error:
        log.warning("the state of the queue could not be noted: %s", error)
