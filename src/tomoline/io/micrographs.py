"""Micrographs as they come: MRC, TIFF, PNG and JPEG, as `(Y, X)` arrays in the file's row order.

MRC by the strict reader of `tomoline.io.mrc` (modes 0, 1, 2, 6, 12, gzip and bzip2 too); the others
by Pillow. Neither PNG nor JPEG knows a pixel size, TIFF only a resolution of print, so it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".mrc.gz", ".mrc.bz2")
PICTURE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
MOST_PIXELS = 400_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS


@dataclass(frozen=True, kw_only=True)
class MicrographFacts:
    """What a file says of itself; `pixel_size_angstrom` is None where it does not."""

    path: Path
    kind: str  # mrc, or what Pillow calls it: tiff, png, jpeg
    shape_yx: tuple[int, int]
    mode: str
    pixel_size_angstrom: float | None
    warnings: tuple[str, ...] = ()


def is_micrograph_name(name: str) -> bool:
    """Whether a file could be a micrograph, by its suffix."""
    return name.lower().endswith((*MRC_SUFFIXES, *PICTURE_SUFFIXES))


def read_facts(path: str | Path) -> MicrographFacts:
    """Look at a micrograph without reading its pixels.

    Raises
    ------
    InputError
        No file, a damaged one, a stack or movie, colours, or another kind of file.
    """
    path = Path(path)
    if path.name.lower().endswith(MRC_SUFFIXES):
        header = read_header(path)
        if header.shape_zyx[0] != 1:
            raise InputError(
                path, expected="a micrograph: one section",
                found=f"{header.shape_zyx[0]} sections, a movie or a stack",
                remedy="give the motion-corrected average, or split the stack",
            )  # fmt: skip
        return MicrographFacts(
            path=path, kind="mrc", shape_yx=(header.shape_zyx[1], header.shape_zyx[2]),
            mode=str(header.mode), pixel_size_angstrom=header.voxel_size_angstrom,
            warnings=header.warnings,
        )  # fmt: skip
    with _picture(path) as picture:
        width, height = picture.size
        return MicrographFacts(
            path=path, kind=str(picture.format).lower(), shape_yx=(height, width),
            mode=picture.mode, pixel_size_angstrom=None,
        )  # fmt: skip


def read_micrograph(path: str | Path) -> tuple[NDArray[Any], MicrographFacts]:
    """Return the pixels `(Y, X)`, row 0 being the first of the file, and what the file says."""
    facts = read_facts(path)
    if facts.kind == "mrc":
        return np.asarray(open_volume(facts.path)[0]), facts
    with _picture(facts.path) as picture:
        try:
            if picture.mode in ("RGB", "RGBA", "LA", "P", "CMYK"):
                return _grey(facts, np.asarray(picture.convert("RGB"))), facts
            pixels = np.asarray(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                facts.path, expected="a whole picture", found=f"a damaged one ({error})",
                remedy="copy or write it again",
            ) from error  # fmt: skip
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels, facts


def _grey(facts: MicrographFacts, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey picture stored in colours as one channel; InputError for a coloured one."""
    spread = np.ptp(colours.astype(np.int16), axis=-1)
    # JPEG rounds its channels a step or two apart.
    if np.quantile(spread, 0.99) > 8:
        raise InputError(
            facts.path, expected="grey values", found="a picture in colours",
            remedy="give the micrograph itself, not a screenshot or an overlay",
        )  # fmt: skip
    grey: NDArray[np.uint8] = colours[..., 1]
    return grey


def _picture(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
    except FileNotFoundError:
        raise InputError(
            path, expected="a micrograph", found="no such file", remedy="check the path"
        ) from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(
            path, expected="an MRC, TIFF, PNG or JPEG image", found=str(error),
            remedy="copy it again, or convert it to MRC",
        ) from error  # fmt: skip
    if getattr(picture, "n_frames", 1) != 1:
        frames = picture.n_frames  # type: ignore[attr-defined]
        picture.close()
        raise InputError(
            path, expected="a micrograph: one frame", found=f"{frames} frames, a movie or a stack",
            remedy="give the motion-corrected average, or split the stack",
        )  # fmt: skip
    return picture
