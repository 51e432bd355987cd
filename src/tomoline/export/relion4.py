"""RELION-4: coordinates in unbinned pixels from the corner, 0 at the centre of the first pixel.

RELION-4's own programs add one pixel when they read it, and reconstruct their tomograms from
origin 1, so that a voxel times the binning is what they expect. RELION-5 reads the same columns
without adding it: give RELION-5 its own dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from tomoline.export.dialect import Dialect, TomogramParticles
from tomoline.export.relion import write_relion
from tomoline.settings import ExportSettings


def corner_coordinates(tomogram: TomogramParticles, settings: ExportSettings) -> pd.DataFrame:
    """Columns rlnCoordinate{X,Y,Z}."""
    zyx = tomogram.geometry.to_unbinned(tomogram.zyx_vox())
    return pd.DataFrame(zyx[:, ::-1], columns=[f"rlnCoordinate{axis}" for axis in "XYZ"])


_write = partial(write_relion, coordinates=corner_coordinates, version=30001)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    _write([tomogram], path, settings)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.star, which RELION-4's import reads as it is."""
    path = folder / "particles.star"
    _write(tomograms, path, settings)
    return [path]


DIALECT = Dialect(
    name="relion4",
    file_name="relion4.star",
    combined_name="particles.star",
    description="RELION-4 particle set: unbinned pixels from the corner, with optics",
    write=write,
    write_combined=write_combined,
)
