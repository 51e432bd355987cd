"""A method's picks on a test tomogram, with the settings tuned elsewhere, and every figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.contracts import VolumeTransform
from tomoline.evaluation.scores import COORDINATES, evaluate_picks
from tomoline.io.atomic import write_json, write_text
from tomoline.log import get_logger
from tomoline.peers.base import Found
from tomoline.settings import BenchmarkMethod, BenchmarkTomogram, EvaluateSettings
from tomoline.stages.benchmark import clocked, method_of, scene_of, truth_of

SETTINGS = BenchmarkMethod
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: BenchmarkMethod,
    tomogram: Mapping[str, Any],
    work: str,
    threads: int = 1,
) -> None:
    """Pick and score.

    Inputs `response`, `cost`, `tuned`, `volume`, `transform`, `densities`. Outputs `picks` (CSV, in
    voxels of the given tomogram), `scores` (JSON: evaluation, settings, cost of response and picks
    together), `classes` (a row a class) and `confusion` (CSV).
    """
    checked = BenchmarkTomogram.model_validate(tomogram)
    transform = VolumeTransform.load(inputs["transform"])
    truth, occupancy = truth_of(checked, transform)
    tuned = json.loads(Path(inputs["tuned"]).read_text(encoding="utf-8"))
    method = method_of(settings, densities=Path(inputs["densities"]))
    scene = scene_of(inputs, checked, work=work, threads=threads)
    with clocked() as cost:
        found = method.picks(scene, Path(inputs["response"]), tuned)
    picks = _table(found, transform)
    evaluation = evaluate_picks(picks, truth, occupancy=occupancy, settings=EvaluateSettings())
    before = json.loads(Path(inputs["cost"]).read_text(encoding="utf-8"))
    total = {key: round(before[key] + cost[key], 2) for key in ("wall_s", "processor_s")}
    write_text(outputs["picks"], _csv(picks))
    write_text(outputs["classes"], _csv(evaluation.class_table()))
    confusion = evaluation.confusion().to_csv(index_label="true", lineterminator="\n")
    write_text(outputs["confusion"], confusion)
    settled = {key: tuned[key] for key in tuned if key not in ("cost", "figures")}
    write_json(
        outputs["scores"],
        evaluation.to_json()
        | {"tuned": settled, "tuned_to": tuned["figures"]}
        | {"cost": {**total, "threads": before["threads"], "machine": before["machine"]}},
    )
    score = evaluation.one_to_one
    log.info("precision %.3f, recall %.3f, F1 %.3f", score.precision, score.recall, score.f1)


def _table(found: Found, transform: VolumeTransform) -> pd.DataFrame:
    table = pd.DataFrame(transform.to_given(found.zyx_vox), columns=COORDINATES)
    table["score"] = found.score
    if found.classes is not None:
        table["class"] = found.classes
    return table


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
