"""Difference of Gaussians (ops/picking.py), its scale and threshold tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.ops.picking import dog_response, peaks, thinned
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
        best: dict[str, Any] = {}
        for settings in combinations(scale_vox=SCALES_VOX, distance_vox=DISTANCES_VOX):
            # A better peak silences a worse one whatever the threshold, so once is enough.
            rows = [_thinned(_read(case.response, settings["scale_vox"]), settings["distance_vox"])
                    for case in cases]  # fmt: skip
            scores = np.concatenate([part[:, 3] for part in rows])
            levels = np.quantile(scores, np.linspace(0, 1, THRESHOLDS, endpoint=False))
            tried = [{**settings, "threshold": float(level)} for level in levels]
            found = best_of(cases, tried, lambda k, s, rows=rows: _above(rows[k], s))  # type: ignore[misc]
            if not best or found["figures"]["goal"] > best["figures"]["goal"]:
                best = found
        return best

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Peaks above the threshold."""
        rows = _thinned(_read(response, tuned["scale_vox"]), tuned["distance_vox"])
        return _above(rows, tuned)


def _read(response: Path, scale: float) -> Any:
    with h5py.File(response, "r") as file:
        return file[f"scale_{scale:g}"][...]


def _thinned(rows: Any, distance: float) -> Any:
    return rows[thinned(rows[:, :3], distance, None)]


def _above(rows: Any, settings: Tuned) -> Found:
    rows = rows[rows[:, 3] >= settings["threshold"]]
    return Found(zyx_vox=rows[:, :3], score=rows[:, 3])
