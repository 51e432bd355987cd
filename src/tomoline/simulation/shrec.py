"""Simulated tomograms on disk, in SHREC'21's layout.

Beside each lies `conditions.json`: everything it was made with, what was placed, and the program's
version, so that it can be made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tomoline import __version__
from tomoline.io.atomic import write_text
from tomoline.io.mrc import write_volume
from tomoline.simulation.phantom import Phantom
from tomoline.simulation.tomogram import SimulatedTomogram

# SHREC'21's names of distractors that it lists, in the order of their labels.
LISTED = {"vesicle": "vesicle", "fiducial": "fiducial"}


def write_shrec(
    folder: Path,
    tomogram: SimulatedTomogram,
    *,
    classes: Sequence[str] = (),
    list_distractors: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write SHREC'21's layout below `folder`; `particle_locations.txt` comes last, when whole.

    `classes` are the names of the labels 1.. of the class mask; with `list_distractors` vesicles
    and gold follow them there, in the occupancy and in the table. `more` goes into
    `conditions.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    phantom, voxel = tomogram.phantom, tomogram.tilt_settings.voxel_size_angstrom
    class_mask, occupancy = phantom.class_mask.astype(np.int16), phantom.occupancy
    text = locations_text(phantom)
    labels = list(classes) or list(dict.fromkeys(phantom.classes))
    if list_distractors and phantom.scenery is not None:
        class_mask, occupancy, lines = _with_distractors(phantom, len(labels))
        labels += list(LISTED.values())
        text += lines
    write_volume(folder / "reconstruction.mrc", tomogram.reconstruction, voxel)
    write_volume(folder / "grandmodel.mrc", phantom.specimen, voxel)
    write_volume(folder / "class_mask.mrc", class_mask, voxel)
    write_volume(folder / "occupancy_mask.mrc", occupancy, voxel)
    conditions = {
        **conditions_of(tomogram),
        "class_mask": dict(enumerate(labels, 1)),
        **(more or {}),
    }
    write_text(folder / "conditions.json", json.dumps(conditions, indent=1, sort_keys=True) + "\n")
    write_text(folder / "particle_locations.txt", text)


def conditions_of(tomogram: SimulatedTomogram) -> dict[str, Any]:
    """Return the provenance of a tomogram as plain values."""
    scenery = tomogram.phantom.scenery
    beside = Counter(p.kind for p in scenery.placed) if scenery is not None else Counter()
    return {
        "tomoline_version": __version__,
        "seed": tomogram.seed,
        "phantom": asdict(tomogram.phantom_settings),
        "tilt": asdict(tomogram.tilt_settings),
        "filter": asdict(tomogram.filter_settings),
        "tilts_deg": [round(float(t), 3) for t in tomogram.tilt_settings.tilts_deg],
        "placed": dict(sorted(Counter(tomogram.phantom.classes).items())),
        "beside": dict(sorted(beside.items())),
    }


def write_locations(path: Path, phantom: Phantom) -> None:
    """Write SHREC'21's table of particles."""
    write_text(path, locations_text(phantom))


def locations_text(phantom: Phantom) -> str:
    """SHREC'21's table: `pdb x y z rotZ rotX rotZ` (degrees, intrinsic ZXZ), line n = id n."""
    lines = []
    for name, centre, rotation in zip(
        phantom.classes, phantom.centres_zyx, phantom.rotations, strict=True
    ):
        angles = rotation.as_euler("ZXZ", degrees=True)
        z, y, x = centre
        lines.append(f"{name} {x:.3f} {y:.3f} {z:.3f} " + " ".join(f"{a:.3f}" for a in angles))
    return "".join(f"{line}\n" for line in lines)


def _with_distractors(
    phantom: Phantom, classes: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]:
    """Class mask, occupancy and lines of the table with vesicles and gold behind the particles."""
    assert phantom.scenery is not None
    class_mask, occupancy = phantom.class_mask.astype(np.int16), phantom.occupancy.copy()
    lines = []
    for item in phantom.scenery.placed:
        if item.kind not in LISTED:
            continue
        voxels = (phantom.scenery.numbers == item.number) & (phantom.occupancy == 0)
        class_mask[voxels] = classes + 1 + list(LISTED).index(item.kind)
        lines.append(item)
        occupancy[voxels] = len(phantom.classes) + len(lines)
    text = "".join(
        f"{LISTED[item.kind]} {item.centre_zyx[2]:.3f} {item.centre_zyx[1]:.3f} "
        f"{item.centre_zyx[0]:.3f} 0.000 0.000 0.000\n"
        for item in lines
    )
    return class_mask, occupancy, text
