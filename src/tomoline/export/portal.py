"""CZ CryoET Data Portal: a line of JSON a point, in voxels of the tomogram.

`{"type": "point", "location": {"x": ..., "y": ..., "z": ...}}`; 0 is the centre of the first voxel.
Such a file is one annotation of one object, so a data set gets a file a tilt series and class; a
line holds neither class nor score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.errors import InputError
from tomoline.export.dialect import (
    Dialect,
    Place,
    TomogramParticles,
    class_files,
    safe_file_name,
    write_list,
)
from tomoline.io.annotations import annotation_table
from tomoline.io.atomic import write_text
from tomoline.settings import ExportSettings

DECIMALS = 6
INDEX = "index.csv"


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's points, of all classes."""
    _write(tomogram, path)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write <tilt series>/<class>.ndjson for what was found, and index.csv, which lists them."""
    index, rows, written = folder / INDEX, [], []
    for tomogram in tomograms:
        series = safe_file_name(tomogram.tilt_series)
        for name, file in class_files(tomograms, settings).items():
            path = folder / series / f"{file}.ndjson"
            own = tomogram.of_class(name)
            if len(own.particles):
                _write(own, path)
                place = path.relative_to(folder).as_posix()
                rows.append((tomogram.tilt_series, name, place, len(own.particles)))
                written.append(path)
    write_list(index, ("tilt_series", "class", "file", "points"), rows)
    return [index, *written]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a file's points, or those of a folder's *.ndjson.

    A folder's files are of the classes that our list of them says, else of those of their names.
    Of a single file the class is the first of `class_names`, or none. Orientations are dropped.
    """
    files = sorted(path.glob("*.ndjson")) if path.is_dir() else [path]
    listed = _listed(path.parent / INDEX) if path.is_dir() else {}
    xyz, classes = [], []
    for file in files:
        own = listed.get(f"{path.name}/{file.name}", file.stem)
        name = own if path.is_dir() else next(iter(place.class_names), "")
        points = _points(file)
        xyz += points
        classes += [name] * len(points)
    zyx = np.array(xyz, dtype=float).reshape(-1, 3)[:, ::-1]
    return annotation_table(zyx, classes)


def _write(tomogram: TomogramParticles, path: Path) -> None:
    lines = []
    for place in tomogram.zyx_vox()[:, ::-1]:
        location = dict(zip("xyz", (round(float(v), DECIMALS) for v in place), strict=True))
        lines.append(json.dumps({"type": "point", "location": location}) + "\n")
    write_text(path, "".join(lines))


def _listed(index: Path) -> dict[str, str]:
    """The classes of files by `write_combined`'s list; empty where there is none."""
    if not index.is_file():
        return {}
    table = pd.read_csv(index, dtype=str, keep_default_na=False)
    known = {"file", "class"} <= set(table.columns)
    return dict(zip(table["file"], table["class"], strict=True)) if known else {}


def _points(path: Path) -> list[list[float]]:
    points = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                location = json.loads(line)["location"]
                points.append([float(location[axis]) for axis in "xyz"])
    except (FileNotFoundError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            path,
            expected='lines {"type": "point", "location": {"x": ..., "y": ..., "z": ...}}',
            found=f"{type(error).__name__} in line {len(points) + 1}: {error}",
            remedy="give an .ndjson file of points of the Data Portal",
        ) from error
    return points


DIALECT = Dialect(
    name="portal",
    file_name="portal.ndjson",
    combined_name=INDEX,
    description="CZ CryoET Data Portal points: voxels, one file a tilt series and class",
    write=write,
    write_combined=write_combined,
    read=read,
    keeps=frozenset(),
)
