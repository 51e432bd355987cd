"""CSV: the canonical table itself, in voxels of the tomogram as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tomoline.export.dialect import Dialect, TomogramParticles
from tomoline.io.atomic import write_text
from tomoline.settings import ExportSettings


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    _write_table(tomogram.particles, path)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.csv with the particles of all tomograms."""
    path = folder / "particles.csv"
    tables = [tomogram.particles for tomogram in tomograms]
    filled = [table for table in tables if len(table)] or tables[:1]
    _write_table(pd.concat(filled, ignore_index=True), path)
    return [path]


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


DIALECT = Dialect(
    name="csv",
    file_name="particles.csv",
    combined_name="particles.csv",
    description="The canonical table: voxels of the given tomogram, scores and probabilities",
    write=write,
    write_combined=write_combined,
)
