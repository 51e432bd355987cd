"""Single images: micrographs and pictures (MRC, PNG, TIFF, JPG), read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".mrc.gz", ".mrc.bz2")
FORMATS = ("PNG", "TIFF", "JPEG")
# Larger pictures are taken for damaged headers; detectors have some 10^8 pixels.
Image.MAX_IMAGE_PIXELS = 1 << 29


def read_image(path: str | Path) -> tuple[NDArray[Any], float | None]:
    """Grey image `(y, x)` in the file's own type and order of rows, and its pixel size (angstrom).

    Only MRC headers are asked for a pixel size. Colour pictures become grey by their luminance.

    Raises
    ------
    InputError
        For what is missing, no single image, or cannot be read.
    """
    path = Path(path)
    if path.name.lower().endswith(MRC_SUFFIXES):
        header = read_header(path)
        if header.shape_zyx[0] != 1:
            raise InputError(
                path, expected="one image", found=f"{header.shape_zyx[0]} sections",
                remedy="sum a movie's frames first, or give a single section",
            )  # fmt: skip
        return np.asarray(open_volume(path, header))[0], header.voxel_size_angstrom
    return _picture(path), None


def _picture(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise InputError(
            path, expected="an image (MRC, PNG, TIFF or JPG)", found="no such file",
            remedy="correct the path",
        )  # fmt: skip
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise InputError(
                    path, expected="one image", found=f"{getattr(picture, 'n_frames', 1)} frames",
                    remedy="sum a movie's frames first, or give a single one",
                )  # fmt: skip
            colour = picture.mode in {"RGB", "RGBA", "P", "LA", "CMYK", "YCbCr", "PA"}
            values = np.array(picture.convert("L") if colour else picture)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            path, expected="a whole image (MRC, PNG, TIFF or JPG)", found=str(error),
            remedy="copy the file again",
        ) from error  # fmt: skip
    return values.astype(np.uint8) if values.dtype == bool else values


def expand(patterns: Sequence[str], *, key: str) -> list[Path]:
    """Files of patterns, each pattern's sorted by name.

    Raises
    ------
    InputError
        For a pattern that no file answers to; `key` is the setting that holds them.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        anchor = Path(path.anchor) if path.anchor else Path()
        relative = path.relative_to(anchor) if path.anchor else path
        wild = any(c in pattern for c in "*?[")
        own = sorted(anchor.glob(str(relative))) if wild else [path]
        if not own:
            raise InputError(
                key, expected=f"files like {pattern}", found="none",
                remedy="correct the pattern, or make the files first",
            )  # fmt: skip
        found += own
    return found
