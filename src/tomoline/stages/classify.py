"""Class probabilities of the subtomograms, of each voxel or of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import Progress, batched, default_batch, make_runner
from tomoline.io.subtomograms import open_subtomograms, write_classes, write_views
from tomoline.log import get_logger
from tomoline.settings import ClassifySettings
from tomoline.stages.members import of_members

SETTINGS = ClassifySettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: ClassifySettings
) -> None:
    """Classify every voxel of every subtomogram, or each as a whole, as the network does.

    Inputs `subtomograms` (HDF5 of the extract stage) and `card` (the classifier's). Output
    `classes` (HDF5): `labels (N, b, b, b)` uint8 and `probabilities (N, C, b, b, b)` uint8 in
    1/255, or `views (N, flips, C)` float32; `candidate_id` and `centre_zyx` as they came,
    attribute `classes` naming the labels. Of an ensemble each has a `card_<k>` and a
    `classes_<k>`.
    """
    cards, results = of_members(inputs, "card"), of_members(outputs, "classes")
    for card, result in zip(cards, results, strict=True):
        _classify(inputs["subtomograms"], card, result, settings)


def _classify(subtomograms: str, card: str, output: str, settings: ClassifySettings) -> None:
    """The results of one classifier."""
    runner = make_runner(card, settings)
    if runner.card.role != "classifier":
        raise InputError(
            card, expected="a classifier", found=f"a {runner.card.role}",
            remedy="correct models.classifier in the configuration",
        )  # fmt: skip
    with open_subtomograms(subtomograms) as boxes:
        size = default_batch(runner, settings.batch_size)
        results = _counted(batched(runner, boxes.boxes, batch_size=size), len(boxes))
        same: dict[str, Any] = {
            "candidate_id": boxes.candidate_id, "centre_zyx": boxes.centre_zyx,
            "box_vox": boxes.box_vox, "classes": runner.card.classes,
        }  # fmt: skip
        if runner.card.names_whole:
            write_views(output, results, views=runner.flips, **same)
        else:
            pairs = ((result[0], result[1:]) for result in results)
            write_classes(output, pairs, **same)


def _counted(results: Iterator[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """The results, with progress in the log."""
    progress = Progress(count, "subtomogram", log)
    for result in results:
        yield result
        progress.step()
