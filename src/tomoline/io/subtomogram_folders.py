"""Subtomograms of other programs: RELION's and Warp's folders with their STAR file, MRC stacks.

A STAR file (of RELION-3 and -4, Warp or M) names in `rlnImageName` a cube each, or `7@stack.mrc`,
one of a stack; paths are relative to the file's folder or to a folder above it, as RELION's are to
its project. RELION-5 writes two-dimensional stacks of tilt images in place of subtomograms, which
hold no volume and are refused. A stack is an MRC2014 stack of volumes (space group 401), or one
volume of several cubes upon each other. A folder without STAR file is all its MRC files by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header, write_volume
from tomoline.io.star import read_star, write_star

IMAGE = "rlnImageName"
TOMOGRAM_COLUMNS = ("rlnTomoName", "rlnMicrographName")
CLASS_COLUMNS = ("tomolineClassName", "rlnClassNumber")
_MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st")
_ABOVE = 4  # folders above the STAR file that its paths may begin in
_STACK_GROUP = 401


@dataclass(frozen=True)
class Place:
    """Where one subtomogram lies: a file, and its number in it, from 0, where that is a stack."""

    path: Path
    number: int | None
    name: str  # as the STAR file has it


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Subtomograms of another program; `tomogram` and `cls` are empty where nothing is said.

    `voxel_size_angstrom` is what the STAR file says, None where it says nothing.
    """

    places: list[Place]
    tomogram: list[str]
    cls: list[str]
    voxel_size_angstrom: float | None

    def __len__(self) -> int:
        return len(self.places)


def list_subtomograms(source: str | Path) -> Listed:
    """Find the subtomograms of a STAR file, a stack, a cube or a folder; none is read yet.

    Raises
    ------
    InputError
        For anything else, a file that is missing, images that are no volumes, or an empty list.
    """
    path = Path(source)
    if path.is_dir():
        stars = sorted(path.glob("*.star"))
        if len(stars) > 1:
            raise InputError(
                path, expected="a folder with one STAR file, or none",
                found=", ".join(star.name for star in stars), remedy="name the STAR file itself",
            )  # fmt: skip
        listed = _of_star(stars[0]) if stars else _of_files(path)
    elif path.suffix == ".star":
        listed = _of_star(path)
    else:
        listed = _without_words([Place(path, k, path.name) for k in range(count_of(path))])
    if not len(listed):
        raise InputError(
            path, expected="subtomograms", found="none", remedy="check the path and its files"
        )
    return listed


def count_of(path: Path) -> int:
    """How many subtomograms an MRC file holds."""
    shape = _shape(path)
    return shape[0]


def read_cube(place: Place) -> NDArray[np.float32]:
    """Read one subtomogram `(b, b, b)`, zyx, as it is."""
    stack = _opened(place.path)
    number = place.number or 0
    if not 0 <= number < len(stack):
        raise InputError(
            place.path, expected=f"a subtomogram number {number + 1}, as {place.name} asks for",
            found=f"{len(stack)} of them", remedy="the STAR file is of another stack",
        )  # fmt: skip
    if place.number is None and len(stack) > 1:
        raise InputError(
            place.path, expected=f"one subtomogram, as {place.name} names none of several",
            found=f"a stack of {len(stack)}", remedy="name each as NUMBER@FILE",
        )  # fmt: skip
    return np.array(stack[number], np.float32)


def voxel_size_of(path: Path) -> float | None:
    """Voxel size in the file's header, in angstrom; None where it has none."""
    if not _is_volume_stack(path):
        return read_header(path).voxel_size_angstrom
    with mrcfile.open(path, header_only=True) as file:
        size = float(file.voxel_size.x)
    return size if np.isfinite(size) and size > 0 and size != 1.0 else None


def write_folder(
    folder: str | Path,
    cubes: Iterator[NDArray[np.float32]],
    table: pd.DataFrame,
    *,
    voxel_size_angstrom: float,
) -> Path:
    """Write cubes and `particles.star`, which names them, for RELION-3 and Warp; returns its path.

    `table` has a row a cube: `subtomogram`, its number, and further columns, which are kept under
    their own names.
    """
    target = Path(folder)
    (target / "subtomograms").mkdir(parents=True, exist_ok=True)
    numbers = [int(number) for number in table["subtomogram"]]
    names = [f"subtomograms/{number:06d}.mrc" for number in numbers]
    for name, cube in zip(names, cubes, strict=True):
        write_volume(target / name, cube, voxel_size_angstrom)
    rows = pd.DataFrame({IMAGE: names, "rlnPixelSize": [voxel_size_angstrom] * len(names)})
    for column in table.columns:
        if column not in ("subtomogram", IMAGE, "rlnPixelSize"):
            rows[column] = table[column].to_numpy()
    write_star(target / "particles.star", {"": rows})
    return target / "particles.star"


def _of_star(path: Path) -> Listed:
    blocks = read_star(path, text_columns=[IMAGE, *TOMOGRAM_COLUMNS, *CLASS_COLUMNS])
    table = next((block for block in blocks.values() if IMAGE in block), None)
    if table is None:
        raise InputError(
            path, expected=f"a STAR file with the column {IMAGE}",
            found=", ".join(str(c) for block in blocks.values() for c in block.columns),
            remedy="give the STAR file of extracted subtomograms, not of coordinates",
        )  # fmt: skip
    places = [_place(str(name), path) for name in table[IMAGE]]

    def words(columns: Sequence[str]) -> list[str]:
        found = next((c for c in columns if c in table), None)
        return [""] * len(places) if found is None else [str(v) for v in table[found]]

    size = _size_said(pd.concat([table.head(1), *(b.head(1) for b in blocks.values())]))
    return Listed(places=places, tomogram=words(TOMOGRAM_COLUMNS), cls=words(CLASS_COLUMNS),
                  voxel_size_angstrom=size)  # fmt: skip


def _size_said(rows: pd.DataFrame) -> float | None:
    """Voxel size that a STAR file says, by any of the programs' labels."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in rows and rows[label].notna().any():
            return float(rows[label].dropna().iloc[0])
    pair = ("rlnDetectorPixelSize", "rlnMagnification")  # micrometres
    if all(label in rows and rows[label].notna().any() for label in pair):
        detector, magnification = (float(rows[label].dropna().iloc[0]) for label in pair)
        return detector * 1e4 / magnification
    return None


def _place(name: str, star: Path) -> Place:
    number, _, file = name.rpartition("@")
    if number and not number.isdigit():
        raise InputError(
            star, expected=f"{IMAGE} as FILE or NUMBER@FILE", found=name,
            remedy="write it again with the program it comes from",
        )  # fmt: skip
    folders = [star.resolve().parent, *list(star.resolve().parents)[1:_ABOVE]]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise InputError(
            star, expected=f"the file {file}, named in {IMAGE}",
            found=f"none in {folders[0]} nor above it",
            remedy="put the STAR file where it was written, as its paths are relative to that",
        )  # fmt: skip
    return Place(found, int(number) - 1 if number else None, name)


def _of_files(folder: Path) -> Listed:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _MRC_SUFFIXES)
    places = [
        Place(file, k, file.name) for file in files for k in range(count_of(file))
    ]  # fmt: skip
    return _without_words(places)


def _without_words(places: list[Place]) -> Listed:
    none = [""] * len(places)
    return Listed(places=places, tomogram=none, cls=none, voxel_size_angstrom=None)


def _is_volume_stack(path: Path) -> bool:
    """Whether an MRC file says that it is a stack of volumes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        raw = stream.read(1024)
    group = int.from_bytes(raw[88:92], "little")
    return len(raw) == 1024 and group == _STACK_GROUP


def _opened(path: Path) -> NDArray[Any]:
    """All subtomograms of a file as a view `(N, b, b, b)`."""
    stack: NDArray[Any]
    if _is_volume_stack(path):
        try:
            stack = mrcfile.mmap(path, mode="r").data
        except ValueError as error:
            raise InputError(
                path, expected="a stack of volumes", found=str(error),
                remedy="copy it again, or write it again",
            ) from error  # fmt: skip
    else:
        volume = open_volume(path)
        edge = volume.shape[2]
        whole = volume.shape[1] == edge and volume.shape[0] % edge == 0
        stack = volume.reshape(-1, edge, edge, edge) if whole else volume[None]
    if len(set(stack.shape[1:])) != 1 or stack.ndim != 4:
        raise InputError(
            path, expected="cubes", found=f"{stack.shape[1:]} voxels",
            remedy="give subtomograms, not tomograms; RELION-5's two-dimensional stacks of tilt "
            "images hold no volume: extract with 3D output, or have Tomoline cut from the tomogram",
        )  # fmt: skip
    return stack


def _shape(path: Path) -> tuple[int, ...]:
    return _opened(path).shape
