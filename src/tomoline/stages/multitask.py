"""What DSM-Net makes of every subtomogram: its class, features, own voxels and density."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import Progress, Runner, batched, default_batch, make_runner
from tomoline.io.features import Features, write_features
from tomoline.io.stacks import write_stack
from tomoline.io.subtomograms import Subtomograms, open_subtomograms, true_classes
from tomoline.log import get_logger
from tomoline.networks.cards import MULTITASK, check_multitask
from tomoline.settings import DiscoverSettings

SETTINGS = DiscoverSettings
OWN = 0.5  # probability from which on a voxel is the particle's
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: DiscoverSettings
) -> None:
    """Run the network on the subtomograms of a file.

    Inputs `subtomograms` (HDF5, of the extract stage or simulated) and `card`. Outputs `features`
    (HDF5, `tomoline.io.features`) and two stacks of volumes (MRC) in the order of `candidate_id`:
    `masks`, 1 in the particle's own voxels and 0 in its neighbours', and `densities`, what it looks
    like alone, without noise and missing wedge, 1 a protein's. Boxes larger than the network's are
    cut to their middle. A network that only names subtomograms gives no `masks`, and `densities`
    are the subtomograms themselves with the sign turned, so that dense is positive.
    """
    runner = make_runner(inputs["card"], settings)
    check_multitask(runner.card, str(inputs["card"]))
    edge = runner.card.box_vox
    assert edge is not None
    with open_subtomograms(inputs["subtomograms"]) as boxes:
        if boxes.box_vox < edge:
            raise InputError(
                inputs["subtomograms"], expected=f"boxes of at least {edge} voxels, as "
                f"{runner.card.name} takes them", found=f"{boxes.box_vox}",
                remedy="cut larger subtomograms (extract.box_vox)",
            )  # fmt: skip
        rows = _rows(runner, boxes, edge, settings)
        _write(rows, outputs, runner, boxes, inputs)


def _rows(
    runner: Runner, boxes: Subtomograms, edge: int, settings: DiscoverSettings
) -> Iterator[NDArray[np.float32]]:
    progress = Progress(len(boxes), "subtomogram", log)
    size = default_batch(runner, settings.batch_size)
    for row in batched(runner, _Middles(boxes.boxes, edge), batch_size=size, tasks=True):  # type: ignore[arg-type]
        yield row
        progress.step()


class _Middles:
    """The middles of boxes in a file, cut as they are read; voxel `b // 2` stays in the middle."""

    def __init__(self, boxes: Any, edge: int) -> None:
        start = boxes.shape[1] // 2 - edge // 2
        self.boxes, self.cut = boxes, slice(start, start + edge)
        self.shape = (boxes.shape[0], edge, edge, edge)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> Any:
        return self.boxes[part, self.cut, self.cut, self.cut]


def _write(
    rows: Iterator[NDArray[np.float32]], outputs: Mapping[str, Any], runner: Runner,
    boxes: Subtomograms, inputs: Mapping[str, Any],
) -> None:  # fmt: skip
    edge, size = runner.card.box_vox or 0, boxes.voxel_size_angstrom
    known = int(runner.card.parameters.get("features", 1024))
    columns = known + len(runner.card.classes)
    vectors = np.empty((len(boxes), columns), np.float32)
    recovered = set(runner.card.parameters.get("subnets", [])) >= MULTITASK
    middles = _Middles(boxes.boxes, edge)
    # One file is written after the other, so the masks wait, a bit a voxel.
    masks = np.empty((len(boxes), (edge**3 + 7) // 8), np.uint8)

    def densities() -> Iterator[NDArray[np.float32]]:
        for k, row in enumerate(rows):
            vectors[k] = row[:columns]
            if not recovered:
                yield -np.asarray(middles[k : k + 1][0], np.float32)
                continue
            mask, density = row[columns:].reshape(2, edge, edge, edge)
            masks[k] = np.packbits(mask > OWN)
            yield density

    same: dict[str, Any] = {"box_vox": edge, "voxel_size_angstrom": size}
    write_stack(outputs["densities"], densities(), **same)
    unpacked = (
        np.unpackbits(mask, count=edge**3).reshape(edge, edge, edge).astype(np.int8)
        for mask in masks
    )
    if recovered:
        write_stack(outputs["masks"], unpacked, kind=np.int8, **same)
    found = Features(
        features=vectors[:, :known], probabilities=vectors[:, known:],
        candidate_id=boxes.candidate_id, classes=runner.card.classes, model=runner.card.name,
        weights_sha256=runner.card.weights_sha256, true=true_classes(inputs["subtomograms"]),
        recovered=recovered, **same,
    )  # fmt: skip
    write_features(outputs["features"], found)
    log.info("%d subtomograms", len(found))
