"""EMAN2: info/<tilt series>_info.json with `boxes_3d`, as e2spt_boxer.py reads and writes it.

A box is `[x, y, z, method, score, class]`; x, y and z are unbinned pixels (`apix_unbin`) from voxel
size // 2 of the tomogram. The boxer turns them back by the tomogram at hand alone, so how that was
binned does not matter. `class_list` names the classes; its `boxsize`, in unbinned pixels too, is
only what is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.export.dialect import (
    Dialect,
    Place,
    TomogramParticles,
    listed_classes,
    safe_file_name,
    write_list,
)
from tomoline.export.geometry import TomogramGeometry
from tomoline.io.annotations import annotation_table
from tomoline.io.atomic import write_json
from tomoline.settings import ExportSettings

METHOD = "tomoline"
BOX_VOX = 32
DECIMALS = 4


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's boxes."""
    _write(tomogram, path, listed_classes([tomogram]))


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write info/<tilt series>_info.json a tomogram, and index.csv, which lists them."""
    classes = listed_classes(tomograms)
    index, rows, written = folder / "index.csv", [], []
    for tomogram in tomograms:
        path = folder / "info" / f"{safe_file_name(tomogram.tilt_series)}_info.json"
        _write(tomogram, path, classes)
        rows.append((tomogram.tilt_series, f"info/{path.name}", len(tomogram.particles)))
        written.append(path)
    write_list(index, ("tilt_series", "file", "particles"), rows)
    return [index, *written]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's boxes; without `apix_unbin` they are voxels from the corner (before 2018).

    The method is dropped.
    """
    raw = _json(path)
    boxes, named = raw.get("boxes_3d") or [], raw.get("class_list") or {}
    try:
        xyz = np.array([box[:3] for box in boxes], dtype=float).reshape(-1, 3)
        scores = [float(box[4]) if len(box) > 4 else 0.0 for box in boxes]
        numbers = [str(int(box[5])) if len(box) > 5 else "0" for box in boxes]
        classes = [str(named.get(number, {}).get("name", number)) for number in numbers]
        unbinned = raw.get("apix_unbin")
        if unbinned is not None:
            binning = place.geometry.voxel_size_angstrom / float(unbinned)
            xyz = xyz / binning + _centre_xyz(place.geometry)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            path,
            expected="boxes_3d of [x, y, z, method, score, class] and class_list",
            found=str(error),
            remedy="give the info file that EMAN2's boxer wrote",
        ) from error
    return annotation_table(xyz[:, ::-1], classes, scores=scores)


def _write(tomogram: TomogramParticles, path: Path, classes: Sequence[str]) -> None:
    geometry = tomogram.geometry
    xyz = (tomogram.zyx_vox()[:, ::-1] - _centre_xyz(geometry)) * geometry.binning
    rows = zip(xyz, tomogram.scores(), tomogram.class_names(), strict=True)
    boxes = [
        [*(_rounded(value) for value in place), METHOD, _rounded(score), classes.index(name)]
        for place, score, name in rows
    ]
    size = round(BOX_VOX * geometry.binning)
    named = {str(n): {"name": name, "boxsize": size} for n, name in enumerate(classes)}
    content: dict[str, Any] = {
        "apix_unbin": geometry.pixel_size_angstrom,
        "boxes_3d": boxes,
        "class_list": named,
    }
    write_json(path, content)


def _centre_xyz(geometry: TomogramGeometry) -> NDArray[np.int64]:
    return np.array(geometry.shape_zyx[::-1]) // 2


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS) + 0.0  # no -0.0


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            path, expected="an info file of EMAN2 (JSON)", found=str(error),
            remedy="give info/<name>_info.json of an EMAN2 project",
        ) from error  # fmt: skip
    if not isinstance(raw, dict) or not isinstance(raw.get("boxes_3d", []), list):
        raise InputError(
            path, expected="an info file of EMAN2 with boxes_3d", found="other JSON",
            remedy="give info/<name>_info.json of an EMAN2 project",
        )  # fmt: skip
    return raw


DIALECT = Dialect(
    name="eman2",
    file_name="eman2_info.json",
    combined_name="index.csv",
    description="EMAN2 info files: unbinned pixels from the tomogram's middle voxel",
    write=write,
    write_combined=write_combined,
    read=read,
    opens_tomogram=True,
)
