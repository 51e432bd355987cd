"""Template matching by pytme (Maurer et al., SoftwareX 2024) with the true densities.

pytme is under the GPL: it is installed apart (`make bench-peers`) and started as a program,
`benchmarks/pytme_match.py`, that exchanges plain arrays with us. Peaks of each class's score map
are candidates; their thresholds, one a class, and how classes that claim one place are weighed
against each other are tuned together.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError, ToolError
from tomoline.io.atomic import atomic_path, atomic_stream, write_json
from tomoline.io.mrc import open_volume
from tomoline.log import get_logger
from tomoline.ops.picking import peaks, thinned
from tomoline.ops.rescale import rescale
from tomoline.peers.base import Case, Found, Scene, Tuned, goal
from tomoline.simulation.densities import load_density

log = get_logger(__name__)

PROGRAM = Path("benchmarks/pytme_match.py")
VOXELS_PER_PEAK = 4000
LEAST_DISTANCE_VOX = 4.0
DISTANCES_VOX = (5.0, 7.0, 9.0)
# How peaks of different classes at one place are compared.
STRENGTHS = ("ratio", "score", "sds")
FACTORS = (0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 1.35)
ROUNDS = 4
NEVER = 1e9


@dataclass(frozen=True, kw_only=True)
class PytmeMatcher:
    """Template matching; `densities` is a folder of maps, `python` that of pytme's environment."""

    densities: Path
    classes: tuple[str, ...]
    python: Path
    angle_deg: float = 20.0
    bin: int = 1
    program: Path = PROGRAM

    def respond(self, scene: Scene, response: Path) -> None:
        """Write `peaks (n, 5)`: class index, z, y, x, score; and each map's mean and SD.

        Maps that an ended run has made already, in the scene's folder, are kept.
        """
        self._match(scene)
        rows, moments = [], []
        for k, name in enumerate(self.classes):
            scores = np.load(scene.work / f"{name}.npy", allow_pickle=False)
            number = max(200, scores.size // VOXELS_PER_PEAK)
            number *= self.bin**3
            zyx, score = peaks(scores, distance_vox=LEAST_DISTANCE_VOX / self.bin, number=number)
            rows.append(np.column_stack([np.full(len(zyx), k), zyx * self.bin, score]))
            moments.append((float(scores.mean()), float(scores.std())))
        with atomic_stream(response) as stream, h5py.File(stream, "w") as file:
            file.create_dataset("peaks", data=np.concatenate(rows), track_times=False)
            file.create_dataset("moments", data=np.array(moments), track_times=False)
        for name in self.classes:  # from here on the peaks are all that is needed
            (scene.work / f"{name}.npy").unlink()

    def _match(self, scene: Scene) -> None:
        if not self.python.is_file():
            raise InputError(
                self.python, expected="the Python of an environment with pytme",
                found="no such file", remedy="run `make bench-peers`, or correct the method's "
                "`python` in the benchmark's configuration",
            )  # fmt: skip
        scene.work.mkdir(parents=True, exist_ok=True)
        volume = -np.asarray(open_volume(scene.volume), np.float32)  # particles bright
        task: dict[str, Any] = {
            "templates": {}, "radii_vox": {}, "cores": scene.threads,
            "angle_deg": self.angle_deg, "tilts_deg": list(scene.tilts_deg),
            "output": str(scene.work.resolve()),
        }  # fmt: skip
        task["volume"] = _saved(scene.work / "volume.array", self._binned(volume))
        for name in self.classes:
            density = load_density(self.densities, name)
            template = self._template(density.values)
            task["templates"][name] = _saved(scene.work / f"{name}.array", template)
            task["radii_vox"][name] = density.radius_vox / self.bin
        write_json(scene.work / "task.json", task)
        command = [str(self.python), str(self.program), str(scene.work / "task.json")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:  # fmt: skip
            assert process.stdout is not None
            last = ""
            for line in process.stdout:
                last = line.strip() or last
                log.info("pytme: %s", line.rstrip())
        (scene.work / "volume.array").unlink()
        if process.returncode:
            raise ToolError(
                f"{' '.join(command)}: expected score maps; it ended with {process.returncode}: "
                f"{last}. Remedy: see the lines above in the log"
            )

    def _binned(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fourier-cropped; voxel 0 stays where it is."""
        return volume if self.bin == 1 else rescale(volume, float(self.bin))[0]

    def _template(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The density at the matching's voxel size, its centre still the middle voxel."""
        if self.bin == 1:
            return values
        # As many voxels on each side as make the middle one of the given a voxel of the binned.
        half = -(-(len(values) // 2) // self.bin) * self.bin
        wide = np.pad(values, half - len(values) // 2)
        wide = np.pad(wide, (0, self.bin - 1))  # a multiple, so that the factor is met exactly
        binned = rescale(wide, float(self.bin))[0]
        return binned[(slice(0, 2 * half // self.bin + 1),) * 3]

    def tune(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Thresholds of the classes, least distance, and the comparison between classes.

        Each class's threshold begins where its own F1 is best. Then each in turn is moved, or its
        class left out, as long as the goal over all classes grows (coordinate ascent), for every
        distance and comparison.
        """
        read = [_read(case.response) for case in cases]
        best: dict[str, Any] = {}
        for distance in DISTANCES_VOX:
            start = [
                self._own_threshold(k, cases, read, distance) for k in range(len(self.classes))
            ]
            for strength in STRENGTHS:
                found = self._ascend(cases, read, distance, strength, start)
                if not best or found["figures"]["goal"] > best["figures"]["goal"]:
                    best = found
        named = dict(zip(self.classes, best["thresholds"], strict=True))
        return {**best, "thresholds": named}

    def _own_threshold(
        self, k: int, cases: Sequence[Case], read: Sequence[_Peaks], distance: float
    ) -> float:
        """Threshold of class k alone with the best F1 against this class's particles."""
        own = [
            Case(
                scene=case.scene, response=case.response, hit_distance_vox=case.hit_distance_vox,
                zyx_vox=case.zyx_vox[[n == self.classes[k] for n in case.classes]],
                classes=[n for n in case.classes if n == self.classes[k]],
            )
            for case in cases
        ]  # fmt: skip
        mine = [rows.of(k).apart(distance) for rows in read]
        scores = np.sort(np.concatenate([rows.score for rows in mine]))[::-1]
        levels = scores[: max(1, len(scores) // 2) : 4]

        def figures(level: float) -> float:
            def picks(n: int) -> Found:
                rows = mine[n].above(level)
                return Found(zyx_vox=rows.zyx, score=rows.score)

            return goal(own, picks)["f1"]

        return float(max(levels, key=figures))

    def _ascend(
        self, cases: Sequence[Case], read: Sequence[_Peaks], distance: float, strength: str,
        start: Sequence[float],
    ) -> dict[str, Any]:  # fmt: skip
        thresholds = list(start)

        def figures(tried: Sequence[float]) -> dict[str, float]:
            return goal(cases, lambda n: self._found(read[n], tried, distance, strength))

        best = figures(thresholds)
        for _ in range(ROUNDS):
            before = best["goal"]
            for k, own in enumerate(start):
                at = thresholds[k] if thresholds[k] < NEVER else own
                for level in [*(at * factor for factor in FACTORS), NEVER]:
                    tried = [*thresholds[:k], level, *thresholds[k + 1 :]]
                    reached = figures(tried)
                    if reached["goal"] > best["goal"]:
                        best, thresholds = reached, tried
            if best["goal"] <= before:
                break
        return {
            "thresholds": thresholds, "distance_vox": distance, "strength": strength,
            "figures": best,
        }  # fmt: skip

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Peaks above their class's threshold; of near ones the strongest, whatever its class."""
        thresholds = [float(tuned["thresholds"][name]) for name in self.classes]
        rows = _read(response)
        return self._found(rows, thresholds, tuned["distance_vox"], tuned["strength"])

    def _found(
        self, rows: _Peaks, thresholds: Sequence[float], distance: float, strength: str
    ) -> Found:
        levels = np.asarray(thresholds)[rows.label]
        rows, levels = rows.where(rows.score >= levels), levels[rows.score >= levels]
        strong = {
            "ratio": rows.score / np.maximum(levels, 1e-9),
            "score": rows.score,
            "sds": (rows.score - rows.moments[rows.label, 0]) / rows.moments[rows.label, 1],
        }[strength]
        order = np.argsort(-strong, kind="stable")
        kept = order[thinned(rows.zyx[order], distance, None)]
        return Found(
            zyx_vox=rows.zyx[kept], score=rows.score[kept],
            classes=[self.classes[k] for k in rows.label[kept]],
        )  # fmt: skip


@dataclass(frozen=True)
class _Peaks:
    """Candidates of all classes: label `(n,)`, zyx `(n, 3)`, score `(n,)`; moments of the maps."""

    label: NDArray[np.int64]
    zyx: NDArray[np.float64]
    score: NDArray[np.float64]
    moments: NDArray[np.float64]

    def where(self, mask: NDArray[np.bool_]) -> _Peaks:
        return _Peaks(self.label[mask], self.zyx[mask], self.score[mask], self.moments)

    def of(self, label: int) -> _Peaks:
        return self.where(self.label == label)

    def apart(self, distance: float) -> _Peaks:
        """Those that no better one is near to; they are in order of score."""
        kept = np.zeros(len(self.label), bool)
        kept[thinned(self.zyx, distance, None)] = True
        return self.where(kept)

    def above(self, level: float) -> _Peaks:
        return self.where(self.score >= level)


def _read(response: Path) -> _Peaks:
    with h5py.File(response, "r") as file:
        rows, moments = file["peaks"][...], file["moments"][...]
    order = np.argsort(-rows[:, 4], kind="stable")
    rows = rows[order]
    return _Peaks(rows[:, 0].astype(np.int64), rows[:, 1:4], rows[:, 4], moments)


def _saved(path: Path, values: NDArray[Any]) -> str:
    """Write an array as .npy under the given name; its absolute path."""
    with atomic_path(path) as partial, Path(partial).open("wb") as stream:
        np.save(stream, np.ascontiguousarray(values, np.float32), allow_pickle=False)
    return str(path.resolve())


def environment_of(python: Path) -> Mapping[str, str]:
    """Versions of what does the work, for the table; empty where it is not installed."""
    code = "import json, tme; print(json.dumps({'pytme': tme.__version__}))"
    if not python.is_file():
        return {}
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=False
    )  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else {}
