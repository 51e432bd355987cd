"""Stacks of volumes in one MRC file, as MRC2014 has them: space group 401, `mz` sections each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path
from tomoline.io.mrc import blank_header

VOLUME_STACK = 401
_MODES = {"int8": 0, "float32": 2}


def write_stack(
    path: str | os.PathLike[str],
    volumes: Iterable[NDArray[Any]],
    *,
    box_vox: int,
    voxel_size_angstrom: float,
    kind: type[np.int8] | type[np.float32] = np.float32,
) -> int:
    """Write volumes `(b, b, b)` one after the other, atomically; how many they were.

    No volume at all is legal: a header alone. Minimum, maximum and mean are marked as unknown.
    """
    mode = _MODES[np.dtype(kind).name]
    little = np.dtype(kind).newbyteorder("<")
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(bytes(1024))
        for volume in volumes:
            if volume.shape != (box_vox,) * 3:
                raise ValueError(f"a volume of shape {volume.shape} in a stack of {box_vox} voxels")
            stream.write(np.ascontiguousarray(volume, little).tobytes())
            count += 1
        header = blank_header((count * box_vox, box_vox, box_vox), mode, voxel_size_angstrom,
                              (0.0, 0.0, 0.0))  # fmt: skip
        header["ispg"], header["mz"] = VOLUME_STACK, box_vox
        header["cella"]["z"] = box_vox * voxel_size_angstrom
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
        stream.seek(0)
        stream.write(header.tobytes())
    return count


def open_stack(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The volumes `(n, b, b, b)` of a stack, memory-mapped and read-only.

    Raises
    ------
    InputError
        If it is no stack of volumes in bytes or floats, or is cut short.
    """
    file = Path(path)
    fault = InputError(
        file, expected="a stack of volumes (MRC2014, space group 401)",
        found="no such file" if not file.is_file() else "something else, or a part of one",
        remedy="delete the file and run again",
    )  # fmt: skip
    if not file.is_file() or file.stat().st_size < 1024:
        raise fault
    with file.open("rb") as stream:
        header = np.frombuffer(stream.read(1024), mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<"))[0]
    kinds = {mode: np.dtype(name).newbyteorder("<") for name, mode in _MODES.items()}
    kind, edge, sections = kinds.get(int(header["mode"])), int(header["mz"]), int(header["nz"])
    if kind is None or int(header["ispg"]) != VOLUME_STACK or edge < 1 or sections % edge:
        raise fault
    shape = (sections // edge, edge, int(header["ny"]), int(header["nx"]))
    if file.stat().st_size != 1024 + kind.itemsize * int(np.prod(shape)):
        raise fault
    if not shape[0]:
        return np.empty(shape, kind)
    return np.memmap(file, kind, "r", 1024, shape)
