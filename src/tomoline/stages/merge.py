"""One probability volume and one mask from the windows of all shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import Tile, TilePlan, VolumeTransform
from tomoline.errors import InputError
from tomoline.io.atomic import allocate, scratch_beside
from tomoline.io.mrc import write_volume
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.morphology import open_mask
from tomoline.ops.tiles import merge_windows
from tomoline.settings import MergeSettings

SETTINGS = MergeSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: MergeSettings,
    sifted_from: float | None = None,
) -> None:
    """Merge one tomogram.

    Inputs `transform`, `plan`, `card` (the localizer's) and `shards` (HDF5 files of the segment
    stage); outputs `probability` (MRC, float32) and `mask` (MRC, int8, 0 or 1). `sifted_from` is
    the threshold that a classifier which sifts asks for (`sifting_threshold`).
    """
    transform = VolumeTransform.load(inputs["transform"])
    plan = TilePlan.load(inputs["plan"])
    card = load_card(inputs["card"])
    if plan.shape_zyx != transform.prepared_shape_zyx:
        raise InputError(
            inputs["plan"], expected=f"a plan of {transform.prepared_shape_zyx} voxels",
            found=f"one of {plan.shape_zyx}", remedy="delete the plan and run again",
        )  # fmt: skip
    threshold = _threshold(settings, card, inputs, sifted_from)
    # With a halo as long as the network's reach every kept voxel is exact already.
    mask_cut = settings.mask_cut_components and plan.halo_vox < card.receptive_field_vox // 2
    scratch = _scratch(outputs["mask"], plan)
    with opened_windows(inputs["shards"], plan) as windows, scratch as arrays:
        probability, mask = arrays
        counts = merge_windows(
            plan, windows, probability=probability, mask=mask, threshold=threshold,
            mask_cut=mask_cut,
        )  # fmt: skip
        open_mask(mask, settings.opening_radius_vox)
        left = sum(int(np.count_nonzero(section)) for section in mask)
        log.info(
            "%d voxels reach %g; %d of them in %d components taken out at cut faces before that; "
            "%d left after the opening",
            counts.foreground_vox, threshold, counts.removed_vox, counts.removed_components, left,
        )  # fmt: skip
        voxel_size = transform.prepared_voxel_size_angstrom
        write_volume(outputs["probability"], probability, voxel_size)
        write_volume(outputs["mask"], mask, voxel_size)


def sifting_threshold(localizer: str | Path, *classifiers: str | Path) -> float | None:
    """The localizer's threshold where a classifier was fitted to sift its candidates.

    Of several classifiers the lowest, so that each sees what it was fitted to.
    """
    finder = load_card(localizer)
    sifts = [load_card(classifier).sift_for(finder) for classifier in classifiers]
    return min((sift.threshold for sift in sifts if sift is not None), default=None)


def _threshold(
    settings: MergeSettings,
    card: ModelCard,
    inputs: Mapping[str, Any],
    sifted_from: float | None,
) -> float:
    """What is set, else what a classifier that sifts asks for, else the localizer's own."""
    if settings.threshold is not None:
        return settings.threshold
    if sifted_from is not None:
        log.info("the classifier sifts candidates from %g on", sifted_from)
        return sifted_from
    if card.threshold is None:
        raise InputError(
            inputs["card"], expected="a localizer's threshold", found="none",
            remedy="correct models.localizer, or set merge.threshold",
        )  # fmt: skip
    return card.threshold


@contextmanager
def opened_windows(
    shards: str | Path | Sequence[str | Path], plan: TilePlan
) -> Iterator[Callable[[Tile], Any]]:
    """Open all shards; yields what gives a window's data set, from which boxes can be read.

    Raises
    ------
    InputError
        If a window of the plan is in no shard or in two.
    """
    paths = [shards] if isinstance(shards, (str, Path)) else list(shards)
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for path in paths:
            try:
                file = stack.enter_context(h5py.File(path, "r"))
            except OSError as error:
                raise _bad_shards(str(path), "an HDF5 file", str(error)) from error
            double = found.keys() & file.keys()
            if double:
                raise _bad_shards(str(path), "every window once", f"{sorted(double)[0]} again")
            found |= {name: file[name] for name in file}
            other = [name for name in file if file[name].dtype != np.uint8]
            if other:
                kind = f"{other[0]} of type {file[other[0]].dtype}"
                raise _bad_shards(str(path), "windows of bytes", f"{kind}, as of an older release")
        missing = [f"tile_{t.index}" for t in plan.tiles if f"tile_{t.index}" not in found]
        if missing:
            words = f"{len(missing)} missing, such as {missing[0]}"
            raise _bad_shards(", ".join(map(str, paths)), "all windows of the plan", words)
        yield lambda tile: _Window(found[f"tile_{tile.index}"])


class _Window:
    """A window's bytes as probabilities; only the box that is asked for is read."""

    def __init__(self, data: Any) -> None:
        self._data, self.shape = data, data.shape

    def __getitem__(self, box: Any) -> NDArray[np.float32]:
        return np.asarray(self._data[box] / np.float32(255), np.float32)


def _bad_shards(source: str, expected: str, found: str) -> InputError:
    return InputError(
        source, expected=expected, found=found, remedy="delete the tomogram's segment folder and "
        "run again",
    )  # fmt: skip


@contextmanager
def _scratch(mask: str, plan: TilePlan) -> Iterator[tuple[Any, Any]]:
    """Two volumes on disk, so that memory holds one window at a time."""
    with scratch_beside(mask) as folder:
        arrays = []
        for name, kind in (("probability", np.float32), ("mask", np.int8)):
            allocate(folder / name, math.prod(plan.shape_zyx) * np.dtype(kind).itemsize)
            arrays.append(np.memmap(folder / name, kind, "r+", shape=plan.shape_zyx))
        yield arrays[0], arrays[1]
