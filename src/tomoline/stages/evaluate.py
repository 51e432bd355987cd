"""evaluate: particles against a truth -> evaluation.json and two tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import EXPECTED_PRECISION, VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.calibration import expected_calibration_error, reliability
from tomoline.evaluation.curve import score_curve
from tomoline.evaluation.matching import match_one_to_one
from tomoline.evaluation.scores import (
    COORDINATES,
    Evaluation,
    evaluate_picks,
    with_picker,
    with_segmentation,
)
from tomoline.export.geometry import TomogramGeometry
from tomoline.io.annotations import TruthOptions, read_occupancy, read_truth, slab_offset
from tomoline.io.atomic import write_json, write_text
from tomoline.io.mrc import open_volume, read_header
from tomoline.io.tables import ACCEPTED, PROBABILITY_PREFIX, read_particles, table_classes
from tomoline.log import get_logger
from tomoline.networks.cards import load_card
from tomoline.ops.picking import Picks, dog_picks_at_scales
from tomoline.settings import DatasetSettings, EvaluateSettings, validated
from tomoline.stages.members import of_members
from tomoline.stages.vote import has_balls

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

    `segmentation` is the map of voxel classes, scored where there is an occupancy; by the card
    `classifier` (and `classifier_<k>` of an ensemble) the scores say whether it has balls or
    shapes. `volume` and `transform` are the prepared volume, for the difference-of-Gaussians
    picker, and its place in the given tomogram. `dataset` and `tilt_series` are needed only for a
    truth in a RELION file of a binned tomogram, or of several tomograms.

    evaluation.json also has `score_curve` (precision and recall against the score, see
    `tomoline.evaluation.curve`) and `reliability`: of `particle` (that a candidate is one, by
    expected_precision or else the score) and `class` (that a found particle is of the class named,
    by its p_<class>) the bins [number, mean confidence, share right] and the error `ece`.
    """
    log = get_logger(__name__)
    transform = VolumeTransform.load(inputs["transform"])
    given = inputs.get("occupancy")
    options = truth_options(transform, settings, dataset, tilt_series, given)
    truth = read_truth(inputs["truth"], options)
    _check_inside(truth, transform.given_shape_zyx, inputs["truth"])
    occupancy = (
        read_occupancy(given, transform.given_shape_zyx, z_offset_vox=options.z_offset_vox)
        if given
        else None
    )
    truth, occupancy = _without(settings.ignored_classes, truth, occupancy)
    particles = read_particles(inputs["particles"])
    evaluation = evaluate_picks(particles, truth, occupancy=occupancy, settings=settings)
    if settings.dog_picker:
        picks = _pick(inputs["volume"], transform, len(truth))
        evaluation = with_picker(evaluation, picks, truth, occupancy=occupancy, settings=settings)
    if inputs.get("segmentation") and occupancy is not None:
        labels = np.asarray(open_volume(inputs["segmentation"]))
        names = table_classes(particles)
        evaluation = with_segmentation(
            evaluation, labels, true_labels(truth, occupancy, names, transform), len(names) + 1,
            of_balls="classifier" in inputs
            and has_balls([load_card(card) for card in of_members(inputs, "classifier")]),
        )  # fmt: skip
    kept = particles[particles["status"] == ACCEPTED]
    _write(evaluation, _curves(kept, truth, settings.hit_distance_vox), outputs)
    score = evaluation.one_to_one
    log.info(
        "%d of %d particles within %g voxels: precision %.3f, recall %.3f, F1 %.3f",
        score.tp, score.particles, settings.hit_distance_vox,
        score.precision, score.recall, score.f1,
    )  # fmt: skip


def truth_options(
    transform: VolumeTransform,
    settings: EvaluateSettings,
    dataset: Mapping[str, Any] | None,
    tilt_series: str | None,
    occupancy: str | Path | None,
) -> TruthOptions:
    """How a tomogram's truth is read, by the settings, then by the data set's."""
    checked = validated(DatasetSettings, dataset or {"name": "none", "sheet": ""}, source="dataset")
    layout, offset = settings.truth_format, settings.truth_z_offset_vox
    layout = checked.truth_format if layout == "auto" else layout
    offset = checked.truth_z_offset_vox if offset is None else offset
    if offset is None and occupancy and Path(occupancy).suffix != ".npz":
        # a slab of the tomogram: the truth's z counts from the slab's first section
        part = read_header(occupancy).file_shape
        offset = slab_offset(part, transform.given_shape_zyx) or None
    return TruthOptions(
        layout=layout,
        z_offset_vox=offset,
        geometry=TomogramGeometry.of(transform, checked),
        tilt_series=tilt_series,
    )


def _without(
    ignored: list[str], truth: pd.DataFrame, occupancy: NDArray[np.integer[Any]] | None
) -> tuple[pd.DataFrame, NDArray[np.integer[Any]] | None]:
    """Take what is listed but is no particle out of the truth: a pick on it is on background."""
    names = {name.casefold() for name in ignored}
    out = truth["class"].str.casefold().isin(names)
    if not out.any():
        return truth, occupancy
    get_logger(__name__).info("%d listed %s are not particles", out.sum(), ", ".join(ignored))
    if occupancy is not None:
        gone = np.isin(occupancy, truth.loc[out, "id"].to_numpy(int))
        occupancy = np.where(gone, occupancy.dtype.type(0), occupancy)
    return truth[~out].reset_index(drop=True), occupancy


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


def true_labels(
    truth: pd.DataFrame,
    occupancy: NDArray[np.integer[Any]],
    names: list[str],
    transform: VolumeTransform,
) -> NDArray[np.int64]:
    """Class of each voxel of the prepared volume: 1.. in the order of `names`, else 0.

    The occupancy is that of the given tomogram; each prepared voxel takes its nearest one.
    """
    spelling = {name.casefold(): k + 1 for k, name in enumerate(names)}
    lookup = np.zeros(max(int(occupancy.max(initial=0)), int(truth["id"].max())) + 1, np.int64)
    lookup[truth["id"].to_numpy(int)] = [spelling.get(c.casefold(), 0) for c in truth["class"]]
    nearest = [
        np.clip(np.rint(np.arange(n) * scale + offset).astype(int), 0, given - 1)
        for n, scale, offset, given in zip(
            transform.prepared_shape_zyx, transform.scale_zyx, transform.offset_zyx,
            occupancy.shape, strict=True,
        )
    ]  # fmt: skip
    return np.asarray(lookup[occupancy[np.ix_(*nearest)]])


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


def _curves(kept: pd.DataFrame, truth: pd.DataFrame, hit_distance_vox: float) -> dict[str, Any]:
    """What the accepted particles' scores and class probabilities were worth."""
    predicted, true = (table[COORDINATES].to_numpy(float) for table in (kept, truth))
    pairs = match_one_to_one(predicted, true, hit_distance_vox)
    of = pairs.true_of_prediction
    column = EXPECTED_PRECISION if EXPECTED_PRECISION in kept else "score"
    found = {"particle": {"of": column, **_reliability(kept[column].to_numpy(float), of >= 0)}}
    classes = [str(name).casefold() for name in truth["class"]]
    known = {name.casefold() for name in table_classes(kept)}
    rows = [k for k in np.flatnonzero(of >= 0) if classes[of[k]] in known]
    if rows:
        named = [str(name) for name in kept["class"].to_numpy()[rows]]
        confidence = [
            float(kept[PROBABILITY_PREFIX + name].iloc[k])
            for k, name in zip(rows, named, strict=True)
        ]
        right = [name.casefold() == classes[of[k]] for k, name in zip(rows, named, strict=True)]
        found["class"] = {"of": "p_<class>", **_reliability(np.array(confidence), np.array(right))}
    curve = score_curve(predicted, kept["score"].to_numpy(float), true, hit_distance_vox)
    return {"score_curve": curve, "reliability": found}


def _reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    bins = reliability(confidence, right)
    ece = expected_calibration_error(bins)
    return {
        "ece": None if np.isnan(ece) else round(ece, 4),
        "bins": [[b.n, round(b.confidence, 4), round(b.right, 4)] for b in bins],
    }


def _write(evaluation: Evaluation, more: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    write_json(outputs["evaluation"], {**evaluation.to_json(), **more})
    text = evaluation.class_table().to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(outputs["classes"], text)
    confusion = evaluation.confusion().to_csv(index_label="true", lineterminator="\n")
    write_text(outputs["confusion"], confusion)
