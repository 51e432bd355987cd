"""RELION-3 subtomograms: coordinates in the tomogram's own voxels, 0 at the centre of the first.

RELION-3 cuts subtomograms out of the tomogram's file (`relion_preprocess --extract`). It cuts off
what is behind the decimal point: at 13.7 its box is centred on voxel 13, half a voxel off in the
mean (seen with RELION 3.1.3; tests/interop/test_relion.py has the real program do it). So
`rlnCoordinate*` are the nearest whole voxels, and `rlnOrigin{X,Y,Z}Angst` hold the rest, which
RELION keeps and refines: place = coordinate - origin / voxel size.

For a data set there are, beside `particles.star`: `micrographs.star`, the tomograms as RELION-3.1
lists them, and in `coords/` one file a tomogram where RELION looks for it
(`<coord_dir>/<tomogram without suffix><coord_suffix>`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.export.dialect import Dialect, Place, TomogramParticles
from tomoline.export.relion import (
    CORNER,
    ORIGIN_ANGSTROM,
    read_judged,
    read_names,
    read_rows,
    write_class_files,
    write_plain,
)
from tomoline.io.star import write_star
from tomoline.settings import ExportSettings

SUFFIX = "_tomoline.star"
ORIGIN_VOXELS = tuple(f"rlnOrigin{axis}" for axis in "ZYX")  # RELION before 3.1


def columns(tomogram: TomogramParticles) -> pd.DataFrame:
    """Columns rlnMicrographName (the tomogram's file), rlnCoordinate{X,Y,Z} and rlnOrigin*Angst."""
    zyx = tomogram.zyx_vox()
    whole = np.rint(zyx)
    table = pd.DataFrame({"rlnMicrographName": [tomogram.file_path] * len(zyx)})
    places = pd.DataFrame(whole[:, ::-1], columns=list(CORNER[::-1]))
    rest = (whole - zyx) * tomogram.geometry.voxel_size_angstrom
    origins = pd.DataFrame(rest[:, ::-1], columns=list(ORIGIN_ANGSTROM[::-1]))
    return pd.concat([table, places, origins], axis=1)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    write_plain([tomogram], path, columns)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.star, one <class>.star a class, micrographs.star and coords/."""
    combined, listing = folder / "particles.star", folder / "micrographs.star"
    write_plain(tomograms, combined, columns)
    _write_micrographs(tomograms, listing)
    own = []
    for tomogram in tomograms:
        path = folder / "coords" / coordinate_file(tomogram.file_path)
        write_plain([tomogram], path, columns)
        own.append(path)

    def write_class(path: Path, name: str) -> None:
        write_plain(tomograms, path, columns, only_class=name)

    classes = write_class_files(tomograms, folder, settings, write_class)
    return [combined, listing, *own, *classes]


def coordinate_file(tomogram: str) -> Path:
    """Where below --coord_dir RELION looks for a tomogram's coordinates."""
    return Path(str(Path(tomogram).with_suffix("")).lstrip("/") + SUFFIX)


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's particles, their origins taken off."""
    raw, zyx = read_rows(path, place, CORNER)
    if set(ORIGIN_ANGSTROM) <= set(raw.columns):
        origins = raw[list(ORIGIN_ANGSTROM)].to_numpy(dtype=float)
        zyx = zyx - origins / place.geometry.voxel_size_angstrom
    elif set(ORIGIN_VOXELS) <= set(raw.columns):
        zyx = zyx - raw[list(ORIGIN_VOXELS)].to_numpy(dtype=float)
    return read_judged(raw, zyx, place)


def _write_micrographs(tomograms: Sequence[TomogramParticles], path: Path) -> None:
    """The tomograms and their voxel sizes, without which RELION-3.1 cuts nothing."""
    dataset = tomograms[0].dataset
    sizes = dict.fromkeys(tomogram.geometry.voxel_size_angstrom for tomogram in tomograms)
    groups = {size: number for number, size in enumerate(sizes, 1)}
    optics = pd.DataFrame(
        [
            {
                "rlnOpticsGroupName": f"opticsGroup{number}",
                "rlnOpticsGroup": number,
                "rlnMicrographPixelSize": float(size),
                "rlnVoltage": float(dataset.voltage_kv),
                "rlnSphericalAberration": float(dataset.spherical_aberration_mm),
                "rlnAmplitudeContrast": float(dataset.amplitude_contrast),
            }
            for size, number in groups.items()
        ]
    )
    rows = [(t.file_path, groups[t.geometry.voxel_size_angstrom]) for t in tomograms]
    listed = pd.DataFrame(rows, columns=["rlnMicrographName", "rlnOpticsGroup"])
    write_star(path, {"optics": optics, "micrographs": listed}, comment="version 30001")


DIALECT = Dialect(
    name="relion3",
    file_name="relion3.star",
    combined_name="particles.star",
    description="RELION-3 subtomograms: voxels of the tomogram's file",
    write=write,
    write_combined=write_combined,
    read=read,
    names=read_names,
    opens_tomogram=True,
    names_path=True,
)
