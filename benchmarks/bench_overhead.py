"""What the workflow itself costs a tomogram, with networks that do nothing; locally and on SLURM.

    .venv/bin/python benchmarks/bench_overhead.py [--tomograms 12] [--slurm] [--output FILE]

Tomograms of 40 x 48 x 56 voxels with one ball each and networks of one layer (tests/tiny_project):
what is left is starting Python and Snakemake, reading, writing and the report. With `--slurm` the
same runs on the tests' own SLURM (tests/slurm; needs root and its packages), once with each
tomogram in submissions of its own (`bundle` 1) and once as shipped; GPU seconds are those that were
allocated, by sacct.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]

from cluster import Cluster  # noqa: E402
from facility import Facility, set_resources  # noqa: E402
from machine import machine  # noqa: E402
from tiny_project import make_project  # noqa: E402

Figures = dict[str, Any]


def local(folder: Path, names: list[str]) -> Figures:
    """One run with `--cores 2`: wall and processor time a tomogram, and the stages' own times."""
    project = make_project(folder, {name: [(20, 24, 28)] for name in names})
    before, began = os.times(), time.perf_counter()
    done = project.snakemake()
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {
        "wall_s_a_tomogram": round(wall / len(names), 2),
        "cpu_s_a_tomogram": round(cpu / len(names), 2),
        "median_stage_s": stages(project.file(), names),
    }


def stages(results: Path, names: list[str]) -> dict[str, float]:
    """Median wall time of each stage's process, from the workflow's own benchmark files."""
    found: dict[str, list[float]] = {}
    for name in names:
        for path in (results / name / "benchmarks").glob("*.jsonl"):
            last = json.loads(path.read_text().splitlines()[-1])
            found.setdefault(last["rule_name"], []).append(float(last["s"]))
    return {rule: round(statistics.median(times), 2) for rule, times in sorted(found.items())}


def on_slurm(cluster: Cluster, folder: Path, names: list[str], *arguments: str) -> Figures:
    """One run of the shipped profile: submissions, and seconds of GPUs that were allocated."""
    facility = Facility(cluster, folder)
    facility.make(names)
    began = time.perf_counter()
    driver = facility.run(*arguments)
    wall = time.perf_counter() - began
    if driver.process.returncode:
        raise SystemExit(driver.text())
    jobs = cluster.jobs(folder)
    gpu = sum(seconds(job) * job.gpus for job in jobs)
    return {
        "wall_s": round(wall, 1),
        "submissions": len(jobs),
        "submissions_a_tomogram": round(len(jobs) / len(names), 2),
        "gpu_jobs": sum(job.gpus > 0 for job in jobs),
        "gpu_s_a_tomogram": round(gpu / len(names), 1),
    }


def seconds(job: Any) -> float:
    """How long a job ran."""
    start, end = (datetime.fromisoformat(text) for text in (job.start, job.end))
    return (end - start).total_seconds()


def main() -> None:
    """Run, print, and keep the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tomograms", type=int, default=12)
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names = [f"t{number:03d}" for number in range(arguments.tomograms)]
    result: Figures = {"machine": machine(),
                       "tomograms": len(names)}  # fmt: skip
    place = Path(tempfile.mkdtemp())
    try:
        result["local"] = local(place / "local", names)
        print("local", result["local"], flush=True)
        if arguments.slurm:
            cluster = Cluster.start()
            try:
                apart = set_resources(bundle=1)
                result["slurm, each for itself"] = on_slurm(cluster, place / "apart", names, *apart)
                print("apart", result["slurm, each for itself"], flush=True)
                result["slurm, as shipped"] = on_slurm(cluster, place / "shipped", names)
                print("shipped", result["slurm, as shipped"], flush=True)
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
