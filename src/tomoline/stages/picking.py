"""Running a picker on prepared micrographs: what picking, training and evaluation share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoline.infer import is_out_of_memory
from tomoline.log import get_logger
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.ops.micrographs import (
    CELL_PX,
    EXTENT_PX,
    Floats,
    PickRules,
    Prepared,
    decoded,
    judged,
    padded,
)

log = get_logger(__name__)

CPU = torch.device("cpu")
# Half a cell: particles at the corner of four cells, or two in one cell, lie well for one of these.
SHIFTS_PX = ((0, 0), (0, 8), (8, 0), (8, 8))


@dataclass(frozen=True, kw_only=True)
class Picking:
    """Which head is run, and where.

    `shifts` 1 or 4: how often the grid of cells is laid over the micrograph. A cell answers for
    one particle, so with one grid a second one in a cell is lost; the four grids' candidates are
    judged together.
    """

    head: str = GENERAL
    shifts: int = 4
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32


def candidates(network: HydraPicker, prepared: Prepared, how: Picking) -> tuple[Floats, Floats]:
    """Points `(n, 2)` in prepared pixels and probabilities of all cells; none where it is empty."""
    points, scores = [np.empty((0, 2))], [np.empty(0)]
    if not prepared.empty:
        for shift in SHIFTS_PX[: how.shifts]:
            output = _output(network, prepared.values, shift, how)
            yx, score = decoded(output)
            points.append(yx - np.asarray(shift))
            scores.append(score)
    return np.concatenate(points), np.concatenate(scores)


def picks_in(
    network: HydraPicker,
    prepared: Prepared,
    how: Picking,
    rules: PickRules,
    *,
    mask: NDArray[np.bool_] | None = None,
    extent_px: float = EXTENT_PX,
) -> Mapping[str, NDArray[Any]]:
    """Judged candidates of a micrograph, as `ops.micrographs.judged`, in given pixels.

    `mask` is of the given micrograph's size. Distances are judged where they were measured, in the
    prepared micrograph.
    """
    yx, score = candidates(network, prepared, how)
    shape = prepared.values.shape
    small = None
    if mask is not None:
        small = _sampled(mask, prepared)
    found = judged(yx, score, rules, diameter_px=extent_px, shape=(shape[0], shape[1]), mask=small)
    return {**found, "yx": prepared.to_given(found["yx"])}


def _sampled(mask: NDArray[np.bool_], prepared: Prepared) -> NDArray[np.bool_]:
    """The mask's value at each prepared pixel's centre."""
    rows, columns = (
        np.rint(np.arange(n) * s).astype(int).clip(0, m - 1)
        for n, s, m in zip(prepared.values.shape, prepared.scale_yx, mask.shape, strict=True)
    )
    sampled: NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return sampled


def _output(
    network: HydraPicker, values: NDArray[np.float32], shift: tuple[int, int], how: Picking
) -> NDArray[np.float32]:
    """The network's `(3, I, J)` for the micrograph moved by `shift`; on a GPU, else on the CPU."""
    moved = np.pad(values, ((shift[0], 0), (shift[1], 0)), mode="symmetric")
    x = torch.from_numpy(np.ascontiguousarray(padded(moved, CELL_PX)))[None, None]
    with torch.inference_mode():
        try:
            output = network(x.to(how.device, how.dtype), how.head)
        except RuntimeError as error:
            if how.device.type == "cpu" or not is_out_of_memory(error):
                raise
            log.warning("too large for the GPU's memory: this micrograph is done on the processor")
            output = network.cpu()(x, how.head)
            network.to(how.device)
    result: NDArray[np.float32] = output[0].float().cpu().numpy()
    return result
