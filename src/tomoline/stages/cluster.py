"""Candidate centres from the mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import STATISTICS, VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.domain import judge, to_json
from tomoline.io.atomic import write_json
from tomoline.io.mrc import open_volume
from tomoline.io.tables import ACCEPTED, REJECTED, candidate_table, write_candidates
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.clusters import Clusters, find_clusters, rejection_reasons
from tomoline.ops.contrast import contrasts
from tomoline.ops.statistics import byte_counts, candidate_statistics, probability_statistics
from tomoline.settings import ClusterSettings

SETTINGS = ClusterSettings
log = get_logger(__name__)
_SAME_MASK = 0.1


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: ClusterSettings
) -> None:
    """Find the candidates of one tomogram.

    Inputs `probability` and `mask` (MRC), the prepared `volume`, `transform` (prepared.json) and
    `card` (the localizer's). Outputs `candidates` (candidates.csv), in which what is not taken for
    a particle stands with its reason, and `domain` (domain.json): the tomogram's statistics and
    whether the model was made for such (`tomoline.evaluation.domain`). Work goes on whatever that
    says.
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
    reasons = reasons_of(found, mask.shape, settings)
    write_candidates(outputs["candidates"], table_of(found, reasons, open_volume(inputs["volume"])))
    share = int(found.size_vox.sum()) / mask.size
    if share > 0.2:
        log.warning("%.0f %% of the volume is marked as particle; is the contrast right?",
                    100 * share)  # fmt: skip
    statistics = {
        **_volume_statistics(VolumeTransform.load(inputs["transform"]), probability, card),
        **_candidate_statistics(found, reasons, mask, probability, card, settings),
    }
    verdict = judge(statistics, card)
    write_json(outputs["domain"], to_json(statistics, verdict))
    tell = log.warning if verdict.in_domain in ("doubtful", "no") else log.info
    tell("in the model's domain: %s. %s", verdict.in_domain, verdict.reason)
    log.info("%d candidates, %d of them accepted (bandwidth %g voxels)",
             len(reasons), reasons.count(""), bandwidth)  # fmt: skip
    for reason, number in sorted(Counter(reasons).items()):
        if reason:
            log.info("%d rejected: %s", number, reason)


def reasons_of(found: Clusters, shape_zyx: tuple[int, ...], settings: ClusterSettings) -> list[str]:
    """Why each cluster is no candidate; empty for those that are."""
    return rejection_reasons(
        found, shape_zyx, min_size_vox=settings.min_size_vox, max_size_vox=settings.max_size_vox,
        min_score=settings.min_score, border_vox=settings.border_vox,
    )  # fmt: skip


def _volume_statistics(
    transform: VolumeTransform, probability: NDArray[Any], card: ModelCard
) -> dict[str, float]:
    """What the voxels tell of the tomogram, to be compared with the card."""
    return {
        "given_voxel_size_angstrom": transform.given_voxel_size_angstrom,
        **transform.quality.get(STATISTICS, {}),
        **probability_statistics(byte_counts(probability), card.threshold or 0.5),
    }


def _candidate_statistics(
    found: Clusters,
    reasons: list[str],
    mask: NDArray[Any],
    probability: NDArray[Any],
    card: ModelCard,
    settings: ClusterSettings,
) -> dict[str, float]:
    """What the candidates at the card's own threshold tell, which is what the card speaks of.

    A lower threshold, which a classifier that sifts asks for, makes candidates of noise too. From a
    mask of a higher one, or after an opening, only their number is known.
    """
    marked = np.asarray(mask) > 0
    usual = np.asarray(probability) >= (card.threshold or 0.5)
    more, slack = int(marked.sum()) - int(usual.sum()), _SAME_MASK * max(int(usual.sum()), 1)
    if more > slack and card.bandwidth_vox is not None:
        usual &= marked  # what an opening took away stays away
        found = find_clusters(usual, probability, bandwidth_vox=card.bandwidth_vox)
        reasons = reasons_of(found, mask.shape, settings)
    accepted = np.array([not reason for reason in reasons], bool)
    told = candidate_statistics(found.score[accepted], found.size_vox[accepted], mask.size)
    if -more > slack:
        return {key: value for key, value in told.items() if key.startswith("candidates")}
    return told


def table_of(found: Clusters, reasons: list[str], volume: NDArray[Any]) -> pd.DataFrame:
    """The candidates' table of these clusters of a prepared volume."""
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
            "contrast": contrasts(volume, found.centres),
        }
    )
