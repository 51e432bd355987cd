"""A method's response to one tomogram of a benchmark: what takes the time and is not tuned."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoline.io.atomic import write_json
from tomoline.log import get_logger
from tomoline.processor import cpu_has_bfloat16
from tomoline.settings import BenchmarkMethod, BenchmarkTomogram
from tomoline.stages.benchmark import clocked, method_of, scene_of

SETTINGS = BenchmarkMethod
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: BenchmarkMethod,
    tomogram: Mapping[str, Any],
    work: str,
    threads: int = 1,
) -> None:
    """Run the method.

    Inputs `volume`, `transform` (of the prepare stage) and `densities` (folder). Outputs `response`
    (HDF5) and `cost` (JSON: seconds by the wall clock and of processors, and the machine). What an
    ended job has left in `work` is used again.
    """
    scene = scene_of(
        inputs, BenchmarkTomogram.model_validate(tomogram), work=work, threads=threads
    )  # fmt: skip
    method = method_of(settings, densities=Path(inputs["densities"]))
    with clocked() as cost:
        method.respond(scene, Path(outputs["response"]))
    write_json(outputs["cost"], cost | {"threads": threads, "machine": machine()})
    log.info("%g s by the clock, %g s of processors", cost["wall_s"], cost["processor_s"])


def machine() -> str:
    """The processor in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [n for n in info.read_text().splitlines() if n.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    low = ", bfloat16" if cpu_has_bfloat16() else ""
    return f"{model}, {os.cpu_count()} processors{low}"
