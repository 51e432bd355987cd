"""Score maps of template matching by pytme, one template after the other.

pytme is licensed under the GPL and is no part of Tomoline: this file runs in an environment of its
own (`make bench-peers`), is started as a program, and reads and writes plain arrays. It takes the
path of a JSON file that names

- `volume`: .npy (Z, Y, X) float32, particles bright;
- `templates`: name -> .npy (n, n, n), n odd, particle bright and centred;
- `radii_vox`: name -> radius of the spherical mask;
- `angle_deg`: angular step; pytme takes the nearest of its sets of orientations;
- `tilts_deg`: first and last tilt, for the missing wedge about y;
- `output`: folder; `<name>.npy` there is the largest score of each voxel over all orientations;
- `cores`.

Maps that are there already are kept, so that a run that was ended goes on where it stopped.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tme.analyzer import MaxScoreOverRotations
from tme.backends import backend
from tme.filters import Compose, WedgeReconstructed
from tme.matching_data import MatchingData
from tme.matching_exhaustive import MATCHING_EXHAUSTIVE_REGISTER, match_exhaustive
from tme.rotations import get_rotation_matrices


def soft_ball(edge, radius):
    """Mask (edge, edge, edge): 1 within the radius, falling to 0 over two voxels."""
    grid = np.arange(edge) - edge // 2
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(grid, grid, grid, indexing="ij")))
    return np.clip((radius + 2 - distance) / 2, 0, 1).astype(np.float32)


def scores_of(task, volume, name, rotations):
    """Largest score over all orientations, (Z, Y, X)."""
    template = np.load(task["templates"][name]).astype(np.float32)
    data = MatchingData(
        target=volume.copy(),  # it is changed in place
        template=template,
        template_mask=soft_ball(len(template), task["radii_vox"][name]),
        rotations=rotations,
    )
    first, last = task["tilts_deg"]
    data.template_filter = Compose(
        [
            # z is opened by tilting in the plane of z and x.
            WedgeReconstructed(
                angles=(abs(first), abs(last)), opening_axis=0, tilt_axis=2,
                create_continuous_wedge=True, weight_wedge=False, frequency_cutoff=None,
            )
        ]
    )  # fmt: skip
    setup, score = MATCHING_EXHAUSTIVE_REGISTER["FLCSphericalMask"]
    found = match_exhaustive(
        matching_data=data, matching_score=score, matching_setup=setup,
        callback_class=MaxScoreOverRotations, callback_class_args={"score_threshold": -1.0},
        job_schedule=(1, task["cores"]), pad_target_edges=True, interpolation_order=3,
    )  # fmt: skip
    return np.asarray(found[0], np.float32)


def main(path):
    """Match every template whose map is not there yet."""
    task = json.loads(Path(path).read_text())
    backend.change_backend("numpyfftw")
    volume = np.load(task["volume"]).astype(np.float32)
    rotations = get_rotation_matrices(task["angle_deg"], dim=3)
    print(f"{len(rotations)} orientations", flush=True)
    for name in task["templates"]:
        target = Path(task["output"]) / f"{name}.npy"
        if target.exists():
            print(f"{name}: kept", flush=True)
            continue
        scores = scores_of(task, volume, name, rotations)
        if scores.shape != volume.shape:
            raise SystemExit(f"{name}: scores of shape {scores.shape} for {volume.shape}")
        partial = target.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.save(stream, scores)
        partial.rename(target)
        print(f"{name}: largest score {scores.max():.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
