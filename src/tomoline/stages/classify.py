"""Voxel labels and class probabilities of the subtomograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import Progress, batched, default_batch, make_runner
from tomoline.io.atomic import atomic_path
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
    names = runner.card.classes
    with (
        h5py.File(inputs["subtomograms"], "r") as source,
        atomic_path(Path(outputs["classes"])) as partial,
        h5py.File(partial, "w") as file,
    ):
        boxes = source["subtomograms"]
        count, edge = boxes.shape[0], boxes.shape[1:]
        file.attrs["classes"] = names
        for key in ("candidate_id", "centre_zyx"):
            file.create_dataset(key, data=source[key][()], track_times=False)
        labels = _dataset(file, "labels", (count, *edge))
        stored = _dataset(file, "probabilities", (count, len(names), *edge))
        progress = Progress(count, "subtomogram", log)
        size = default_batch(runner.device, settings.batch_size)
        for k, p in enumerate(batched(runner, _boxes(boxes), batch_size=size)):
            labels[k] = p.argmax(0).astype(np.uint8)
            stored[k] = np.rint(p * 255).astype(np.uint8)
            progress.step()


def _boxes(dataset: Any) -> Iterator[NDArray[np.float32]]:
    for k in range(dataset.shape[0]):
        yield np.asarray(dataset[k], np.float32)


def _dataset(file: Any, name: str, shape: tuple[int, ...]) -> Any:
    chunks = (1, *shape[1:]) if shape[0] else None
    options = {"chunks": chunks, "compression": "gzip", "compression_opts": 1, "shuffle": True}
    return file.create_dataset(
        name, shape, np.uint8, track_times=False, **(options if shape[0] else {})
    )
