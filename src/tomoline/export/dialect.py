"""What an exporter is given, what it promises, and which particles it may write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.errors import InputError
from tomoline.export.geometry import TomogramGeometry
from tomoline.settings import DatasetSettings, ExportSettings

PROBABILITY_PREFIX = "p_"


@dataclass(frozen=True, kw_only=True)
class TomogramParticles:
    """One tomogram's particle table with what is needed to place it.

    `particles` has PARTICLE_COLUMNS and one `p_<class>` column a class; `tilt_series` is the name
    that RELION and Warp know; `star_path` is where this tomogram's own RELION-5 file lies, for the
    import list.
    """

    tilt_series: str
    particles: pd.DataFrame
    geometry: TomogramGeometry
    dataset: DatasetSettings
    star_path: Path | None = None

    @property
    def classes(self) -> list[str]:
        """Class names in the model's order; what the table holds where it has no p_ columns."""
        named = [
            str(column).removeprefix(PROBABILITY_PREFIX)
            for column in self.particles.columns
            if str(column).startswith(PROBABILITY_PREFIX)
        ]
        if named:
            return named
        return sorted({str(name) for name in self.particles["class"].dropna()} - {""})

    def zyx_vox(self) -> NDArray[np.float64]:
        """Coordinates (n, 3) in voxels of the given tomogram."""
        return self.particles[["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float)


WriteOne = Callable[[TomogramParticles, Path, ExportSettings], None]
WriteAll = Callable[[Sequence[TomogramParticles], Path, ExportSettings], list[Path]]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One file format for one other program.

    `write` writes one tomogram's file; `write_combined` writes a dataset's files into a folder
    and returns them. Both are given tables that `selected` has been through.
    """

    name: str
    file_name: str
    combined_name: str
    description: str
    write: WriteOne
    write_combined: WriteAll


def selected(tomogram: TomogramParticles, settings: ExportSettings) -> TomogramParticles:
    """Keep accepted particles of the wanted classes and scores, ordered by `particle_id`.

    Raises InputError for a wanted class that the table's model does not know.
    """
    table = tomogram.particles
    if any(str(column).startswith(PROBABILITY_PREFIX) for column in table.columns):
        check_classes(settings.classes, tomogram.classes)
    keep = (table["status"] == "accepted") & (table["score"].astype(float) >= settings.min_score)
    if settings.min_expected_precision > 0:
        keep &= _expected_precision(table) >= settings.min_expected_precision
    if settings.classes:
        keep &= table["class"].isin(settings.classes)
    table = table[keep].sort_values("particle_id", kind="stable").reset_index(drop=True)
    return replace(tomogram, particles=table)


def _expected_precision(table: pd.DataFrame) -> pd.Series[float]:
    if EXPECTED_PRECISION not in table.columns:
        raise InputError(
            "export.min_expected_precision",
            expected=f"particles with the column {EXPECTED_PRECISION}",
            found="none: the localizer's card has no precision curve",
            remedy="run `tomoline calibrate` on the models, or set export.min_score instead",
        )
    return table[EXPECTED_PRECISION].astype(float)


def check_classes(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError for a class that is not known, listing those that are."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            "export.classes",
            expected=f"names among {', '.join(known)}",
            found=", ".join(unknown),
            remedy="correct the names in config.yaml, or leave `classes` empty for all",
        )


def class_order(tomograms: Sequence[TomogramParticles]) -> list[str]:
    """Every class of every table, first come first, so that numbers agree between tables."""
    return list(dict.fromkeys(name for tomogram in tomograms for name in tomogram.classes))
