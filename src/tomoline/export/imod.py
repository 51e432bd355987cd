"""IMOD: points as text, and as a model (.mod) where IMOD's `point2model` is installed.

Lines `object contour x y z score`: an object a class, one contour, numbers from 1. IMOD's x and y
count from the corner of the first voxel and its z from the middle of the first slice, so the centre
of the first voxel is (0.5, 0.5, 0). The names of the objects are in the model, and for the text in
a list beside it. `point2model -values 1 -scat points.txt points.mod` makes the model later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.export.dialect import (
    Dialect,
    Place,
    TomogramParticles,
    class_of_number,
    listed_classes,
    safe_file_name,
    write_class_list,
)
from tomoline.io import imod
from tomoline.io.annotations import annotation_table
from tomoline.io.atomic import write_text
from tomoline.log import get_logger
from tomoline.settings import ExportSettings

CORNER_XYZ = np.array([0.5, 0.5, 0.0])  # the centre of the first voxel
CLASSES = "classes.csv"
_PLAIN_VOLUMES = (".mrc", ".rec", ".map", ".st")
_log = get_logger(__name__)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's points, their .classes.csv, and the .mod where IMOD is found."""
    classes = listed_classes([tomogram])
    write_class_list(path.with_suffix(".classes.csv"), classes)
    _write(tomogram, path, classes)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write <tilt series>.txt (and .mod) a tomogram, and classes.csv, the objects' names."""
    classes = listed_classes(tomograms)
    written = [folder / CLASSES]
    write_class_list(folder / CLASSES, classes)
    for tomogram in tomograms:
        path = folder / f"{safe_file_name(tomogram.tilt_series)}.txt"
        written.append(path)
        written += _write(tomogram, path, classes)
    return written


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read points as text, as `model2point -object` or this module writes them.

    Lines of 3 (x y z), 4 (contour x y z) or 5 numbers (object contour x y z), and one more where
    there are scores and objects. Objects are classes, by the list beside the file or `class_names`.
    """
    table = _points(path)
    count = table.shape[1]
    first = max(0, min(count, 5) - 3)
    own = path.with_suffix(".classes.csv")
    class_of = class_of_number(own if own.is_file() else path.with_name(CLASSES), place)
    numbered = count >= 5
    classes = [class_of(int(n)) if numbered else class_of(1 if place.class_names else 0)
               for n in table[:, 0]]  # fmt: skip
    zyx = (table[:, first : first + 3] - CORNER_XYZ)[:, ::-1]
    return annotation_table(zyx, classes, scores=table[:, 5] if count > 5 else None)


def _write(tomogram: TomogramParticles, path: Path, classes: Sequence[str]) -> list[Path]:
    xyz = tomogram.zyx_vox()[:, ::-1] + CORNER_XYZ
    rows = zip(tomogram.class_names(), xyz, tomogram.scores(), strict=True)
    lines = [
        f"{classes.index(name) + 1} 1 {x:.6f} {y:.6f} {z:.6f} {score:.6f}\n"
        for name, (x, y, z), score in rows
    ]
    write_text(path, "".join(lines))
    model = path.with_suffix(".mod")
    if not imod.is_installed("point2model"):
        _log.info("%s: no .mod beside it, as IMOD's point2model was not found", path.name)
        return []
    if not lines:  # point2model refuses an empty file
        model.unlink(missing_ok=True)
        return []
    source = tomogram.source
    plain = source is not None and source.suffix in _PLAIN_VOLUMES and source.is_file()
    image = source if plain and not tomogram.is_turned else None
    how = imod.PointModel(names=tuple(classes), image=image, has_values=True)
    imod.points_to_model(path, model, how)
    return [model]


def _points(path: Path) -> NDArray[np.float64]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[float(field) for field in line.split()] for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise _fault(path, "a binary file", "write it as text: model2point -object") from error
    except FileNotFoundError as error:
        raise _fault(path, "no such file", "check the path") from error
    except ValueError as error:
        raise _fault(path, str(error), "write it with model2point -object") from error
    counts = {len(row) for row in rows} or {6}
    if len(counts) > 1 or not counts <= {3, 4, 5, 6}:
        raise _fault(path, f"lines of {', '.join(map(str, sorted(counts)))} numbers",
                     "write it with model2point -object")  # fmt: skip
    table = np.array(rows, dtype=float).reshape(-1, counts.pop())
    if not np.isfinite(table).all():
        raise _fault(path, "NaN or infinity", "correct the line")
    return table


def _fault(path: Path, found: str, remedy: str) -> InputError:
    expected = "IMOD's points as text, each line with the same 3 to 6 numbers"
    return InputError(path, expected=expected, found=found, remedy=remedy)


DIALECT = Dialect(
    name="imod",
    file_name="imod.txt",
    combined_name=CLASSES,
    description="IMOD points as text, and .mod where IMOD is: voxels, x and y from the corner",
    write=write,
    write_combined=write_combined,
    read=read,
    opens_tomogram=True,
)
