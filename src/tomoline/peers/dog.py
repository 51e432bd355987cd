"""Difference of Gaussians (evaluation/picking.py), its scale and threshold tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tomoline.evaluation.picking import dog_response, peaks, thinned
from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.peers.base import Case, Found, Scene, Tuned, best_of, combinations

SCALES_VOX = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
DISTANCES_VOX = (5.0, 6.0, 7.0, 8.0, 10.0)
# Peaks kept of each scale; several times what any tomogram holds.
VOXELS_PER_PEAK = 1500
THRESHOLDS = 60


class DogPicker:
    """Local maxima of the difference of two blurs; knows no classes."""

    def respond(self, scene: Scene, response: Path) -> None:
        """Write, for each scale, the peaks `(n, 4)`: z, y, x, response, best first."""
        volume = np.asarray(open_volume(scene.volume), np.float32)
        number = max(100, volume.size // VOXELS_PER_PEAK)
        with atomic_stream(response) as stream, h5py.File(stream, "w") as file:
            for scale in SCALES_VOX:
                zyx, score = peaks(
                    dog_response(volume, scale), distance_vox=DISTANCES_VOX[0], number=number
                )
                rows = np.column_stack([zyx, score])
                file.create_dataset(f"scale_{scale:g}", data=rows, track_times=False)

    def tune(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Scale, least distance and threshold."""
        read = {
            scale: [_read(case.response, scale) for case in cases] for scale in SCALES_VOX
        }  # fmt: skip
        tried = []
        for settings in combinations(scale_vox=SCALES_VOX, distance_vox=DISTANCES_VOX):
            scores = np.concatenate([rows[:, 3] for rows in read[settings["scale_vox"]]])
            levels = np.quantile(scores, np.linspace(0, 1, THRESHOLDS, endpoint=False))
            tried += [{**settings, "threshold": float(level)} for level in levels]
        return best_of(cases, tried, lambda k, s: _picks(read[s["scale_vox"]][k], s))

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Peaks above the threshold."""
        return _picks(_read(response, tuned["scale_vox"]), tuned)


def _read(response: Path, scale: float) -> Any:
    with h5py.File(response, "r") as file:
        return file[f"scale_{scale:g}"][...]


def _picks(rows: Any, settings: Tuned) -> Found:
    rows = rows[rows[:, 3] >= settings["threshold"]]
    kept = thinned(rows[:, :3], settings["distance_vox"], None)
    return Found(zyx_vox=rows[kept, :3], score=rows[kept, 3])
