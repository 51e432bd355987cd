"""Folders of real micrographs with lists of their particles, to train a picker on and to compare.

    python benchmarks/micrograph_sources.py ../shared/data/micrographs results/sources

Links the micrographs of EMPIAR-10028, 10059, 10146 and 10947 (see the data's README; they may not
be shipped). Where only a mask of discs is published (10059 and 10947, at a quarter of the
micrographs' size), the particles are the maxima of the mask's distance transform, at least three
quarters of a disc's radius deep; discs that overlap much count as one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tomoline.io.atomic import write_text

MASK_BINNING = 4
# Folder, name of the source, and the discs' radius in mask pixels and diameter in micrograph pixels
# where the lists have to be made.
LISTED = (("10028_ribosome", "10028"), ("10146_apoferritin", "10146"))
MASKED = (("10059_trpv1", "10059", 4, 32.0), ("10947", "10947", 7, 60.0))


def centres(mask: NDArray[np.bool_], radius: int) -> NDArray[np.float64]:
    """Centres `(n, 2)` yx of discs of one radius in a mask, in its pixels."""
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 0.7)
    top = depth == ndimage.maximum_filter(depth, 2 * radius - 1)
    return np.argwhere(top & (depth > 0.75 * radius)).astype(float)


def link(path: Path, folder: Path) -> Path:
    """A link to a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / path.name
    if not made.is_symlink():
        made.symlink_to(path.resolve())
    return made


def main() -> None:
    """Make the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    for folder, name in LISTED:
        for path in sorted((given.data / folder).glob("*")):
            if path.suffix == ".mrc" or path.name.endswith("_picks.csv"):
                link(path, given.output / name)
    for folder, name, radius, diameter in MASKED:
        for path in sorted((given.data / folder).glob("*.mrc")):
            mask = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.png"))) > 127
            yx = centres(mask, radius) * MASK_BINNING + (MASK_BINNING - 1) / 2
            made = link(path, given.output / name)
            rows = [f"{x:.1f},{y:.1f},{diameter:g}" for y, x in yx]
            write_text(made.with_name(f"{path.stem}_picks.csv"),
                       "\n".join(["x_px,y_px,diameter_px", *rows]) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
