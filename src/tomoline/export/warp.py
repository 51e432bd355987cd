"""Warp and M: `WarpTools ts_export_particles`, coordinates in voxels of the given tomogram.

`rlnMicrographName` is `<tilt series>.tomostar`, by which Warp finds the tilt series. The voxel size
goes on its command line (`--coords_angpix`); the file's first line says which. 0 is the centre of
the first voxel. Versions since 2025 refuse a table without Euler angles, so there are zeros: the
orientations are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from tomoline.export.dialect import Dialect, Place, TomogramParticles
from tomoline.export.relion import (
    CORNER,
    read_judged,
    read_names,
    read_rows,
    write_class_files,
    write_plain,
)
from tomoline.settings import ExportSettings


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles, in its own voxels."""
    _write([tomogram], path)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.star and one <class>.star a class, all in voxels of the first tomogram."""
    combined = folder / "particles.star"
    _write(tomograms, combined)

    def write_class(path: Path, name: str) -> None:
        _write(tomograms, path, only_class=name)

    return [combined, *write_class_files(tomograms, folder, settings, write_class)]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's particles, in its own voxels, or those that the first line names.

    Angles are dropped, `rlnOrigin*` not applied.
    """
    raw, zyx = read_rows(path, place, CORNER)
    factor = (_stated_size(path) or place.geometry.voxel_size_angstrom) / (
        place.geometry.voxel_size_angstrom
    )
    return read_judged(raw, zyx * factor, place)


_STATED = "# --coords_angpix "


def _write(
    tomograms: Sequence[TomogramParticles], path: Path, *, only_class: str | None = None
) -> None:
    voxel = tomograms[0].geometry.voxel_size_angstrom
    comment = _STATED.removeprefix("# ") + repr(voxel)
    write_plain(tomograms, path, _columns(voxel), only_class=only_class, comment=comment)


def _columns(voxel_size_angstrom: float) -> Callable[[TomogramParticles], pd.DataFrame]:
    """Columns in voxels of one size: Warp is told one for the whole file."""

    def columns(tomogram: TomogramParticles) -> pd.DataFrame:
        factor = tomogram.geometry.voxel_size_angstrom / voxel_size_angstrom
        zyx = tomogram.zyx_vox() * factor
        table = pd.DataFrame(zyx[:, ::-1], columns=list(CORNER[::-1]))
        for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
            table[name] = 0.0
        table["rlnMicrographName"] = f"{tomogram.tilt_series}.tomostar"
        return table

    return columns


def _stated_size(path: Path) -> float | None:
    with path.open(encoding="utf-8") as stream:
        first = stream.readline()
    return float(first.removeprefix(_STATED)) if first.startswith(_STATED) else None


DIALECT = Dialect(
    name="warp",
    file_name="warp.star",
    combined_name="particles.star",
    description="Warp and M: voxels of the given tomogram, with --coords_angpix",
    write=write,
    write_combined=write_combined,
    read=read,
    names=read_names,
)
