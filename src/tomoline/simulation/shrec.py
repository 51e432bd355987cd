"""Simulated tomograms on disk, in SHREC'21's layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tomoline.io.atomic import write_text
from tomoline.io.mrc import write_volume
from tomoline.simulation.phantom import Phantom
from tomoline.simulation.tomogram import SimulatedTomogram


def write_shrec(folder: Path, tomogram: SimulatedTomogram) -> None:
    """Write SHREC'21's layout below `folder`; `particle_locations.txt` comes last, when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    phantom, voxel = tomogram.phantom, tomogram.tilt_settings.voxel_size_angstrom
    write_volume(folder / "reconstruction.mrc", tomogram.reconstruction, voxel)
    write_volume(folder / "grandmodel.mrc", phantom.density, voxel)
    write_volume(folder / "class_mask.mrc", phantom.class_mask.astype(np.int16), voxel)
    write_volume(folder / "occupancy_mask.mrc", phantom.occupancy, voxel)
    conditions = {
        "seed": tomogram.seed, "phantom": asdict(tomogram.phantom_settings),
        "tilt": asdict(tomogram.tilt_settings), "filter": asdict(tomogram.filter_settings),
    }  # fmt: skip
    write_text(folder / "conditions.json", json.dumps(conditions, indent=1, sort_keys=True) + "\n")
    write_locations(folder / "particle_locations.txt", phantom)


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
    return "\n".join(lines) + "\n"
