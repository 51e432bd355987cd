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

from tomoline.export.dialect import Dialect, Place, TomogramParticles
from tomoline.export.relion import (
    CORNER,
    read_judged,
    read_names,
    read_origins,
    read_rows,
    write_class_files,
    write_relion,
)
from tomoline.settings import ExportSettings


def corner_coordinates(tomogram: TomogramParticles, settings: ExportSettings) -> pd.DataFrame:
    """Columns rlnCoordinate{X,Y,Z}."""
    zyx = tomogram.geometry.to_unbinned(tomogram.zyx_vox())
    return pd.DataFrame(zyx[:, ::-1], columns=list(CORNER[::-1]))


_write = partial(write_relion, coordinates=corner_coordinates, version=30001)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    _write([tomogram], path, settings)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.star, which RELION-4's import reads as it is, and a <class>.star a class."""
    path = folder / "particles.star"
    _write(tomograms, path, settings)

    def write_class(path: Path, name: str) -> None:
        _write(tomograms, path, settings, only_class=name)

    return [path, *write_class_files(tomograms, folder, settings, write_class)]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's particles, their origins taken off (`read_origins`)."""
    raw, zyx = read_rows(path, place, CORNER)
    zyx = zyx - read_origins(raw, path) / place.geometry.pixel_size_angstrom
    return read_judged(raw, place.geometry.from_unbinned(zyx), place)


DIALECT = Dialect(
    name="relion4",
    file_name="relion4.star",
    combined_name="particles.star",
    description="RELION-4 particle set: unbinned pixels from the corner, with optics",
    write=write,
    write_combined=write_combined,
    read=read,
    names=read_names,
)
