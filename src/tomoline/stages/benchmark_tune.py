"""A method's settings: those with the best figures on a group's validation tomograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomoline.contracts import VolumeTransform
from tomoline.evaluation.scores import COORDINATES
from tomoline.io.atomic import write_json
from tomoline.log import get_logger
from tomoline.peers.base import Case
from tomoline.settings import BenchmarkMethod, BenchmarkTomogram, EvaluateSettings
from tomoline.stages.benchmark import clocked, method_of, scene_of, truth_of

SETTINGS = BenchmarkMethod
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: BenchmarkMethod,
    tomograms: Sequence[Mapping[str, Any]],
    work: str,
) -> None:
    """Tune on `tomograms` (settings of each), with the inputs in the same order.

    Inputs `responses`, `volumes`, `transforms` and `densities`; output `tuned` (JSON).
    """
    cases = []
    for k, raw in enumerate(tomograms):
        tomogram = BenchmarkTomogram.model_validate(raw)
        files = {"volume": inputs["volumes"][k], "transform": inputs["transforms"][k]}
        transform = VolumeTransform.load(files["transform"])
        truth, _ = truth_of(tomogram, transform)
        scale = float(np.mean(transform.scale_zyx))
        cases.append(
            Case(
                scene=scene_of(files, tomogram, work=work),
                response=Path(inputs["responses"][k]),
                zyx_vox=transform.to_prepared(truth[COORDINATES].to_numpy(float)),
                classes=[str(name) for name in truth["class"]],
                hit_distance_vox=EvaluateSettings().hit_distance_vox / scale,
            )
        )
    method = method_of(settings, densities=Path(inputs["densities"]))
    with clocked() as cost:
        tuned = method.tune(cases)
    write_json(outputs["tuned"], {**tuned, "cost": cost})
    log.info("F1 %.3f on %d tomograms with %s", tuned["figures"]["f1"], len(cases), tuned)
