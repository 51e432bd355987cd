"""Grey PNG pictures without an imaging library and without a date (RFC 2083)."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoline.io.atomic import atomic_path


def write_grey(path: str | os.PathLike[str], pixels: NDArray[np.uint8]) -> None:
    """Write an 8-bit grey picture `(rows, columns)`, first row on top, atomically."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(
            f"a picture is (rows, columns) of uint8, not {pixels.shape} {pixels.dtype}"
        )
    height, width = pixels.shape
    filtered = np.zeros((height, width + 1), np.uint8)  # each row begins with filter type 0
    filtered[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(body)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
