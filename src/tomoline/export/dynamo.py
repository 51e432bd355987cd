"""Dynamo: a table of 35 columns (.tbl) and the list of tomograms that its column 20 counts (.doc).

Dynamo is MATLAB and counts from 1: the centre of the first voxel is 1, so x = x_vox + 1 (RELION's
reader of such tables says the same: it takes 1 away and then adds the half by which it counts from
a voxel's corner). Column 10 holds our score, 22 the class's number; which class that is, a list
beside the table says (`*.classes.csv`), which Dynamo does not read. Shifts, angles and the tilt
range (13 to 17) are not known and are 0; 2 is 1, as Dynamo sets it for particles to be aligned.
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
    write_class_list,
)
from tomoline.export.relion import write_class_files
from tomoline.io.annotations import annotation_table
from tomoline.io.atomic import write_text
from tomoline.settings import ExportSettings

COLUMNS = 35
# 1-based, as Dynamo's documentation of its tables has them.
TAG, ALIGNED, SCORE, TOMOGRAM, CLASS, X, ORIGINAL_TAG = 1, 2, 10, 20, 22, 24, 31


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's table, and its .doc and .classes.csv beside it."""
    _write([tomogram], path, listed_classes([tomogram]))


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write particles.tbl and one <class>.tbl a class, each with its .doc and .classes.csv."""
    classes = listed_classes(tomograms)
    combined = folder / "particles.tbl"
    _write(tomograms, combined, classes)

    def write_class(path: Path, name: str) -> None:
        _write([tomogram.of_class(name) for tomogram in tomograms], path, classes)

    tables = [combined]
    tables += write_class_files(tomograms, folder, settings, write_class, suffix=".tbl")
    return [path.with_suffix(end) for path in tables for end in (".tbl", ".doc", ".classes.csv")]


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a tomogram's rows; with a .doc beside the table, those that it names.

    Shifts (columns 4 to 6) are added, as Dynamo does when it crops; angles are dropped.
    """
    table, names = _table(path), _documented(path)
    numbers = [int(number) for number in table[:, TOMOGRAM - 1]]
    if names:
        keep = [place.is_named(names.get(number, str(number))) for number in numbers]
        table = table[np.array(keep, dtype=bool)]
    elif len(set(numbers)) > 1:
        raise InputError(
            path, expected=f"{path.stem}.doc beside it, as it has rows of several tomograms",
            found="none", remedy="copy the .doc file of the same name beside the table",
        )  # fmt: skip
    xyz = table[:, X - 1 : X + 2] + table[:, 3:6] - 1
    class_of = class_of_number(path.with_suffix(".classes.csv"), place)
    classes = [class_of(int(number)) for number in table[:, CLASS - 1]]
    return annotation_table(xyz[:, ::-1], classes, scores=table[:, SCORE - 1])


def names(path: Path) -> list[str]:
    """The tomograms that the .doc beside a table lists, where one has rows."""
    known, table = _documented(path), _table(path)
    if not known:
        return []
    numbers = dict.fromkeys(int(n) for n in table[:, TOMOGRAM - 1])
    return [known.get(number, str(number)) for number in numbers]


def _write(tomograms: Sequence[TomogramParticles], path: Path, classes: Sequence[str]) -> None:
    lines: list[str] = []
    for number, tomogram in enumerate(tomograms, 1):
        lines += _lines(tomogram, number, classes, first_tag=len(lines) + 1)
    write_text(path, "".join(f"{line}\n" for line in lines))
    files = [f"{number} {t.file_path}" for number, t in enumerate(tomograms, 1)]
    write_text(path.with_suffix(".doc"), "\n".join(files) + "\n")
    write_class_list(path.with_suffix(".classes.csv"), classes)


def _lines(
    tomogram: TomogramParticles, number: int, classes: Sequence[str], *, first_tag: int
) -> list[str]:
    particles, names = tomogram.particles, tomogram.class_names()
    table = np.zeros((len(particles), COLUMNS))
    table[:, TAG - 1] = np.arange(first_tag, first_tag + len(particles))
    table[:, ALIGNED - 1] = 1
    table[:, SCORE - 1] = tomogram.scores()
    table[:, TOMOGRAM - 1] = number
    table[:, CLASS - 1] = [classes.index(name) + 1 for name in names]
    table[:, X - 1 : X + 2] = tomogram.zyx_vox()[:, ::-1] + 1
    table[:, ORIGINAL_TAG - 1] = particles["particle_id"].to_numpy(dtype=float)
    return [" ".join(_number(value) for value in row) for row in table]


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.6f}"


def _table(path: Path) -> NDArray[np.float64]:
    """Rows of a table; of a complex number (Dynamo has such in column 28) the real part."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise _fault(path, str(error)) from error
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            rows.append([complex(field.replace("i", "j")).real for field in fields[:COLUMNS]])
        except ValueError as error:
            raise _fault(path, f"{line[:60]!r} in line {number}") from error
        if len(fields) < X + 2:
            raise _fault(path, f"{len(fields)} columns in line {number}")
        rows[-1] += [0.0] * (COLUMNS - len(rows[-1]))
    table = np.array(rows, dtype=float).reshape(-1, COLUMNS)
    if not np.isfinite(table[:, X - 1 : X + 2]).all():
        raise _fault(path, "NaN or infinity among the coordinates")
    return table


def _fault(path: Path, found: str) -> InputError:
    return InputError(
        path, expected="a Dynamo table: lines of 26 to 42 numbers", found=found,
        remedy="give the .tbl file that Dynamo wrote",
    )  # fmt: skip


def _documented(path: Path) -> dict[int, str]:
    doc = path.with_suffix(".doc")
    lines = doc.read_text(encoding="utf-8").splitlines() if doc.is_file() else []
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if not all(len(pair) == 2 and pair[0].isdigit() for pair in pairs):
        raise InputError(
            doc, expected="lines of a number and a tomogram's file", found="other lines",
            remedy="correct or remove the .doc file beside the table",
        )  # fmt: skip
    return {int(number): name.strip() for number, name in pairs}


DIALECT = Dialect(
    name="dynamo",
    file_name="dynamo.tbl",
    combined_name="particles.tbl",
    description="Dynamo table with its .doc: voxels of the tomogram's file, counted from 1",
    write=write,
    write_combined=write_combined,
    read=read,
    names=names,
    opens_tomogram=True,
    names_path=True,
)
