"""Stage combine_picks: all micrographs' picks of a data set in one file a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.io.atomic import atomic_path
from tomoline.io.picks import (
    Exposure,
    accepted,
    read_picks,
    write_box,
    write_cryosparc,
    write_picks,
    write_relion,
)
from tomoline.io.star import write_star
from tomoline.log import get_logger
from tomoline.report.sources import read_json
from tomoline.settings import MicrographDatasetSettings, MicrographsSettings, validated

SETTINGS = MicrographsSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: MicrographsSettings,
    dataset: Mapping[str, Any],
) -> None:
    """Write a data set's files.

    Inputs `picks` (picks.csv), `facts` (JSON) and `stars` (RELION files) of its micrographs.
    Outputs by dialect: `relion` (particles.star) and `relion_list` (autopick.star, RELION's list of
    micrographs and their coordinate files), `cryosparc` (particles.star), `csv` (particles.csv) and
    `eman`, a folder with a .box file a micrograph, named as the micrograph's file is.
    """
    del settings  # which dialects there are, the outputs say
    data = validated(MicrographDatasetSettings, dataset, source="data set")
    exposures = [exposure_of(Path(path), data) for path in inputs["facts"]]
    picks = joined([read_picks(path) for path in inputs["picks"]])
    if "relion" in outputs:
        write_relion(outputs["relion"], picks, exposures)
        files = [str(path) for path in inputs["stars"]]
        listed = {
            "rlnMicrographName": [e.path for e in exposures], "rlnMicrographCoordinates": files
        }  # fmt: skip
        write_star(outputs["relion_list"], {"coordinate_files": pd.DataFrame(listed)})
    if "cryosparc" in outputs:
        write_cryosparc(outputs["cryosparc"], picks, exposures)
    if "csv" in outputs:
        write_picks(outputs["csv"], accepted(picks))
    if "eman" in outputs:
        with atomic_path(outputs["eman"]) as folder:
            Path(folder).mkdir()
            for exposure in exposures:
                own = picks[picks["micrograph"] == exposure.micrograph]
                write_box(Path(folder) / f"{Path(exposure.path).stem}.box", own, exposure)
    log.info("%d picks of %d micrographs", len(accepted(picks)), len(exposures))


def exposure_of(facts: Path, data: MicrographDatasetSettings) -> Exposure:
    """A micrograph as the dialects need it, from what the stage `pick` wrote of it."""
    own = read_json(facts)
    ny, nx = own["shape_yx"]
    return Exposure(
        micrograph=own["micrograph"], path=own["path"], shape_yx=(int(ny), int(nx)),
        pixel_size_angstrom=float(own["pixel_size_angstrom"]), voltage_kv=data.voltage_kv,
        spherical_aberration_mm=data.spherical_aberration_mm,
        amplitude_contrast=data.amplitude_contrast,
    )  # fmt: skip


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one after the other."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
