"""The plan of overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tomoline.contracts import TilePlan, VolumeTransform
from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path
from tomoline.kernels.memory import bytes_per_voxel
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.tiles import choose_windows, cost, plan_tiles
from tomoline.processor import cpu_has_bfloat16
from tomoline.settings import InferenceSettings, SegmentSettings, TilingSettings
from tomoline.stages.memory import Available, available

SETTINGS = TilingSettings
log = get_logger(__name__)

# Of the memory that is free; the rest is for torch itself and for what else comes and goes.
MEMORY_SHARE, GPU_SHARE = 0.7, 0.9
# A halo as long as the network looks gives the untiled volume's values to the last digit. Where it
# costs more than this, a voxel, the measured halo of the card is taken.
EXACT_COST = 1.5
# Without a GPU windows stay below this where that costs little: others use the machine too.
MODEST_BYTES, MODEST_COST = 5e9, 1.25
# With less memory than this for a window nothing sensible is left.
SMALLEST_VOX = 16**3


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: TilingSettings,
    inference: Mapping[str, Any] | None = None,
) -> None:
    """Plan the windows of one tomogram for the memory of this job's device.

    `inference` are the settings of the stage `segment` (its device, precision, kernel, flips).
    Inputs `transform` (prepared.json) and `card` (the localizer's); output `plan` (plan.json).
    """
    shape = VolumeTransform.load(inputs["transform"]).prepared_shape_zyx
    card = load_card(inputs["card"])
    runs = SegmentSettings.model_validate(inference or {})
    memory = available(device=runs.device)
    plan = make_plan(
        shape, card, settings, memory_bytes=usable(memory),
        per_voxel=window_bytes(card, runs, on_gpu=memory.on_gpu),
        modest_bytes=math.inf if memory.on_gpu else MODEST_BYTES,
    )  # fmt: skip
    with atomic_path(outputs["plan"]) as partial:
        plan.save(partial)
    log.info(
        "%d windows of at most %d voxels with a halo of %d for a volume of %s: %.2f voxels "
        "computed for each one kept", len(plan.tiles), plan.size_vox, plan.halo_vox,
        " x ".join(map(str, shape)), cost(plan),
    )  # fmt: skip


def usable(memory: Available) -> float:
    """Bytes of the memory that windows may take."""
    if memory.on_gpu:
        return GPU_SHARE * memory.bytes
    return MEMORY_SHARE * memory.bytes


def window_bytes(card: ModelCard, runs: InferenceSettings, *, on_gpu: bool) -> float:
    """Bytes for each voxel of a window, with the code and the precision that will run it."""
    if runs.kernel == "plain":
        return bytes_per_voxel(card)
    low = runs.precision == "bfloat16" or (
        runs.precision == "auto" and (on_gpu or cpu_has_bfloat16())
    )
    return bytes_per_voxel(
        card, code="triton" if on_gpu else "cpu", itemsize=2 if low else 4,
        flips=runs.test_time_flips,
    )  # fmt: skip


def make_plan(
    shape: tuple[int, int, int],
    card: ModelCard,
    settings: TilingSettings,
    *,
    memory_bytes: float,
    per_voxel: float,
    modest_bytes: float = math.inf,
) -> TilePlan:
    """Plan windows by settings, a model, memory, and what a voxel of a window takes of it.

    The automatic halo is what the network sees to each side; where that costs much, or leaves no
    room, the halo beyond which changes were measured to be too small to see (the card's
    `halo_vox`). Where not even that fits, it is shortened to a quarter of the window with a
    warning, and the merge looks for artefacts at the cut faces. Windows take no more than
    `modest_bytes` where larger ones would not save a fifth of the work.

    Raises
    ------
    InputError
        Where a halo that was asked for leaves no room, or memory is too small for any window.
    """
    reach = card.receptive_field_vox // 2
    if settings.halo_vox >= 0:
        halos = [settings.halo_vox]
    else:
        halos = [reach, *[h for h in (card.halo_vox,) if h is not None and h < reach]]
    most, modest = int(memory_bytes / per_voxel), min(memory_bytes, modest_bytes) / per_voxel
    plans = [
        plan for halo in halos
        if (plan := _plan(shape, settings.size_vox, (int(modest), most), halo))
    ]  # fmt: skip
    cheap = [plan for plan in plans if cost(plan) <= EXACT_COST]
    if cheap:
        return max(cheap, key=lambda plan: plan.halo_vox)
    if plans:
        return min(plans, key=cost)
    if settings.halo_vox >= 0 and settings.size_vox:
        return plan_tiles(shape, size_vox=settings.size_vox, halo_vox=settings.halo_vox)  # refuses
    if settings.halo_vox >= 0 or most < SMALLEST_VOX:
        need = SMALLEST_VOX if settings.halo_vox < 0 else math.prod(
            min(n, 2 * settings.halo_vox + 1) for n in shape
        )  # fmt: skip
        raise InputError(
            "tiling", expected=f"memory for windows of at least {need} voxels "
            f"({need * per_voxel / 1e9:.2f} GB)",
            found=f"{memory_bytes / 1e9:.2f} GB that windows may take",
            remedy="use a machine with more memory, a smaller model, or a smaller tiling.halo_vox",
        )  # fmt: skip
    size = settings.size_vox or round(most ** (1 / 3))
    log.warning(
        "the network looks %d voxels far, more than windows of %d voxels leave room for: the "
        "halo is shortened to %d and values near seams are approximate. Remedy: larger "
        "windows (tiling.size_vox) on a machine with more memory", halos[-1], size, size // 4,
    )  # fmt: skip
    if settings.size_vox:
        return plan_tiles(shape, size_vox=size, halo_vox=size // 4)
    sizes = choose_windows(shape, most_vox=most, halo=size // 4)
    return plan_tiles(shape, size_vox=sizes or size, halo_vox=size // 4)


def _plan(
    shape: tuple[int, int, int], size: int, most_vox: tuple[int, int], halo: int
) -> TilePlan | None:
    """A plan with a halo, of modest windows or, where that costs much, of large ones.

    None where windows leave no room for the halo.
    """
    if size:
        fits = max(shape) <= size or 2 * halo < size
        return plan_tiles(shape, size_vox=size, halo_vox=halo) if fits else None
    sizes = [choose_windows(shape, most_vox=most, halo=halo) for most in most_vox]
    modest, large = (s and plan_tiles(shape, size_vox=s, halo_vox=halo) for s in sizes)
    if modest and large and cost(modest) <= MODEST_COST * cost(large):
        return modest
    return large
