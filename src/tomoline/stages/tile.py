"""The plan of overlapping windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomoline.contracts import TilePlan, VolumeTransform
from tomoline.io.atomic import atomic_path
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.tiles import choose_tile_size, plan_tiles
from tomoline.settings import TilingSettings
from tomoline.stages.memory import available

SETTINGS = TilingSettings
log = get_logger(__name__)

MEMORY_SHARE = 0.6
# Sizes are rounded down to this, so that a little more or less free memory gives the same plan.
SIZE_STEP_VOX = 16


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: TilingSettings,
    device: str = "auto",
    kernel: str = "auto",
) -> None:
    """Plan the windows of one tomogram for the memory of the `device` of this job.

    `kernel` is the setting of the stage `segment`.
    Inputs `transform` (prepared.json) and `card` (the localizer's); output `plan` (plan.json).
    """
    shape = VolumeTransform.load(inputs["transform"]).prepared_shape_zyx
    card = load_card(inputs["card"])
    memory = available(device=device)
    plan = make_plan(
        shape, card, settings, memory_bytes=MEMORY_SHARE * memory.bytes,
        fast=kernel == "auto" and not memory.on_gpu,
    )  # fmt: skip
    with atomic_path(outputs["plan"]) as partial:
        plan.save(partial)
    log.info(
        "%d windows of at most %d voxels with a halo of %d for a volume of %s",
        len(plan.tiles), plan.size_vox, plan.halo_vox, " x ".join(map(str, shape)),
    )  # fmt: skip


def make_plan(
    shape: tuple[int, int, int],
    card: ModelCard,
    settings: TilingSettings,
    *,
    memory_bytes: float,
    fast: bool = False,
) -> TilePlan:
    """Plan windows by settings, a model, its memory, and whether the CPU kernel runs it (`fast`).

    The automatic halo is what the network sees to each side. Where windows of that halo do not fit
    it is shortened to a quarter of the window with a warning: the outermost layers of a deep
    network's view weigh little, and the merge then looks for artefacts at the cut faces.
    """
    reach = card.receptive_field_vox // 2
    per_voxel = bytes_per_voxel(card, fast=fast)
    wanted = reach if settings.halo_vox < 0 else settings.halo_vox
    size = settings.size_vox
    if size == 0:
        # An automatic halo may be shortened, so it must not make the choice of a size fail.
        size = choose_tile_size(
            shape, bytes_per_voxel=per_voxel, memory_bytes=memory_bytes,
            halo=0 if settings.halo_vox < 0 else wanted,
        )  # fmt: skip
        rounded = size - size % SIZE_STEP_VOX
        if size < max(shape) and rounded > 2 * wanted:
            size = rounded
    if settings.halo_vox < 0 and size < max(shape) and 2 * wanted >= size:
        log.warning(
            "the network looks %d voxels far, more than windows of %d voxels leave room for: the "
            "halo is shortened to %d and values near seams are approximate. Remedy: larger "
            "windows (tiling.size_vox) on a machine with more memory",
            reach, size, size // 4,
        )  # fmt: skip
        wanted = size // 4
    return plan_tiles(shape, size_vox=size, halo_vox=wanted)


def bytes_per_voxel(card: ModelCard, *, fast: bool = False) -> float:
    """Roughly what a pass of a densely connected network holds for each voxel, in float32.

    Every layer's maps stay until the last. Plain layers copy them once to add one, and a further
    half is for the convolution's own work space. The CPU kernel (`fast`) keeps them in one buffer,
    a third larger than the window for its margins; classes are there as logits, as probabilities
    and as their sum over flips.
    """
    parameters = card.parameters
    layers = int(parameters.get("depth", 49)) * int(parameters.get("width", 2))
    maps = int(parameters.get("in_channels", 1)) + layers
    if fast:
        return 4.0 * (1.35 * maps + 5 * len(card.classes) + 4)
    return 4.0 * (2.5 * maps + 4 * len(card.classes))
