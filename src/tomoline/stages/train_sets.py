"""Training on sets of simulated subtomograms: what is read, and what is written beside the model.

`figures.json` of a training holds its figures on the validation and the test subtomograms (the
names are those of `tomoline.training.sets.Measured`), the F1 of each class of the test ones and
their confusion, and how long a thousand subtomograms take. The test subtomograms are looked at
once, after the last epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoline.errors import InputError
from tomoline.evaluation.segmentation import confusion_matrix
from tomoline.io.atomic import write_text
from tomoline.io.subtomograms import open_simulated
from tomoline.log import get_logger
from tomoline.networks.cards import NAME_WHOLE, ModelCard
from tomoline.settings import TrainSettings
from tomoline.stages.confidence import Voted, with_temperature
from tomoline.training.sets import (
    CLASSIFICATION,
    SEGMENTATION,
    SETS_APART,
    Choice,
    Measured,
    SetOptions,
    SetRecipe,
    TrueBoxes,
    classes_of,
    measure,
    read_sets,
)

VALIDATION = "the validation subtomograms of its sets"
log = get_logger(__name__)


@dataclass(frozen=True)
class Sets:
    """The sets of a training; `classes` without background."""

    paths: list[Path]
    choice: Choice
    classes: tuple[str, ...]
    box_vox: int
    voxel_size_angstrom: float


def sets_of(settings: TrainSettings) -> Sets:
    """What the settings name, checked; nothing is read into memory yet.

    Raises
    ------
    InputError
        A network that names no whole subtomograms as a classifier, or see `classes_of`.
    """
    if settings.task == "classifier" and settings.network not in NAME_WHOLE:
        raise InputError(
            "train", expected=f"a network that names whole subtomograms "
            f"({', '.join(sorted(NAME_WHOLE))})", found=settings.network,
            remedy="set train.network, or train.task: segmenter",
        )  # fmt: skip
    own, paths = settings.sets, [Path(path) for path in settings.sets.files]
    choice = Choice(
        classes=tuple(settings.classes), leave_out=tuple(own.leave_out),
        truth=tasks_of(settings), seed=settings.seed,
    )  # fmt: skip
    classes = classes_of(paths, choice)[1:]
    with open_simulated(paths[0]) as boxes:
        whole, size = boxes.box_vox, boxes.voxel_size_angstrom
    if own.box_vox > whole:
        raise InputError(
            "train.sets.box_vox", expected=f"at most {whole}, as {paths[0]} has it",
            found=str(own.box_vox), remedy="make it smaller, or simulate larger boxes",
        )  # fmt: skip
    return Sets(paths, choice, classes, own.box_vox or whole, size)


def tasks_of(settings: TrainSettings) -> tuple[str, ...]:
    """The tasks that a network learns from sets."""
    if settings.network == "dsmnet":
        return tuple(settings.dsmnet.subnets)
    return (SEGMENTATION if settings.task == "segmenter" else CLASSIFICATION,)


def recipe_of(sets: Sets, settings: TrainSettings, where: Mapping[str, Any]) -> SetRecipe:
    """Read the training and validation subtomograms; `where` is the device, precision and rank."""
    own = settings.sets
    learnt = read_sets(sets.paths, "train", _limited(sets.choice, own.most))
    held_out = read_sets(sets.paths, "validation", sets.choice)
    log.info("%d subtomograms to learn from, %d held out, %d classes", len(learnt), len(held_out),
             len(sets.classes))  # fmt: skip
    options = SetOptions(
        batch_size=settings.batch_size, weights=own.weights.model_dump(), augment=own.augment,
        box_vox=own.box_vox, off_centre_vox=own.off_centre_vox,
        label_smoothing=own.label_smoothing, seed=settings.seed, **where,
    )  # fmt: skip
    return SetRecipe(learnt, held_out, options)


def _limited(choice: Choice, most: int) -> Choice:
    return Choice(**{**choice.__dict__, "most": most})


def measured(
    card: ModelCard, network: nn.Module, recipe: SetRecipe, sets: Sets, path: Path
) -> ModelCard:
    """Measure the finished network `network` (its best weights), write `path` (figures.json) and
    return its card with temperature and figures."""
    validation = measure(network, recipe.held_out, recipe.options)
    test_boxes = read_sets(sets.paths, "test", sets.choice)
    started = time.monotonic()
    test = measure(network, test_boxes, recipe.options)
    pace = (time.monotonic() - started) / len(test_boxes) * 1000
    figures: dict[str, Any] = {
        "validation": rounded(validation.figures), "test": rounded(test.figures),
        "subtomograms": {"train": len(recipe.learnt), "validation": len(recipe.held_out),
                         "test": len(test_boxes)},
    }  # fmt: skip
    if len(sets.paths) > 1:
        figures["test_by_set"] = {
            str(path): rounded(measure(network, part, recipe.options).figures)
            for path, part in by_set(test_boxes, sets.paths)
        }
    if test.logits is not None:
        figures |= class_figures(test.logits.argmax(1), test_boxes)
        card = with_temperature(card, _voted(validation, recipe.held_out), source=VALIDATION)
    metrics = {**card.metrics, **{k: v for k, v in figures.items() if k != "confusion"}}
    write_text(path, json.dumps(figures | {"seconds_a_thousand": round(pace, 2)}, indent=1) + "\n")
    for name, value in figures["test"].items():
        log.info("test %s %.4f", name, value)
    return card.model_copy(update={"metrics": metrics})


def by_set(boxes: TrueBoxes, paths: Sequence[Path]) -> Iterator[tuple[Path, TrueBoxes]]:
    """The subtomograms of each set that has some."""
    for k, path in enumerate(paths):
        own = boxes.tomogram // SETS_APART == k
        if own.any():
            arrays: dict[str, Any] = {
                name: None if value is None else value[own]
                for name, value in vars(boxes).items() if name != "classes"
            }  # fmt: skip
            yield path, TrueBoxes(**arrays, classes=boxes.classes)


def class_figures(named: NDArray[np.int64], boxes: TrueBoxes) -> dict[str, Any]:
    """Counts of `named (N,)`: `classes` by name (`n`, `precision`, `recall` and
    `f1` = 2 TP / (2 TP + FN + FP)), their `mean_f1`, and the `confusion`, rows true, of `names`."""
    confusion = confusion_matrix(named, boxes.labels, len(boxes.classes))
    classes = {}
    for k, name in enumerate(boxes.classes):
        right, true, found = int(confusion[k, k]), int(confusion[k].sum()), confusion[:, k].sum()
        if true or k:
            classes[name] = {
                "n": true, "precision": _share(right, int(found)), "recall": _share(right, true),
                "f1": _share(2 * right, true + int(found)),
            }  # fmt: skip
    scores = [c["f1"] for c in classes.values() if c["n"] and c["f1"] is not None]
    mean = round(float(np.mean(scores)), 5) if scores else None
    return {
        "mean_f1": mean, "classes": classes, "names": list(boxes.classes),
        "confusion": confusion.tolist(),
    }  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures as cards keep them."""
    return {key: round(float(value), 5) for key, value in figures.items()}


def _voted(found: Measured, boxes: TrueBoxes) -> list[Voted]:
    """What was named, by tomogram, among the structures: background has no part in it."""
    assert found.logits is not None
    p = torch.from_numpy(found.logits[:, 1:]).double().softmax(1).numpy()
    labels = boxes.labels - 1
    return [
        Voted(name=f"tomogram {k}", probabilities=p[own], named=p[own].argmax(1),
              label=labels[own])
        for k in np.unique(boxes.tomogram)
        for own in [(boxes.tomogram == k) & (labels >= 0)]
    ]  # fmt: skip
