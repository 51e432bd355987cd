"""How well classifiers name particles at their true centres, alone and together, and how fast.

    python benchmarks/name_true_centres.py --tomogram FOLDER/pn_a_01.mrc [--models A B ...]
    python benchmarks/name_true_centres.py --simulate 8

The first takes a tomogram with truth beside it that no model was trained on; the second makes
tomograms by the localizer's training conditions from seeds that no training draws from, on which
the two ways of combining probabilities are compared (the mean of their logarithms, which is what
the workflow does, and of themselves). Each classifier's own temperature is used. Writes a table to
the terminal and with --output as JSON. A classifier of voxels votes as after a localizer whose
clusters have 113 voxels (a ball of radius 3), as true centres come without one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoline.evaluation.calibration import (
    class_log_likelihood,
    expected_calibration_error,
    reliability,
    tempered,
)
from tomoline.evaluation.ensemble import pooled
from tomoline.evaluation.sizes import group_means
from tomoline.infer import Runner, make_runner
from tomoline.io.annotations import read_truth
from tomoline.io.mrc import open_volume
from tomoline.networks.cards import load_card
from tomoline.ops.normalise import normalise
from tomoline.settings import ClassifySettings, model_path
from tomoline.stages.confidence import Found, Known, simulated, votes_in
from tomoline.stages.names import find_truth

MODELS = ("msdnet-classifier", "dsmnet-classifier", "dilated-densenet-classifier")
FOLDER = "resources/models"
SEED = 9_100_001
CORE_VOX = 113
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Named:
    """Calibrated probabilities `(n, C)` of true particles, and the seconds that a thousand took."""

    probabilities: Floats
    seconds: float


def known_of(path: Path) -> Known:
    """A tomogram with the truth that lies beside it."""
    truth, _ = find_truth(path)
    assert truth is not None, f"no truth beside {path}"
    table = read_truth(truth)
    volume = normalise(np.asarray(open_volume(path), np.float32))
    centres = table[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
    return Known(name=path.stem, volume=volume, centres_zyx=centres, classes=list(table["class"]))


def named_by(runner: Runner, tomograms: Sequence[Known]) -> Named:
    """What one classifier makes of all true particles."""
    found, seconds = [], 0.0
    classes = len(runner.card.classes) - 1
    for known in tomograms:
        count = len(known.centres_zyx)
        at = Found(
            known=known, statistics={}, centres=known.centres_zyx, score=np.ones(count),
            size_vox=np.full(count, CORE_VOX), contrast=np.ones(count), true=np.arange(count),
        )  # fmt: skip
        started = time.perf_counter()
        votes = votes_in(runner, at)
        seconds += time.perf_counter() - started
        # A particle without a vote is named by nobody: all classes alike, and so counted as wrong.
        found += [np.full(classes, 1 / classes) if v is None else v.probabilities for v in votes]
    p = tempered(np.array(found), runner.card.temperature or 1.0)
    return Named(p, 1000 * seconds / max(len(found), 1))


def figures(p: Floats, label: NDArray[np.int64], classes: Sequence[str]) -> dict[str, object]:
    """Accuracy, mean over the classes, F1 of each and by size, likelihood, calibration."""
    named = p.argmax(1)
    sure = p.max(1) > p.min(1)  # else it was named by nobody
    right = (named == label) & sure
    f1, accuracy = {}, {}
    for k, name in enumerate(classes):
        true, own = label == k, (named == k) & sure
        if true.any():
            f1[name] = float(2 * (true & own).sum() / (true.sum() + own.sum()))
            accuracy[name] = float(right[true].mean())
    ece = expected_calibration_error(reliability(p[np.arange(len(p)), named], right))
    return {
        "particles": len(label), "accuracy": float(right.mean()),
        "class_accuracy": float(np.mean(list(accuracy.values()))),
        "mean_f1": float(np.mean(list(f1.values()))), "f1_by_size": group_means(f1), "f1": f1,
        "log_likelihood": class_log_likelihood(p, label), "ece": ece,
    }  # fmt: skip


def measured(
    tomograms: Sequence[Known], folders: Sequence[Path], settings: ClassifySettings
) -> dict[str, dict[str, object]]:
    """Figures of each classifier, and of all pairs and of all together by both ways."""
    runners = [make_runner(folder, settings) for folder in folders]
    classes = runners[0].card.classes[1:]
    places = {name.casefold(): k for k, name in enumerate(classes)}
    label = np.array([places[c.casefold()] for known in tomograms for c in known.classes])
    rows: dict[str, dict[str, object]] = {}
    members: dict[str, Named] = {}
    for runner in runners:
        one = members[runner.card.name] = named_by(runner, tomograms)
        rows[runner.card.name] = figures(one.probabilities, label, classes) | {
            "seconds_a_thousand": one.seconds
        }
    for size in range(2, len(members) + 1):
        for names in itertools.combinations(members, size):
            own = [members[name].probabilities for name in names]
            seconds = sum(members[name].seconds for name in names)
            ways = {"logarithms": pooled(own), "probabilities": np.mean(own, axis=0)}
            for way, p in ways.items():
                rows[f"{' + '.join(names)}, mean of {way}"] = figures(p, label, classes) | {
                    "seconds_a_thousand": seconds
                }
    return rows


def table(rows: dict[str, dict[str, object]]) -> str:
    """A Markdown table."""
    columns = {
        "accuracy": "named rightly", "class_accuracy": "class accuracy", "mean_f1": "mean F1",
        "log_likelihood": "log likelihood", "ece": "calibration error",
    }  # fmt: skip
    sizes = list(dict.fromkeys(g for row in rows.values() for g in row["f1_by_size"]))  # type: ignore[attr-defined]
    head = ["classifier", *columns.values(), *(f"F1 {g}" for g in sizes), "s per 1,000"]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    for name, row in rows.items():
        values = [row[c] for c in columns] + [row["f1_by_size"].get(g) for g in sizes]  # type: ignore[attr-defined]
        cells = ["-" if v is None else f"{v:.3f}" for v in values]
        pace = f"{row['seconds_a_thousand']:.0f}"
        lines.append(f"| {' | '.join([name, *cells, pace])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tomogram", type=Path, nargs="*", default=[])
    parser.add_argument("--simulate", type=int, default=0, metavar="N")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--flips", type=int, default=ClassifySettings().test_time_flips)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    folders = [model_path(name, FOLDER) for name in arguments.models]
    tomograms = [known_of(path) for path in arguments.tomogram]
    if arguments.simulate:
        localizer = load_card(Path(FOLDER) / "msdnet-localizer")
        others = [load_card(folder) for folder in folders]
        tomograms += simulated(
            localizer, Path("resources/densities"), count=arguments.simulate, seed=SEED,
            others=others,
        )  # fmt: skip
    settings = ClassifySettings.model_validate({"test_time_flips": arguments.flips})
    rows = measured(tomograms, folders, settings)
    print(table(rows))
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
