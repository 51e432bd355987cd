"""Fine-tuning with 20, 50 and 100 labels of a structure that no model knows, measured.

    python benchmarks/finetune_labels.py --work FOLDER [--structure 5mrc] [--labels 20 50 100]

In a project of its own it simulates tomograms that hold the structure among three which the
shipped classifier knows (seeds that no training drew from), and for each number labels so many
particles of the structure, drawn at random in the first half of the tomograms (by y), as a
microscopist would: no other particle is labelled, so all else is unknown. `snakemake finetune`
finds the candidates with the shipped models, and learns. Measured is the second half of every
tomogram, by the complete truth: F1 of picking, and F1 of naming the structure, before and after;
and on simulated particles of all twelve classes that were known, what it cost them. Writes
results/finetune_labels.json beside this file, a row at a time, and prints a table. Networks look at
what they measure in few orientations (`test_time_flips`), which costs a little of all figures and
saves most of the time.

A smaller trial: --tomograms 1 --shape 64 128 128 --labels 5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tomoline.io.annotations import label_table, read_truth, write_labels
from tomoline.io.atomic import write_json
from tomoline.io.sheet import DATASETS_FOLDER, labels_file, load_dataset
from tomoline.stages.project import init_project

ROOT = Path(__file__).parents[1]
OTHERS = ("4v94", "4cr2", "1bxn")
VOXELS_A_PARTICLE = 1.7e4
QUICK = {"segment": {"test_time_flips": 1}}
NAME = "few"
HELD_OUT = 0.5


def command(project: Path, *words: str) -> float:
    """Run a program of this Python's environment in the project; returns the seconds it took."""
    started = time.monotonic()
    program = Path(sys.executable).with_name(words[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([str(program), *words[1:]], cwd=project, check=True, env=environment)
    return time.monotonic() - started


def configure(project: Path, sections: dict[str, Any]) -> None:
    """Write config.yaml."""
    (project / "config" / "config.yaml").write_text(yaml.safe_dump(sections))


def simulate(project: Path, given: argparse.Namespace) -> None:
    """Make the tomograms and onboard them."""
    size = np.prod(given.shape)
    settings = {
        "name": NAME, "tomograms": given.tomograms, "shape_zyx": list(given.shape),
        "conditions": "fixed", "particles": int(size / VOXELS_A_PARTICLE), "snr": given.snr,
        "seed": 731,
        "classes": [given.structure, *OTHERS],
    }  # fmt: skip
    configure(project, {"datasets": [NAME], "simulate": settings})
    folder = Path("results") / "simulated" / NAME
    if not (project / folder).is_dir():
        command(project, "snakemake", "simulate", "--cores", str(given.cores))
    command(project, "tomoline", "onboard", str(folder), "--name", NAME, "--contrast", "dark")


def label(project: Path, given: argparse.Namespace, number: int) -> int:
    """Label so many particles of the structure in the learnt halves; returns how many there were
    to choose from."""
    folder = project / DATASETS_FOLDER
    _, rows = load_dataset(NAME, folder=folder)
    truths = {row.tomogram: read_truth(project / row.truth) for row in rows}
    heights = {row.tomogram: float(row.ny or 0) for row in rows}
    known = [
        (name, k)
        for name, table in truths.items()
        for k in np.flatnonzero(
            (table["class"].str.casefold() == given.structure)
            & (table["y_vox"] < (1 - HELD_OUT) * heights[name])
        )
    ]
    drawn = np.random.default_rng(7).permutation(len(known))[:number]
    for name, table in truths.items():
        file = labels_file(NAME, name, folder=folder)
        chosen = [known[i][1] for i in drawn if known[i][0] == name]
        if chosen:
            write_labels(file, label_table(table.iloc[sorted(chosen)], source="benchmark"))
        else:
            file.unlink(missing_ok=True)
    return len(known)


def main() -> int:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or one to go on")
    parser.add_argument("--structure", default="5mrc")
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--tomograms", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(72, 232, 232))
    parser.add_argument("--snr", type=float, default=1.0)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--settings", type=json.loads, default={}, help="of finetune, as JSON")
    parser.add_argument("--suffix", default="", help="of the models' and the file's name")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    init_project(given.work)
    simulate(given.work, given)
    rows = []
    facts = {
        "structure": given.structure, "others": list(OTHERS), "tomograms": given.tomograms,
        "shape_zyx": list(given.shape), "snr": given.snr, "settings": given.settings, "rows": rows,
    }  # fmt: skip
    for number in given.labels:
        available = label(given.work, given, number)
        name = f"{given.structure}-{number}{given.suffix}"
        tuned = {"name": name, "held_out_part": HELD_OUT, "test_time_flips": 2, **given.settings}
        configure(given.work, {"datasets": [NAME], **QUICK, "finetune": tuned})
        seconds = command(given.work, "snakemake", "finetune", "--cores", str(given.cores))
        told = json.loads((given.work / "results/models" / name / "finetune.json").read_text())
        rows.append(row_of(told, given.structure, min(number, available), seconds))
        write_json(given.output / f"finetune_labels{given.suffix}.json", facts)
    print(
        f"{'labels':>6} {'F1 of picking':>18} {'F1 of ' + given.structure:>18} "
        f"{'the others right':>18} {'all known ones':>18} {'seconds':>8}"
    )
    for row in rows:
        print(
            f"{row['labels']:>6} {pair(row['f1']):>18} {pair(row['f1_structure']):>18} "
            f"{pair(row['others_right']):>18} {pair(row['known_before']):>18} {row['seconds']:>8}"
        )
    return 0


def row_of(told: dict[str, Any], structure: str, labels: int, seconds: float) -> dict[str, Any]:
    """The figures of one fine-tuning, each before and after."""
    both = [told["before"], told["after"]]
    others = [
        [c["recall"] for name, c in f["classes"].items() if c["true"] and name != structure]
        for f in both
    ]
    return {
        "labels": labels, "seconds": round(seconds),
        "f1": [f["f1"] for f in both],
        "f1_structure": [f["classes"].get(structure, {}).get("f1") for f in both],
        "structure": [f["classes"].get(structure) for f in both],
        "others_right": [round(float(np.mean(o)), 4) if o else None for o in others],
        "known_before": [told["known_before"].get(k) for k in ("before", "after")],
        "learnt": told["learnt"], "sift": told["sift"],
    }  # fmt: skip


def pair(values: list[float | None]) -> str:
    """Before and after."""
    return " -> ".join("-" if v is None else f"{v:.3f}" for v in values)


if __name__ == "__main__":
    sys.exit(main())
