"""Voxel labels and class probabilities of the subtomograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import Progress, batched, default_batch, make_runner
from tomoline.io.subtomograms import open_subtomograms, write_classes
from tomoline.log import get_logger
from tomoline.settings import ClassifySettings

SETTINGS = ClassifySettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: ClassifySettings
) -> None:
    """Classify every voxel of every subtomogram.

    Inputs `subtomograms` (HDF5 of the extract stage) and `card` (the classifier's). Output
    `classes` (HDF5): `labels (N, b, b, b)` uint8, `probabilities (N, C, b, b, b)` uint8 in 1/255,
    `candidate_id` and `centre_zyx` as they came, attribute `classes` naming the labels.
    """
    runner = make_runner(inputs["card"], settings)
    if runner.card.role != "classifier":
        raise InputError(
            inputs["card"], expected="a classifier", found=f"a {runner.card.role}",
            remedy="correct models.classifier in the configuration",
        )  # fmt: skip
    with open_subtomograms(inputs["subtomograms"]) as boxes:
        size = default_batch(runner.device, settings.batch_size)
        write_classes(
            outputs["classes"],
            _counted(batched(runner, boxes.boxes, batch_size=size), len(boxes)),
            candidate_id=boxes.candidate_id, centre_zyx=boxes.centre_zyx, box_vox=boxes.box_vox,
            classes=runner.card.classes,
        )  # fmt: skip


def _counted(
    results: Iterator[NDArray[np.uint8]], count: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Labels and probabilities as the file holds them, with progress in the log."""
    progress = Progress(count, "subtomogram", log)
    for result in results:
        yield result[0], result[1:]
        progress.step()
