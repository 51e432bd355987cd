"""SHREC's cryo-ET data sets of 2019, 2020 and 2021 as downloaded, and our own in their layout.

What distinguishes the years was read from the organisers' own scripts for evaluation and display,
as they lie in public repositories:

| | '19 | '20 | '21 |
|---|---|---|---|
| folder | `<k>` | `model_<k>` | `model_<k>` |
| tomogram | `reconstruction_model_<k>.mrc` | `reconstruction.mrc` | `reconstruction.mrc` |
| particles | `particle_locations_model_<k>.txt` | `particle_locations.txt` | as '20 |
| columns | `pdb z y x` | `pdb x y z` | `pdb x y z` |
| numbers | `hitbox_<k>.mrc` | `occupancy_mask.mrc` | `occupancy_mask.mrc` |
| classes | - | `class_mask.mrc` | `class_mask.mrc` |
| z of the truth | in a slab of 200 | in a slab of 200 | the tomogram's |

In '19 and '20 the tomogram has 512 sections and the truth 200, which begin at section 156. Here the
offset is not taken from the year but from the files: half of what the tomogram has more sections
than its truth volumes. That no offset is needed in '21 is inferred from scripts that read tomogram
and masks alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tomoline.errors import InputError
from tomoline.io.mrc import read_header

Layout = Literal["shrec19", "shrec21"]

# VP-Detector's division (section 3.1): tomograms 1 to 7, 8 and 9; 0 is not used.
PAPER_SPLIT = {**dict.fromkeys(range(1, 8), "train"), 8: "validation", 9: "test"}
_TOMOGRAM = re.compile(r"^reconstruction(_model_(?P<number>\d+))?\.(mrc|rec|map)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ShrecModel:
    """One tomogram of SHREC and what lies with it; None where it is not there.

    `layout` says in which order the table has its columns; '20 and '21 are alike in that.
    """

    name: str
    number: int | None
    layout: Layout
    reconstruction: Path
    locations: Path | None
    occupancy: Path | None
    class_mask: Path | None
    grandmodel: Path | None

    def z_offset_vox(self) -> int | None:
        """Sections of the tomogram above the truth's first; None without a truth volume.

        Raises InputError where a truth volume is of another width or deeper than the tomogram.
        """
        volume = self.occupancy or self.class_mask or self.grandmodel
        if volume is None:
            return None
        whole = read_header(self.reconstruction).file_shape
        part = read_header(volume).file_shape
        if part[1:] != whole[1:] or part[0] > whole[0]:
            raise InputError(
                volume,
                expected=f"a volume of {whole} voxels (z, y, x), or a slab of it, as "
                f"{self.reconstruction.name} beside it",
                found=f"{part}",
                remedy="put files of one data set together as they were downloaded",
            )
        return (whole[0] - part[0]) // 2


def shrec_model(path: Path) -> ShrecModel | None:
    """Return what belongs to a tomogram of SHREC, or None if the file is not called like one."""
    match = _TOMOGRAM.match(path.name)
    if match is None:
        return None
    folder, number = path.parent, match["number"]
    if number is None:
        found = re.fullmatch(r"(model_)?(\d+)", folder.name)
        number = found[2] if found else None
    tails = ([f"_model_{number}", f"_{number}"] if number else []) + [""]
    locations = _first(folder, "particle_locations", tails, ".txt")
    if locations is None and not any(folder.glob("grandmodel*")):
        return None
    old = locations is not None and locations.stem != "particle_locations"
    old |= locations is None and match["number"] is not None
    return ShrecModel(
        name=f"model_{number}" if number else folder.name,
        number=None if number is None else int(number),
        layout="shrec19" if old else "shrec21",
        reconstruction=path,
        locations=locations,
        occupancy=_first(folder, "occupancy_mask", tails) or _first(folder, "hitbox", tails),
        class_mask=_first(folder, "class_mask", tails),
        grandmodel=_first(folder, "grandmodel", tails),
    )


def model_in(folder: Path) -> ShrecModel:
    """Return the one tomogram of a SHREC folder; InputError where there is none, or no truth."""
    models = [shrec_model(path) for path in sorted(folder.glob("reconstruction*"))]
    whole = [m for m in models if m is not None and m.locations is not None]
    if len(whole) != 1:
        raise InputError(
            folder,
            expected="one reconstruction*.mrc with its particle_locations*.txt, as SHREC has them",
            found=f"{len(whole)} of them" if folder.is_dir() else "no such folder",
            remedy="name the folder of one tomogram, such as .../full_dataset/model_1",
        )
    return whole[0]


def locations_of(folder: str | Path) -> str:
    """Return the path of a folder's table of particles; SHREC'20's name where none is there yet."""
    found = sorted(Path(folder).glob("particle_locations*.txt"))
    return str(found[0]) if len(found) == 1 else f"{folder}/particle_locations.txt"


def _first(folder: Path, stem: str, tails: list[str], suffix: str = ".mrc") -> Path | None:
    names = (folder / f"{stem}{tail}{suffix}" for tail in tails)
    return next((path for path in names if path.is_file()), None)
