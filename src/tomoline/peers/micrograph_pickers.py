"""Pickers of micrographs that ours is compared with: difference of Gaussians, and Topaz.

Both get the same prepared micrographs as our network (rescaled to the same extent, flattened), so
that the comparison is of pickers and not of their preparation; Topaz's own normalization, a mixture
of two Gaussians, is run on them too, as its networks were trained behind it.

Topaz (Bepler et al., Nature Methods 16, 1153-1160, 2019) pulls another torch, so it is installed
apart (`make bench-topaz`) and started as a program. Its shipped detector is resnet16_u64, for
particles of about its extent in pixels; on which data it was trained is not published in full.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tomoline.errors import InputError, ToolError
from tomoline.io.mrc import write_volume
from tomoline.log import get_logger
from tomoline.ops.micrographs import EXTENT_PX, Floats, Image
from tomoline.ops.picking import dog_response, peaks

log = get_logger(__name__)

# The narrow width whose difference answers most to a disc of the extent (r / sqrt 2, over the root
# of the two widths' ratio), and somewhat less and more: the best by truth is reported.
DOG_WIDTHS_PX = (4.5, 5.9, 7.5)
DISTANCE = 0.6  # of a diameter, as our picker has it
TOPAZ_MODEL = "resnet16"
TOPAZ_RADIUS_PX = 6  # non-maximum suppression: 0.6 of a diameter between picks
TOPAZ_THRESHOLD = -6.0  # log-likelihood ratio; Topaz's own default
PIXEL_ANGSTROM = 8.0  # what the files say; Topaz does not read it


def dog_candidates(image: Image, width_px: float) -> tuple[Floats, Floats]:
    """Maxima `(n, 2)` yx of a prepared micrograph's response at one width, and their responses."""
    # Particles are bright in a prepared micrograph.
    response = dog_response(image[None], width_px, contrast="bright")
    zyx, score = peaks(response, distance_vox=DISTANCE * EXTENT_PX, threshold=0.0)
    return zyx[:, 1:], score


def topaz_candidates(
    images: Sequence[Image], folder: Path, python: Path
) -> list[tuple[Floats, Floats]]:
    """Topaz's picks `(n, 2)` yx in each prepared micrograph, with their scores.

    Files are kept in `folder`; `python` is that of the environment Topaz is installed in.

    Raises
    ------
    InputError
        No such environment.
    ToolError
        Topaz ended with an error.
    """
    program = python.with_name("topaz")
    if not program.is_file():
        raise InputError(
            program, expected="Topaz in an environment of its own", found="no such program",
            remedy="run `make bench-topaz`, or leave topaz out of the methods",
        )  # fmt: skip
    given, ready = folder / "given", folder / "normalised"
    for path in (given, ready):
        path.mkdir(parents=True, exist_ok=True)
    files = [given / f"m{k:04d}.mrc" for k in range(len(images))]
    for file, image in zip(files, images, strict=True):
        # Topaz's networks know particles dark.
        write_volume(file, np.ascontiguousarray(-image[None], np.float32), PIXEL_ANGSTROM)
    _started([str(program), "normalize", "--device", "-1", "-o", str(ready), *map(str, files)])
    picks = folder / "picks.txt"
    names = [str(ready / file.name) for file in files]
    _started([
        str(program), "extract", "--device", "-1", "--model", TOPAZ_MODEL,
        "--radius", str(TOPAZ_RADIUS_PX), "--threshold", str(TOPAZ_THRESHOLD),
        "-o", str(picks), *names,
    ])  # fmt: skip
    return read_topaz(picks, [file.stem for file in files])


def read_topaz(path: Path, names: Sequence[str]) -> list[tuple[Floats, Floats]]:
    """Read Topaz's table (image_name, x_coord, y_coord, score; tabs) for each image of `names`."""
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:
        name, x, y, score = line.split("\t")[:4]
        rows[name].append((float(y), float(x), float(score)))
    tables = [np.asarray(rows[name], float).reshape(-1, 3) for name in names]
    return [(table[:, :2], table[:, 2]) for table in tables]


def _started(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ToolError(
            f"{' '.join(command[:2])}: expected picks; it ended with {done.returncode}: {last}. "
            "Remedy: run the command by hand to see all it says"
        )
    log.info("%s: done", " ".join(command[1:2]))
