"""Particle probability of the windows of one shard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import h5py

from tomoline.contracts import TilePlan
from tomoline.errors import InputError
from tomoline.infer import Progress, Runner, make_runner, window_bytes
from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.kernels.memory import Code, bytes_per_voxel
from tomoline.log import get_logger
from tomoline.ops.tiles import box
from tomoline.settings import SegmentSettings
from tomoline.stages.memory import available

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
    """Write `tile_<index>`, uint8 `(z, y, x)` in 1/255, of each window's read box, for one shard.

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
    boxes = [box(tile.read_start, tile.read_stop) for tile in tiles]
    progress = Progress(len(tiles), "window", log)
    with atomic_stream(outputs["probability"]) as stream, h5py.File(stream, "w") as file:
        most = _most_voxels(runner, settings, plan)
        results = window_bytes(runner, volume, boxes, halo=plan.halo_vox, most_vox=most)
        for tile, p in zip(tiles, results, strict=True):
            file.create_dataset(f"tile_{tile.index}", data=p, track_times=False)
            stream.check()
            progress.step()


def _most_voxels(runner: Runner, settings: SegmentSettings, plan: TilePlan) -> float:
    """Voxels of a window that the code which runs it has memory for.

    The plan was made for a device and code that another node, a driver that is too old for torch or
    a kernel's failed trial may have denied it. Processes that are killed for memory say nothing.
    """
    code: Code = "triton" if runner.kernel == "triton" else "plain"
    if runner.kernel == "cpu":
        code = "cpu"
    each = bytes_per_voxel(
        runner.card, code=code, itemsize=runner.dtype.itemsize, flips=settings.test_time_flips,
        shape=plan.shape_zyx,
    )  # fmt: skip
    memory = available(device=runner.device.type)
    if (runner.device.type == "cuda") != memory.on_gpu:  # a GPU that nvidia-smi does not tell of
        return math.inf
    return memory.bytes / each
