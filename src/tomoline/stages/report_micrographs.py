"""Stage report_micrographs: the page, the table and the figures of a data set of micrographs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tomoline.evaluation.detection import Ranked, curve_of, detection
from tomoline.io.atomic import write_json, write_text
from tomoline.io.picks import read_picks, read_truth
from tomoline.log import get_logger
from tomoline.ops.micrographs import LOW
from tomoline.report.micrographs import MicrographResult, MicrographsResult, micrographs_page
from tomoline.report.sources import read_json
from tomoline.settings import MicrographDatasetSettings, MicrographsSettings, validated
from tomoline.stages.combine_picks import exposure_of

SETTINGS = MicrographsSettings
log = get_logger(__name__)

COLUMNS = ("micrograph", "picks", "rejected", "known", "precision", "recall", "f1")


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: MicrographsSettings,
    dataset: Mapping[str, Any],
    truths: Mapping[str, str],
    left_out: Sequence[Mapping[str, str]] = (),
    failed: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a data set's page (HTML), table (CSV) and evaluation (JSON; empty without truth).

    Inputs `picks`, `facts` and `pictures` of its micrographs, in one order; outputs `page`,
    `table`, `evaluation`. `truths` names the known particles of those micrographs that have some.
    `left_out` and `failed` have `micrograph`, `state` and `reason`.
    """
    data = validated(MicrographDatasetSettings, dataset, source="data set")
    rows: list[MicrographResult] = []
    ranked: list[Ranked] = []
    for picks, facts, picture in zip(
        inputs["picks"], inputs["facts"], inputs["pictures"], strict=True
    ):
        row, rank = _result(Path(picks), Path(facts), Path(picture), data, truths)
        rows.append(row)
        ranked += [rank] if rank else []
    evaluation = _evaluated(ranked, rows[0].facts["threshold"]) if ranked else {}
    write_json(outputs["evaluation"], evaluation)
    _write_table(outputs["table"], rows)
    shown = {
        "picker": f"{rows[0].facts['model']}, head {rows[0].facts['head']}" if rows else "-",
        "threshold": f"{rows[0].facts['threshold']:.3f}" if rows else "-",
        "particle diameter": f"{data.particle_diameter_angstrom:g} A",
        "least distance": f"{settings.min_distance:g} diameters",
        "edge": f"{settings.edge:g} diameters", "grids": str(settings.shifts),
    }  # fmt: skip
    result = MicrographsResult(
        dataset=data.name, micrographs=rows, evaluation=evaluation, failed=failed,
        left_out=left_out, settings=shown,
    )  # fmt: skip
    write_text(outputs["page"], micrographs_page(result, pictures=settings.pictures))
    log.info("%s: %d micrographs on the page", data.name, len(rows))


def _result(
    picks: Path, facts: Path, picture: Path, data: MicrographDatasetSettings,
    truths: Mapping[str, str],
) -> tuple[MicrographResult, Ranked | None]:  # fmt: skip
    """A micrograph's results and, where it has a truth, its ranked candidates."""
    own, table = read_json(facts), read_picks(picks)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    name = own["micrograph"]
    if not truths.get(name):
        return MicrographResult(micrograph=name, facts=own, picks=table, picture=pixels), None
    known = read_truth(truths[name], exposure_of(facts, data))
    true_yx = known[["y_px", "x_px"]].to_numpy(float).reshape(-1, 2)
    # Candidates below the threshold are where the curves go on; those too close to a better one,
    # at the edge or in the mask are no picks at any threshold.
    kept = table[(table["status"] == "accepted") | (table["reason"] == LOW)]
    rank = Ranked(
        yx=kept[["y_px", "x_px"]].to_numpy(float).reshape(-1, 2),
        score=kept["score"].to_numpy(float), true_yx=true_yx,
        diameter_px=float(own["diameter_px"]),
    )  # fmt: skip
    row = MicrographResult(
        micrograph=name, facts=own, picks=table, picture=pixels, truth=true_yx,
        figures=detection([rank]).at(float(own["threshold"])),
    )  # fmt: skip
    return row, rank


def _evaluated(ranked: Sequence[Ranked], threshold: float) -> dict[str, Any]:
    result = detection(ranked)
    number = {key: None if math.isnan(value) else round(value, 6)
              for key, value in (("ap", result.ap), ("auroc", result.auroc))}  # fmt: skip
    if number["ap"] is None:  # truths that are all empty
        return {}
    return {
        **number, "particles": result.particles, "micrographs": len(ranked),
        "at_threshold": {k: round(v, 6) for k, v in result.at(threshold).items()},
        "best_threshold": round(result.best_threshold(), 6), "curve": curve_of(result),
    }  # fmt: skip


def _write_table(path: str | Path, rows: Sequence[MicrographResult]) -> None:
    lines = [",".join(COLUMNS)]
    for row in rows:
        known = "" if row.truth is None else str(len(row.truth))
        own = [f"{row.figures[k]:.6f}" if row.figures else "" for k in COLUMNS[4:]]
        count = len(row.accepted)
        lines.append(
            ",".join([row.micrograph, str(count), str(len(row.picks) - count), known, *own])
        )
    write_text(path, "\n".join(lines) + "\n")
