"""RELION-5: centred coordinates in angstrom.

`particles.star` and `<class>.star` go straight into RELION-5's extraction as particle sets;
`import.star` is the two-column list for its Import job (`relion_tomo_import_coordinates`), which
reads any single file as such a list. That importer looks at the first row of each listed file, so
tomograms without particles are left out of the list.

`relion_centre: picker` (default) subtracts (N/2 - 1) unbinned pixels, as RELION's Python picker
does; `cpp` subtracts N/2, what its C++ programs add again; see export/geometry.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from tomoline.export.dialect import Dialect, Place, TomogramParticles
from tomoline.export.relion import (
    CENTRED,
    read_judged,
    read_names,
    read_origins,
    read_rows,
    write_class_files,
    write_relion,
)
from tomoline.io.star import write_star
from tomoline.settings import ExportSettings

VERSION = 50001


def centred_coordinates(tomogram: TomogramParticles, settings: ExportSettings) -> pd.DataFrame:
    """Columns rlnCenteredCoordinate{X,Y,Z}Angst."""
    zyx = tomogram.geometry.to_centred_angstrom(tomogram.zyx_vox(), centre=settings.relion_centre)
    return pd.DataFrame(zyx[:, ::-1], columns=list(CENTRED[::-1]))


_write = partial(write_relion, coordinates=centred_coordinates, version=VERSION)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's particles."""
    _write([tomogram], path, settings)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.star, import.star and one <class>.star for each wanted class."""
    combined, listing = folder / "particles.star", folder / "import.star"
    _write(tomograms, combined, settings)
    _write_import_list(tomograms, listing)

    def write_class(path: Path, name: str) -> None:
        _write(tomograms, path, settings, only_class=name)

    return [combined, listing, *write_class_files(tomograms, folder, settings, write_class)]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's particles, their origins taken off (`read_origins`)."""
    raw, zyx = read_rows(path, place, CENTRED)
    zyx = zyx - read_origins(raw, path)
    voxels = place.geometry.from_centred_angstrom(zyx, centre=place.relion_centre)
    return read_judged(raw, voxels, place)


def _write_import_list(tomograms: Sequence[TomogramParticles], path: Path) -> None:
    rows = [
        # RELION resolves paths from its own project folder, so only absolute ones are safe.
        (tomogram.tilt_series, str(tomogram.star_path.resolve()))
        for tomogram in tomograms
        if tomogram.star_path is not None and len(tomogram.particles)
    ]
    table = pd.DataFrame(rows, columns=["rlnTomoName", "rlnTomoImportParticleFile"])
    write_star(path, {"particles": table}, comment=f"version {VERSION}")


DIALECT = Dialect(
    name="relion5",
    file_name="relion5.star",
    combined_name="particles.star",
    description="RELION-5 particle set: centred coordinates in angstrom, with optics",
    write=write,
    write_combined=write_combined,
    read=read,
    names=read_names,
)
