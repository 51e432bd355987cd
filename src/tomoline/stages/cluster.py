"""Candidate centres from the mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume
from tomoline.io.tables import ACCEPTED, REJECTED, candidate_table, write_candidates
from tomoline.log import get_logger
from tomoline.networks.cards import load_card
from tomoline.ops.clusters import Clusters, find_clusters, rejection_reasons
from tomoline.settings import ClusterSettings

SETTINGS = ClusterSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: ClusterSettings
) -> None:
    """Find the candidates of one tomogram.

    Inputs `probability` and `mask` (MRC) and `card` (the localizer's); output `candidates`
    (candidates.csv), in which what is not taken for a particle stands with its reason.
    """
    probability, mask = open_volume(inputs["probability"]), open_volume(inputs["mask"])
    if probability.shape != mask.shape:
        raise InputError(
            inputs["mask"], expected=f"{probability.shape} voxels as in {inputs['probability']}",
            found=str(mask.shape), remedy="delete both and run again",
        )  # fmt: skip
    card = load_card(inputs["card"])
    bandwidth = settings.bandwidth_vox or card.bandwidth_vox
    if bandwidth is None:
        raise InputError(
            inputs["card"], expected="a localizer's bandwidth_vox", found="none",
            remedy="correct models.localizer, or set cluster.bandwidth_vox",
        )  # fmt: skip
    found = find_clusters(
        mask, probability, bandwidth_vox=bandwidth, split_above_vox=settings.split_above_vox,
        merge_distance_vox=settings.merge_distance_vox,
    )  # fmt: skip
    reasons = rejection_reasons(
        found, mask.shape, min_size_vox=settings.min_size_vox, max_size_vox=settings.max_size_vox,
        min_score=settings.min_score, border_vox=settings.border_vox,
    )  # fmt: skip
    write_candidates(outputs["candidates"], _table(found, reasons))
    share = int(found.size_vox.sum()) / mask.size
    if share > 0.2:
        log.warning("%.0f %% of the volume is marked as particle; is the contrast right?",
                    100 * share)  # fmt: skip
    log.info("%d candidates, %d of them accepted (bandwidth %g voxels)",
             len(reasons), reasons.count(""), bandwidth)  # fmt: skip
    for reason, number in sorted(Counter(reasons).items()):
        if reason:
            log.info("%d rejected: %s", number, reason)


def _table(found: Clusters, reasons: list[str]) -> Any:
    z, y, x = found.centres.T
    return candidate_table(
        {
            "candidate_id": np.arange(1, len(reasons) + 1),
            "z_prepared_vox": z,
            "y_prepared_vox": y,
            "x_prepared_vox": x,
            "status": [REJECTED if reason else ACCEPTED for reason in reasons],
            "reason": reasons,
            "score": found.score,
            "mean_probability": found.mean_probability,
            "size_vox": found.size_vox,
        }
    )
