"""What the jobs of a benchmark share: methods by kind, truth, and the cost of a step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import VolumeTransform
from tomoline.export.geometry import TomogramGeometry
from tomoline.io.annotations import TruthOptions, read_occupancy, read_truth
from tomoline.peers.base import Method, Scene
from tomoline.peers.dog import DogPicker
from tomoline.peers.pytme import PytmeMatcher
from tomoline.settings import BenchmarkMethod, BenchmarkTomogram, DatasetSettings
from tomoline.simulation.densities import SHREC_CLASSES
from tomoline.stages.benchmark_files import files_of


def method_of(settings: BenchmarkMethod, *, densities: Path) -> Method:
    """The method that the settings describe; `densities` is the folder of templates."""
    folder = Path(settings.folder)
    if settings.kind == "dog":
        return DogPicker()
    if settings.kind == "pytme":
        return PytmeMatcher(
            densities=densities, classes=tuple(settings.classes) or SHREC_CLASSES,
            python=Path(settings.python), angle_deg=settings.angle_deg, bin=settings.bin,
        )  # fmt: skip
    # Loaded where they are needed: torch takes seconds.
    if settings.kind == "unet":
        from tomoline.peers.network import VoxelNetwork  # noqa: PLC0415

        return VoxelNetwork(folder=folder / settings.classifier)
    from tomoline.stages.benchmark_line import OwnLine  # noqa: PLC0415

    return OwnLine(
        localizer=folder / settings.localizer, classifier=folder / settings.classifier,
        components=settings.centres == "components", flips=settings.flips,
    )  # fmt: skip


def scene_of(
    inputs: Any, tomogram: BenchmarkTomogram, *, work: str | Path, threads: int = 1
) -> Scene:
    """The tomogram as methods see it."""
    return Scene(
        volume=Path(inputs["volume"]), transform=Path(inputs["transform"]), work=Path(work),
        tilts_deg=tomogram.tilts_deg, threads=threads,
    )  # fmt: skip


def truth_of(
    tomogram: BenchmarkTomogram, transform: VolumeTransform
) -> tuple[pd.DataFrame, NDArray[np.integer[Any]] | None]:
    """Known particles in voxels of the given tomogram, and the volume of their numbers."""
    files = files_of(tomogram)
    geometry = TomogramGeometry.of(transform, DatasetSettings(name="benchmark", sheet="none"))
    truth = read_truth(files["truth"], TruthOptions(geometry=geometry))
    given = files.get("occupancy")
    return truth, read_occupancy(given, transform.given_shape_zyx) if given else None


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Wall and processor seconds of a block, of this process and the programs it waited for."""
    cost: dict[str, float] = {}
    wall, before = time.monotonic(), os.times()
    yield cost
    after = os.times()
    cost["wall_s"] = round(time.monotonic() - wall, 2)
    cost["processor_s"] = round(sum(after[:4]) - sum(before[:4]), 2)
