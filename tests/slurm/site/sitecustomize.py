"""Hindrances for the stages of a test project, loaded by Python at its start (PYTHONPATH).

A real tomogram keeps a job busy for minutes; those of the tests take no time, so that a test could
never find a job at work. The file named by TOMOLINE_TEST_HINDRANCES lists stages that wait at their
start or use more memory, as JSON: [{"stage", "tomogram", "hold", "memory_mb"}]. Where the file
`hold` exists the stage says so in `<hold>.<tomogram>` and waits until it has gone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_S = 300.0


def hinder(stage: str, outputs: dict[str, str]) -> None:
    """Wait and allocate as the list says for this stage of this tomogram."""
    parts = {part for path in outputs.values() for part in Path(str(path)).parts}
    kept = []
    for entry in json.loads(Path(os.environ["TOMOLINE_TEST_HINDRANCES"]).read_text()):
        name = entry.get("tomogram", "")
        if entry["stage"] != stage or (name and name not in parts):
            continue
        if megabytes := entry.get("memory_mb"):
            kept.append(b"\1" * (int(megabytes) << 20))
            time.sleep(8.0)  # SLURM looks every two seconds
        hold = Path(entry["hold"]) if "hold" in entry else None
        end = time.monotonic() + LIMIT_S
        if hold is not None and hold.exists():
            hold.with_name(f"{hold.name}.{name or stage}").touch()
            while hold.exists() and time.monotonic() < end:
                time.sleep(0.2)


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
