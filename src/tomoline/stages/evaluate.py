"""evaluate: particles against a truth -> evaluation.json and two tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.picking import Picks, dog_picks_at_scales
from tomoline.evaluation.scores import Evaluation, evaluate_picks, with_picker
from tomoline.export.geometry import TomogramGeometry
from tomoline.io.annotations import TruthOptions, read_occupancy, read_truth
from tomoline.io.atomic import write_json, write_text
from tomoline.io.mrc import open_volume
from tomoline.io.tables import read_particles
from tomoline.log import get_logger
from tomoline.settings import DatasetSettings, EvaluateSettings, validated

SETTINGS = EvaluateSettings


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: EvaluateSettings,
    dataset: Mapping[str, Any] | None = None,
    tilt_series: str | None = None,
) -> None:
    """Score inputs `particles` against `truth` (and `occupancy`); outputs `evaluation`, `classes`
    and `confusion`.

    `volume` and `transform` are the prepared volume, for the difference-of-Gaussians picker, and
    its place in the given tomogram. `dataset` and `tilt_series` are needed only for a truth in a
    RELION file of a binned tomogram, or of several tomograms.
    """
    log = get_logger(__name__)
    transform = VolumeTransform.load(inputs["transform"])
    options = _options(transform, settings, dataset, tilt_series)
    truth = read_truth(inputs["truth"], options)
    _check_inside(truth, transform.given_shape_zyx, inputs["truth"])
    given = inputs.get("occupancy")
    occupancy = read_occupancy(given, transform.given_shape_zyx) if given else None
    evaluation = evaluate_picks(
        read_particles(inputs["particles"]), truth, occupancy=occupancy, settings=settings
    )
    if settings.dog_picker:
        picks = _pick(inputs["volume"], transform, len(truth))
        evaluation = with_picker(evaluation, picks, truth, occupancy=occupancy, settings=settings)
    _write(evaluation, outputs)
    score = evaluation.one_to_one
    log.info(
        "%d of %d particles within %g voxels: precision %.3f, recall %.3f, F1 %.3f",
        score.tp, score.particles, settings.hit_distance_vox,
        score.precision, score.recall, score.f1,
    )  # fmt: skip


def _options(
    transform: VolumeTransform,
    settings: EvaluateSettings,
    dataset: Mapping[str, Any] | None,
    tilt_series: str | None,
) -> TruthOptions:
    checked = validated(DatasetSettings, dataset or {"name": "none", "sheet": ""}, source="dataset")
    return TruthOptions(
        layout=settings.truth_format,
        z_offset_vox=settings.truth_z_offset_vox,
        geometry=TomogramGeometry.of(transform, checked),
        tilt_series=tilt_series,
    )


def _check_inside(truth: pd.DataFrame, shape: tuple[int, int, int], source: str | Path) -> None:
    """Most true centres must lie in the tomogram, else its axes or offset are not the truth's."""
    zyx = truth[["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float)
    outside = int(((zyx < -0.5) | (zyx > np.asarray(shape) - 0.5)).any(axis=1).sum())
    if outside * 2 > len(truth):
        raise InputError(
            source,
            expected=f"positions inside the tomogram of {shape} voxels (z, y, x)",
            found=f"{outside} of {len(truth)} outside",
            remedy="check evaluate.truth_format and evaluate.truth_z_offset_vox",
        )
    if outside:
        get_logger(__name__).warning("%s: %d positions lie outside", source, outside)


def _pick(volume: str | Path, transform: VolumeTransform, number: int) -> list[Picks]:
    """Pick on the prepared volume (particles dark); centres in voxels of the given tomogram."""
    prepared: NDArray[np.float32] = np.asarray(open_volume(volume), dtype=np.float32)
    return [
        Picks(
            zyx_vox=transform.to_given(picks.zyx_vox),
            score=picks.score,
            scale_vox=picks.scale_vox,
        )
        for picks in dog_picks_at_scales(prepared, number=number)
    ]


def _write(evaluation: Evaluation, outputs: Mapping[str, Any]) -> None:
    write_json(outputs["evaluation"], evaluation.to_json())
    text = evaluation.class_table().to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(outputs["classes"], text)
    confusion = evaluation.confusion().to_csv(index_label="true", lineterminator="\n")
    write_text(outputs["confusion"], confusion)
