"""Subtomograms of the accepted candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header
from tomoline.io.subtomograms import write_subtomograms
from tomoline.io.tables import ACCEPTED, read_candidates
from tomoline.log import get_logger
from tomoline.networks.cards import load_card
from tomoline.ops.patches import box_starts, cut_patches, volume_mean
from tomoline.settings import ExtractSettings

SETTINGS = ExtractSettings
log = get_logger(__name__)

CENTRE_COLUMNS = ["z_prepared_vox", "y_prepared_vox", "x_prepared_vox"]


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: ExtractSettings
) -> None:
    """Cut the boxes of one tomogram.

    Inputs `candidates` (candidates.csv), `volume` (prepared.mrc) and `card` (the classifier's);
    output `subtomograms` (HDF5, see `tomoline.io.subtomograms`). Boxes are cut at rounded centres,
    without interpolation; what lies outside the volume is the volume's mean.
    """
    box = settings.box_vox or load_card(inputs["card"]).box_vox
    if box is None:
        raise InputError(
            inputs["card"], expected="a classifier's box_vox", found="none",
            remedy="correct models.classifier, or set extract.box_vox",
        )  # fmt: skip
    header = read_header(inputs["volume"])
    volume = open_volume(inputs["volume"], header)
    table = read_candidates(inputs["candidates"])
    table = table[table["status"] == ACCEPTED]
    centres = table[CENTRE_COLUMNS].to_numpy(np.float64)
    outside = ((centres < -0.5) | (centres > np.array(volume.shape) - 0.5)).any(axis=1)
    if outside.any():
        raise InputError(
            inputs["candidates"], expected=f"centres within {inputs['volume']} {volume.shape}",
            found=f"{int(outside.sum())} outside", remedy="delete both files and run again",
        )  # fmt: skip
    patches = cut_patches(volume, centres, box_vox=box, fill=volume_mean(volume))
    write_subtomograms(
        outputs["subtomograms"],
        (patch.values for patch in patches),
        candidate_id=table["candidate_id"].to_numpy(),
        centre_zyx=centres - box_starts(centres, box),
        box_vox=box,
        voxel_size_angstrom=header.voxel_size_xyz[0],
    )
    log.info("%d subtomograms of %d voxels", len(table), box)
