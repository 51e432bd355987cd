"""From file names to tomogram and tilt series names, and to the truth beside a tomogram."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from tomoline.io.sheet import is_safe_name
from tomoline.stages.checks import RESERVED_NAMES

SUFFIXES = (".mrc", ".rec", ".map")
COMPRESSED = (".gz", ".bz2")

# What programs add to a tilt series' name: IMOD and RELION (_rec, rec_), AreTomo (_Vol), Warp
# (_10.00Apx), SHREC (reconstruction_).
_PREFIX = re.compile(r"^(rec|reconstruction|tomo(gram)?)_(?=.*[A-Za-z0-9])", re.IGNORECASE)
_SUFFIX = re.compile(r"_(full|rec|vol|\d+(\.\d+)?apx)$", re.IGNORECASE)
# What processing adds to a tomogram's name; its tilt series has neither, its truth is the same
# after filtering but not after binning.
_BINNED = re.compile(r"_bin\d+$", re.IGNORECASE)
_PROCESSED = re.compile(
    r"_(bytes|imodraw|raw|filt(ered)?|denoised|dn|deconv|corrected|isonet|cryocare|ddw|"
    r"even|odd|evn|wbp|sirt\d*)$",
    re.IGNORECASE,
)
# Names that say nothing: the folder's is taken.
_GENERIC = re.compile(r"^(full|rec|vol|volume|tomo|tomogram|reconstruction)?$", re.IGNORECASE)
# Volumes of a SHREC folder that are truth, not tomograms.
_SHREC_TRUTH = re.compile(
    r"^(grandmodel|class_mask|class_bbox|occupancy_mask|occupancy_bbox|hitbox|noisefree|"
    r"projections?|alignment_simulated)",
    re.IGNORECASE,
)

_TRUTH_SUFFIX = re.compile(r"_(occupancy|occupancy_mask|class_mask|grandmodel|hitbox)$")
_OCCUPANCY_FILES = ("occupancy.mrc", "occupancy.mrc.gz", "occupancy_mask.mrc", "truth.npz")


def is_tomogram_name(path: Path) -> bool:
    """Whether a file found in a folder looks like a volume by its name."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(SUFFIXES) and not name.startswith(".")


def is_truth_volume(path: Path) -> bool:
    """Whether a volume found in a folder is the truth of a tomogram beside it."""
    if _SHREC_TRUTH.match(path.name) and any(path.parent.glob("reconstruction*")):
        return True
    stem, count = _TRUTH_SUFFIX.subn("", file_stem(path))
    return count > 0 and any(
        sister != path and file_stem(sister) == stem and is_tomogram_name(sister)
        for sister in path.parent.glob(f"{glob.escape(stem)}.*")
    )


def file_stem(path: Path) -> str:
    """Return the name without .gz, .bz2 and the volume's own suffix; other dots stay."""
    name = path.name
    for endings in (COMPRESSED, SUFFIXES):
        for ending in endings:
            if name.lower().endswith(ending):
                name = name[: -len(ending)]
                break
    return name


def natural_name(path: Path) -> str:
    """Return the tomogram's name: affixes stripped, and the folder's where the file's is generic.

    It need not be safe yet.
    """
    stem = _strip(file_stem(path))
    if _GENERIC.match(stem):
        stem = _strip(path.resolve().parent.name) or "tomogram"
    return stem


def safe_name(name: str) -> str:
    """Return `name` as it can be a folder's: other characters become `_`."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    text = re.sub(r"^[^A-Za-z0-9]+", "", text)[:100].rstrip("_.-") or "tomogram"
    if text.lower() in RESERVED_NAMES:
        text += "_tomogram"
    assert is_safe_name(text)
    return text


def tilt_series_name(tomogram: str) -> str:
    """Return the tilt series' name: binning, filters and the like stripped too."""
    return _strip(tomogram, _PROCESSED, _BINNED) or tomogram


def find_truth(path: Path) -> tuple[Path | None, Path | None]:
    """Look for a tomogram's true particles, and its volume of instance ids, beside it.

    Known are the SHREC folder (`particle_locations.txt` with `occupancy_mask.mrc`, or in '19
    `particle_locations_model_9.txt` with `hitbox_9.mrc`), and beside a tomogram of any name
    `<stem>_particles.csv` or `<stem>_particle_locations.txt` with `<stem>_occupancy.mrc` (.gz) or
    `<stem>_truth.npz`.
    """
    if path.name.lower().startswith("reconstruction"):
        number = re.search(r"(\d+)$", file_stem(path))
        suffix = number[1] if number else ""
        truth = _first(
            path.parent, f"particle_locations_model_{suffix}.txt", "particle_locations.txt"
        )
        occupancy = _first(
            path.parent,
            f"occupancy_mask_model_{suffix}.mrc",
            f"occupancy_mask_{suffix}.mrc",
            "occupancy_mask.mrc",
            f"hitbox_{suffix}.mrc",
        )
        if truth is not None:
            return truth, occupancy
    for stem in _stems(path):
        truth = _first(path.parent, f"{stem}_particles.csv", f"{stem}_particle_locations.txt")
        if truth is not None:
            return truth, _first(path.parent, *(f"{stem}_{name}" for name in _OCCUPANCY_FILES))
    return None, None


def _stems(path: Path) -> Iterator[str]:
    stem = file_stem(path)
    yield stem
    yield _strip(stem)
    yield _strip(stem, _PROCESSED)


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _strip(name: str, *more: re.Pattern[str]) -> str:
    """Take prefix and suffixes off until nothing changes."""
    before = None
    while name != before:
        before = name
        name = _PREFIX.sub("", name)
        for pattern in (_SUFFIX, *more):
            name = pattern.sub("", name)
    return name
