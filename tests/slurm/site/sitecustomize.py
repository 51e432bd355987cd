"""Hindrances for the stages of a test project, loaded by Python at its start (PYTHONPATH).

A real tomogram keeps a job busy for minutes; those of the tests take no time, so that a test could
never find a job at work. The file named by TOMOLINE_TEST_HINDRANCES lists stages that wait at their
start or use more memory, as JSON: [{"stage", "tomogram", "hold", "at", "more_memory"}].

hold
    A file's path. While it exists the stage waits; it says so in `<hold>.<tomogram>`.
at
    Wait not at the start, but when a line of the stage's log begins with this.
more_memory
    A file's path. The stage uses, beside what it needs, as much memory as its first attempt was
    allocated, which is noted in the file: too much for that attempt, not for the next.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_S = 400.0
USING_S = 8.0  # SLURM looks every two seconds


def hinder(stage: str, outputs: dict[str, str]) -> None:
    """Do what the list says for this stage of this tomogram."""
    parts = {part for path in outputs.values() for part in Path(str(path)).parts}
    for entry in json.loads(Path(os.environ["TOMOLINE_TEST_HINDRANCES"]).read_text()):
        name = entry.get("tomogram", "")
        if entry["stage"] == stage and (not name or name in parts):
            if "more_memory" in entry:
                use_memory(Path(entry["more_memory"]))
            if "at" in entry:
                logging.getLogger("tomoline").addHandler(
                    Waiting(entry["at"], Path(entry["hold"]), name or stage)
                )
            elif "hold" in entry:
                wait(Path(entry["hold"]), name or stage)


def wait(hold: Path, name: str) -> None:
    """Wait until the file has gone."""
    end = time.monotonic() + LIMIT_S
    if hold.exists():
        hold.with_name(f"{hold.name}.{name}").touch()
    while hold.exists() and time.monotonic() < end:
        time.sleep(0.2)


class Waiting(logging.Handler):
    """Waits when a line begins with certain words."""

    def __init__(self, words: str, hold: Path, name: str) -> None:
        super().__init__()
        self.words, self.hold, self.name = words, hold, name

    def emit(self, record: logging.LogRecord) -> None:
        """Wait if this is the line."""
        if record.getMessage().startswith(self.words):
            wait(self.hold, self.name)


def use_memory(note: Path) -> None:
    """Hold as many MB as the first attempt was allocated for some seconds."""
    if not note.exists():
        note.write_text(os.environ["SLURM_MEM_PER_NODE"])
    held = b"\1" * (int(note.read_text()) << 20)
    time.sleep(USING_S)
    del held


class Finder:
    """Wraps `tomoline.stages.execute` when that package is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find the package as others do, and wrap the function once it has been executed."""
        if name != "tomoline.stages":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        run_module = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run_module(module)
            execute = module.execute

            def hindered(stage: str, **arguments: Any) -> None:
                hinder(stage, arguments["outputs"])
                execute(stage, **arguments)

            module.execute = hindered

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "TOMOLINE_TEST_HINDRANCES" in os.environ and ".snakemake/scripts" in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
