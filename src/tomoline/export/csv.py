"""CSV: the canonical table itself, in voxels of the tomogram as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.export.dialect import Dialect, TomogramParticles
from tomoline.io.tables import write_particles
from tomoline.settings import ExportSettings


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    write_particles(path, tomogram.particles)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.csv with the particles of all tomograms."""
    path = folder / "particles.csv"
    tables = [tomogram.particles for tomogram in tomograms]
    filled = [table for table in tables if len(table)] or tables[:1]
    if not all(EXPECTED_PRECISION in table for table in filled):  # of runs with different cards
        filled = [table.drop(columns=EXPECTED_PRECISION, errors="ignore") for table in filled]
    write_particles(path, pd.concat(filled, ignore_index=True))
    return [path]


DIALECT = Dialect(
    name="csv",
    file_name="particles.csv",
    combined_name="particles.csv",
    description="The canonical table: voxels of the given tomogram, scores and probabilities",
    write=write,
    write_combined=write_combined,
)
