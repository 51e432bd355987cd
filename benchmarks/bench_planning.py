"""What a dry run of 100, 1,000 and 5,000 tomograms costs, beside bare Snakemake; and by what power.

    .venv/bin/python benchmarks/bench_planning.py [--tomograms 100 1000 5000] [--output FILE]

The bare workflow has eight chained rules a sample, each a `shell: "touch {output}"`, and no input
functions. Both are planned in one run, in turn, so that their ratio holds on a busy machine too;
processor time and peak memory are those of the snakemake process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from machine import machine  # noqa: E402
from tiny_project import make_project  # noqa: E402

from tomoline.io.sheet import load_dataset, write_sheet  # noqa: E402

BARE_RULES = 8
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print("used", used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""
Figures = dict[str, float]


def tomograms(folder: Path, count: int) -> list[str]:
    """A project with `count` tomograms (links to one file); returns the command that plans it."""
    make_project(folder, {"one": [(12, 12, 14), (28, 30, 40)]})
    datasets = folder / "config" / "datasets"
    _, (first,) = load_dataset("tiny", folder=datasets)
    rows = []
    for number in range(count):
        name = f"t{number:05d}"
        os.link(folder / "tomograms" / "one.mrc", folder / "tomograms" / f"{name}.mrc")
        rows.append(
            first.model_copy(
                update={
                    "tomogram": name,
                    "tilt_series": name,
                    "path": f"tomograms/{name}.mrc",
                    "truth": "",
                    "occupancy": "",
                }
            )
        )
    write_sheet(datasets / "tiny.tsv", rows)
    profile = ROOT / "profiles" / "default"
    return ["--snakefile", str(ROOT / "Snakefile"), "--workflow-profile", str(profile)]


def bare(folder: Path, count: int) -> list[str]:
    """Eight chained rules a sample and nothing else."""
    folder.mkdir(parents=True)
    names = f'[f"t{{k:05d}}" for k in range({count})]'
    rules = [f'rule all:\n    input: expand("out/{{s}}/{BARE_RULES}", s={names})']
    for n in range(1, BARE_RULES + 1):
        source = "in/{s}" if n == 1 else f"out/{{s}}/{n - 1}"
        files = f'    input: "{source}"\n    output: "out/{{s}}/{n}"\n'
        rules.append(f'rule r{n}:\n{files}    shell: "touch {{output}}"')
    (folder / "Snakefile").write_text("\n\n".join(rules) + "\n")
    (folder / "in").mkdir()
    for number in range(count):
        (folder / "in" / f"t{number:05d}").touch()
    return []


def plan(folder: Path, arguments: list[str]) -> Figures:
    """A dry run's wall time (s), processor time (s), peak memory (MB) and number of jobs."""
    program = Path(sys.executable).with_name("snakemake")
    began = time.perf_counter()
    command = [str(program), "--dry-run", "--quiet", "rules", "--cores", "2", *arguments]
    # Through a small process: a child's peak memory counts that of the one it was forked from.
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command], cwd=folder, text=True, check=False,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wall = time.perf_counter() - began
    said = (done.stdout + done.stderr).splitlines()
    if done.returncode:
        raise SystemExit("\n".join(said))
    total = next(line for line in said if line.startswith("total"))
    cpu, peak_kb = map(float, next(s for s in said if s.startswith("used ")).split()[1:])
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "peak_mb": round(peak_kb / 1024, 1),
        "jobs": int(total.split()[1]),
    }


def exponent(points: dict[int, Figures], key: str) -> float:
    """The power of the number of tomograms that a figure grows with, between the two largest."""
    (n, a), (m, b) = sorted(points.items())[-2:]
    return round(math.log(b[key] / a[key]) / math.log(m / n), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tomograms", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    kinds = {"tomoline": tomograms, "bare": bare}
    points: dict[str, dict[int, Figures]] = {name: {} for name in kinds}
    with tempfile.TemporaryDirectory() as place:
        for count in arguments.tomograms:
            for name, make in kinds.items():
                folder = Path(place) / f"{name}{count}"
                points[name][count] = plan(folder, make(folder, count))
                print(name, count, points[name][count], flush=True)
    ratio = {
        count: round(points["tomoline"][count]["cpu_s"] / points["bare"][count]["cpu_s"], 2)
        for count in arguments.tomograms
    }
    result = {"machine": machine(),
              "points": points, "cpu_ratio": ratio}  # fmt: skip
    if len(arguments.tomograms) > 1:
        result["exponent_cpu"] = {name: exponent(points[name], "cpu_s") for name in kinds}
        result["exponent_memory"] = {name: exponent(points[name], "peak_mb") for name in kinds}
    print(json.dumps({k: v for k, v in result.items() if k != "points"}, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
