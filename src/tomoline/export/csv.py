"""CSV: the canonical table itself, in voxels of the tomogram as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.export.dialect import Dialect, Place, TomogramParticles
from tomoline.export.relion import write_class_files
from tomoline.io.annotations import read_named_table, read_text_table
from tomoline.io.tables import write_particles
from tomoline.settings import ExportSettings


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    write_particles(path, tomogram.particles)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.csv with the particles of all tomograms, and one <class>.csv a class."""
    combined = folder / "particles.csv"
    _write(tomograms, combined)

    def write_class(path: Path, name: str) -> None:
        _write([tomogram.of_class(name) for tomogram in tomograms], path)

    return [combined, *write_class_files(tomograms, folder, settings, write_class, suffix=".csv")]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read any table with columns x, y, z (or x_vox, ...), and class, radius and score if there.

    A column `tomogram` picks the rows; a status other than accepted leaves a row out.
    """
    raw = read_text_table(path)
    if "tomogram" in raw:
        raw = raw[np.array([place.is_named(name) for name in raw["tomogram"]], dtype=bool)]
    if "status" in raw:
        raw = raw[raw["status"] == "accepted"]
    return read_named_table(raw.reset_index(drop=True), path)


def names(path: Path) -> list[str]:
    """The tomograms that the table names."""
    raw = read_text_table(path)
    return list(dict.fromkeys(raw["tomogram"])) if "tomogram" in raw else []


def _write(tomograms: Sequence[TomogramParticles], path: Path) -> None:
    tables = [tomogram.particles for tomogram in tomograms]
    filled = [table for table in tables if len(table)] or tables[:1]
    if not all(EXPECTED_PRECISION in table for table in filled):  # of runs with different cards
        filled = [table.drop(columns=EXPECTED_PRECISION, errors="ignore") for table in filled]
    write_particles(path, pd.concat(filled, ignore_index=True))


DIALECT = Dialect(
    name="csv",
    file_name="particles.csv",
    combined_name="particles.csv",
    description="The canonical table: voxels of the given tomogram, scores and probabilities",
    write=write,
    write_combined=write_combined,
    read=read,
    names=names,
)
