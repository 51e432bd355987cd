"""Particle probability of the windows of one shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import Tile, TilePlan
from tomoline.errors import InputError
from tomoline.infer import Progress, Runner, make_runner, split_on_memory
from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.log import get_logger
from tomoline.settings import SegmentSettings

SETTINGS = SegmentSettings
log = get_logger(__name__)


def parse_shard(shard: str) -> tuple[int, int]:
    """`"2-of-4"` (Snakemake's scatter item) as `(2, 4)`."""
    number, of = shard.split("-of-")
    return int(number), int(of)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: SegmentSettings,
    shard: str = "1-of-1",
) -> None:
    """Write `tile_<index>`, float16 `(z, y, x)` of each window's read box, for one shard.

    Inputs `volume` (prepared.mrc), `plan` (plan.json) and `card` (the localizer's); output
    `probability` (HDF5).
    """
    plan = TilePlan.load(inputs["plan"])
    volume = open_volume(inputs["volume"])
    if volume.shape != tuple(plan.shape_zyx):
        raise InputError(
            inputs["volume"], expected=f"{plan.shape_zyx} voxels as in {inputs['plan']}",
            found=str(volume.shape), remedy="delete both and run again",
        )  # fmt: skip
    runner = make_runner(inputs["card"], settings)
    if runner.card.role != "localizer":
        raise InputError(
            inputs["card"], expected="a localizer", found=f"a {runner.card.role}",
            remedy="correct models.localizer in the configuration",
        )  # fmt: skip
    tiles = plan.shard(*parse_shard(shard))
    halo = max(plan.halo_vox, runner.card.receptive_field_vox // 2)
    progress = Progress(len(tiles), "window", log)
    with atomic_stream(outputs["probability"]) as stream, h5py.File(stream, "w") as file:
        for tile in tiles:
            p = _tile_probability(runner, volume, tile, halo)
            file.create_dataset(f"tile_{tile.index}", data=p.astype(np.float16), track_times=False)
            stream.check()
            progress.step()


def _tile_probability(
    runner: Runner, volume: NDArray[Any], tile: Tile, halo: int
) -> NDArray[np.float32]:
    box = tuple(slice(a, b) for a, b in zip(tile.read_start, tile.read_stop, strict=True))
    window = np.asarray(volume[box], np.float32)

    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(runner.probabilities(part[None])[0, 1])

    return split_on_memory(predict, window, halo=halo, device=runner.device)
