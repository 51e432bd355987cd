"""Time and memory of every stage, in its own process, against voxels and particles.

    .venv/bin/python benchmarks/bench_stages.py [--series demo voxels particles] [--flips 1]
        [--output FILE] [--picture FILE]

The workflow runs as a user runs it, one job at a time; the figures are those of Snakemake's own
benchmark files (a job's wall time, with the start of Python, and its resident memory). Series:

- `demo`: the shipped networks on the shipped demo_01, mirrored again and again, with its true
  particles and the volume of their numbers: noise, crowding and particles a voxel are alike at
  every size.
- `voxels`: volumes of noise up to 512 x 1024 x 1024 with 1,000 balls, and networks of one layer
  that mark them: what the stages beside the networks take on volumes for which the networks would
  take an hour here.
- `particles`: the same in 200 x 512 x 512 voxels, with more and more balls.
- `line` (only when asked for: half an hour without a GPU): the whole line on 512^3 voxels and
  2,800 balls with networks of the published sizes, whose weights mark the balls.

An exponent is the slope of log(figure) against log(voxels or particles), of what a stage takes
beyond the least of its series, which is start-up: 1 is linear.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mrcfile
import numpy as np
import pandas as pd
import yaml
from machine import machine

mpl.use("Agg")
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_project import VOXEL_SIZE, save_threshold_network  # noqa: E402

DEMO = ROOT / "resources" / "demo"
ORDER = ("prepare", "tile", "segment", "merge", "cluster", "extract", "classify", "vote", "export",
         "evaluate", "report_tomogram")  # fmt: skip
NETWORKS = ("segment", "classify")
SERIES: dict[str, list[tuple[str, int]]] = {
    "demo": [("100x256x256", 0), ("160x400x400", 0), ("200x512x512", 0)],
    "voxels": [("100x256x256", 1000), ("200x512x512", 1000), ("512x1024x1024", 1000)],
    "particles": [("200x512x512", 700), ("200x512x512", 2100), ("200x512x512", 6300)],
    "line": [("512x512x512", 2800)],
}
AGAINST = {"particles": "particles"}
PUBLISHED = {
    "localizer": {"depth": 49, "width": 2, "max_dilation": 7},
    "classifier": {"depth": 100, "width": 2, "max_dilation": 5},
}
Shape = tuple[int, int, int]
# Of the balls; so few voxels that 6,300 of them are still six standard deviations dark.
RADIUS = 3
# What is left of a stage after its start-up has to be this long for its growth to mean anything.
SHORT_S, SMALL_MB = 0.5, 50.0
# Memory is looked at now and then: of a shorter job too seldom.
SEEN_S = 1.0


def mirrored(volume: np.ndarray, shape: Shape) -> np.ndarray:
    """A volume, mirrored at its faces until it fills a shape."""
    index = []
    for length, wanted in zip(volume.shape, shape, strict=True):
        back = np.arange(2 * length)
        index.append(np.where(back < length, back, 2 * length - 1 - back)[
            np.arange(wanted) % (2 * length)])  # fmt: skip
    return volume[np.ix_(*index)]


def write_mirrored(folder: Path, name: str, shape: Shape) -> int:
    """Write tomogram, true particles and their numbers; returns how many particles."""
    with mrcfile.open(DEMO / "demo_01.mrc") as file:
        volume, voxel = file.data.copy(), file.voxel_size.copy()
    with gzip.open(DEMO / "demo_01_occupancy.mrc.gz") as packed:
        occupancy = mrcfile.mrcinterpreter.MrcInterpreter(iostream=packed).data.copy()
    rows = [r.split() for r in (DEMO / "demo_01_particle_locations.txt").read_text().splitlines()]
    size = volume.shape
    lines, numbers = [], np.zeros(shape, np.float32)
    counts = [math.ceil(want / have) for want, have in zip(shape, size, strict=True)]
    for cell in itertools.product(*map(range, counts)):
        start = [c * n for c, n in zip(cell, size, strict=True)]
        box = tuple(slice(a, min(a + n, s)) for a, n, s in zip(start, size, shape, strict=True))
        turned = occupancy[tuple(slice(None, None, -1 if c % 2 else 1) for c in cell)]
        part = turned[tuple(slice(0, b.stop - b.start) for b in box)]
        numbers[box] = np.where(part > 0, part + len(lines), 0)
        lines += [_line(row, cell, size, shape) for row in rows]
    with mrcfile.new(folder / f"{name}.mrc") as file:
        file.set_data(mirrored(volume, shape))
        file.voxel_size = voxel
    with mrcfile.new(folder / f"{name}_occupancy.mrc.gz", compression="gzip") as file:
        file.set_data(numbers)
        file.voxel_size = voxel
    kept = [line for line in lines if line]
    (folder / f"{name}_particle_locations.txt").write_text("\n".join(lines) + "\n")
    return len(kept)


def _line(row: list[str], cell: tuple[int, ...], size: Shape, shape: Shape) -> str:
    """A particle's line in a mirrored copy; outside of the volume it is left out."""
    places = []
    for value, c, n in zip(map(float, row[3:0:-1]), cell, size, strict=True):
        places.append(c * n + (n - 1 - value if c % 2 else value))
    if any(p > s - 1 for p, s in zip(places, shape, strict=True)):
        return ""
    z, y, x = places
    return " ".join([row[0], f"{x:.3f}", f"{y:.3f}", f"{z:.3f}", *row[4:]])


def write_planted(folder: Path, name: str, shape: Shape, particles: int) -> int:
    """Write noise with dark balls on a grid, and their places."""
    rng = np.random.default_rng(1)
    spacing = int((math.prod(shape) / particles) ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(spacing // 2, n - 6, spacing) for n in shape],
                                indexing="ij"), -1).reshape(-1, 3)  # fmt: skip
    centres = grid[rng.permutation(len(grid))[:particles]]
    ball = np.indices((2 * RADIUS + 1,) * 3) - RADIUS
    ball = (ball**2).sum(0) <= RADIUS**2
    with mrcfile.new_mmap(folder / f"{name}.mrc", shape, mrc_mode=2) as file:
        for section in file.data:
            section[:] = rng.normal(0, 0.1, shape[1:])
        for z, y, x in centres:
            box = tuple(slice(c - RADIUS, c + RADIUS + 1) for c in (z, y, x))
            file.data[box][ball] -= 3
        file.voxel_size = VOXEL_SIZE
    lines = [f"ball {x} {y} {z} 0 0 0" for z, y, x in centres]
    (folder / f"{name}_particle_locations.txt").write_text("\n".join(lines) + "\n")
    return len(centres)


class Project:
    """A folder with the series' tomograms; the workflow runs on each as it comes."""

    def __init__(self, folder: Path, series: str, flips: int) -> None:
        self.folder, self.series = folder, series
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        (folder / "config").mkdir()
        models = ROOT / "resources" / "models"
        if series != "demo":
            models = folder / "models"
            for role, classes in (
                ("localizer", ["background", "particle"]),
                ("classifier", ["background", "ball", *map(str, range(11))]),
            ):
                shape = PUBLISHED[role] if series == "line" else {}
                save_threshold_network(models / f"msdnet-{role}", role, classes, **shape)
        settings = {
            "datasets": ["bench"], "models": {"folder": str(models)},
            "segment": {"test_time_flips": flips}, "classify": {"test_time_flips": flips},
        }  # fmt: skip
        (folder / "config" / "config.yaml").write_text(yaml.safe_dump(settings))

    def call(self, *arguments: str) -> None:
        """Run a command of this environment in the folder; end where it fails."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]], check=False,
            cwd=self.folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    def run(self, size: str, particles: int) -> list[dict[str, Any]]:
        """Make a tomogram and run it: one row a stage."""
        z, y, x = map(int, size.split("x"))
        shape, name = (z, y, x), f"{size}_{particles}" if particles else size
        if particles:
            particles = write_planted(self.data, name, shape, particles)
        else:
            particles = write_mirrored(self.data, name, shape)
        self.call("tomoline", "onboard", str(self.data), "--name", "bench", "--contrast", "dark")
        self.call(
            "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "all",
            "--workflow-profile", str(ROOT / "profiles" / "default"), "--default-resources",
            "one=1", "--resources", "one=1",
        )  # fmt: skip
        results = self.folder / "results" / "bench" / name
        table = pd.read_csv(results / "particles.csv")
        picks = int((table["status"] == "accepted").sum())
        if abs(picks - particles) > 0.3 * particles:
            raise SystemExit(f"{name}: {picks} picks of {particles} particles: not to be measured")
        files = (results / "benchmarks").glob("*.jsonl")
        found = [json.loads(path.read_text().splitlines()[-1]) for path in files]
        rows = [
            {"series": self.series, "stage": figures["rule_name"], "shape_zyx": list(shape),
             "voxels": math.prod(shape), "particles": particles, "seconds": float(figures["s"]),
             "peak_mb": float(figures["max_rss"])}
            for figures in found
        ]  # fmt: skip
        rows.sort(key=lambda row: ORDER.index(row["stage"]))
        for row in rows:
            print(f"{self.series:>10} {size:>14} {particles:6d} {row['stage']:>16} "
                  f"{row['seconds']:8.1f} s {row['peak_mb']:8.0f} MB", flush=True)  # fmt: skip
        return rows


def exponents(rows: list[dict[str, Any]], against: str) -> dict[str, dict[str, float | None]]:
    """Slopes of time and memory, beyond start-up, for each stage of a series."""
    found = {}
    idle = {key: min(row[key] for row in rows) for key in ("seconds", "peak_mb")}
    for stage in ORDER:
        own = [row for row in rows if row["stage"] == stage]
        seen = {"seconds": own, "peak_mb": [row for row in own if row["seconds"] >= SEEN_S]}
        found[stage] = {
            key: slope([r[against] for r in some], [r[key] - idle[key] for r in some], least)
            for (key, some), least in zip(seen.items(), (SHORT_S, SMALL_MB), strict=True)
        }
    return found


def slope(x: list[float], y: list[float], least: float) -> float | None:
    """Slope of log y against log x; None where fewer than two of y are worth speaking of."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if b >= least]
    if len(pairs) < 2:
        return None
    logs = np.log(np.array(pairs))
    return round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 2)


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and memory of the stages of each series, on logarithmic axes."""
    names = list(result["exponents"])
    figure = Figure(figsize=(11, 4.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for series, pair in zip(names, grid, strict=True):
        against = AGAINST.get(series, "voxels")
        for key, label, at in (("seconds", "wall time, s", pair[0]),
                               ("peak_mb", "memory, MB", pair[1])):  # fmt: skip
            for k, stage in enumerate(ORDER):
                own = [r for r in result["rows"] if (r["series"], r["stage"]) == (series, stage)]
                power = result["exponents"][series][stage][key]
                name = stage if power is None else f"{stage} ({power:g})"
                at.plot([r[against] for r in own], [max(r[key], 0.05) for r in own], label=name,
                        marker="os^DvP"[k % 6], color=f"C{k % 10}",
                        linestyle="-" if stage in NETWORKS else "--")  # fmt: skip
            at.set(xscale="log", yscale="log", xlabel=against, ylabel=label, title=series)
            at.grid(alpha=0.3)
            at.legend(fontsize=7, title="stage (exponent)", title_fontsize=7)
    figure.suptitle(f"{result['machine']}, {result['flips']} flip(s)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run, print, keep."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--series", nargs="+", default=list(SERIES)[:3], choices=list(SERIES))
    parser.add_argument("--flips", type=int, default=1, help="passes whose mean is taken")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/stages.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/pictures/stages.png")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "flips": options.flips, "rows": [],
                              "exponents": {}}  # fmt: skip
    for series in options.series:
        with tempfile.TemporaryDirectory() as place:
            project = Project(Path(place) / "project", series, options.flips)
            rows = [row for size, number in SERIES[series] for row in project.run(size, number)]
        result["rows"] += rows
        against = AGAINST.get(series, "voxels")
        result["exponents"][series] = powers = exponents(rows, against)
        for stage, found in powers.items():
            words = ["short" if power is None else f"{power:g}" for power in found.values()]
            print(f"{series:>10} {stage:>16}: time ~ {against}^{words[0]}, "
                  f"memory ~ {against}^{words[1]}")  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.picture)
    print(options.output, options.picture)


if __name__ == "__main__":
    main()
