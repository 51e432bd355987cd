"""Micrographs for the picker: the particle's extent, grey values, cells to picks and back.

Points are `(n, 2)`, yx, in pixels; 0 is the centre of the first pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tomoline.ops.normalise import apply_scale, repair, robust_scale
from tomoline.ops.picking import thinned
from tomoline.ops.rescale import plan_axis, rescale_axis

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

# Side of a particle's box in model pixels, as in the authors' code.
EXTENT_PX = 21.0
CELL_PX = 16
# Grey values farther from the median (in robust SDs) are faults of the detector.
HOT_SD = 8.0
CLIP_SD = 5.0
# What varies over more than this many extents is ice or illumination.
BACKGROUND_EXTENTS = 2.5
TOO_CLOSE, AT_EDGE, MASKED, LOW = (
    "too close to another", "at the edge", "in the mask", "below the threshold"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A micrograph at the model's extent, particles bright, and the way back.

    `values` `(Y, X)`; a pixel of it is `scale_yx` given ones: `given = prepared * scale_yx`.
    `empty` is true where all pixels are equal: there is nothing to find then.
    """

    values: Image
    scale_yx: tuple[float, float]
    given_shape: tuple[int, int]
    empty: bool = False

    def to_given(self, yx: Floats) -> Floats:
        """Points of the prepared micrograph in pixels of the given one."""
        given: Floats = np.asarray(yx, float).reshape(-1, 2) * np.asarray(self.scale_yx)
        return given

    def to_prepared(self, yx: Floats) -> Floats:
        """Points of the given micrograph in pixels of the prepared one."""
        prepared: Floats = np.asarray(yx, float).reshape(-1, 2) / np.asarray(self.scale_yx)
        return prepared


def prepare_micrograph(
    image: NDArray[Any], diameter_px: float, *, contrast: str = "dark", extent_px: float = EXTENT_PX
) -> Prepared:
    """Rescale `(Y, X)` so that a particle is `extent_px` wide, flatten and normalise it.

    NaN and infinite pixels become the mean, single hot ones are clipped, the image is Fourier
    cropped or padded, what varies over more than 2.5 particles is taken off, and the rest is
    divided by its robust SD and clipped at 5 SD. The authors' code gives the network raw grey
    values; without this an illumination gradient or one hot pixel decides what it sees.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"a micrograph has two axes and some pixels, not shape {image.shape}")
    ny, nx = image.shape
    whole, _ = repair(np.asarray(image, np.float32))
    whole = _unspotted(whole)
    factor = diameter_px / extent_px
    volume, scales = np.asarray(whole, np.float32)[None], []
    for axis in (1, 2):
        plan = plan_axis(volume.shape[axis], factor)
        volume = rescale_axis(volume, plan, axis) if factor != 1 else volume
        scales.append(plan.scale if factor != 1 else 1.0)
    values, empty = flattened(volume[0], extent_px, invert=contrast == "dark")
    return Prepared(
        values=values, scale_yx=(scales[0], scales[1]), given_shape=(ny, nx), empty=empty
    )


def flattened(
    image: Image, extent_px: float = EXTENT_PX, *, invert: bool = False
) -> tuple[Image, bool]:
    """Take slow variation off and divide by the robust SD; and whether nothing varies at all."""
    spread = float(np.ptp(image)) if image.size else 0.0
    if spread <= 1e-6 * max(1.0, float(np.abs(image).max())):
        return np.zeros(image.shape, np.float32), True
    flat = image - gaussian_filter(image, BACKGROUND_EXTENTS * extent_px, mode="nearest")
    scale = robust_scale(flat[None])
    if scale.sd <= 0:
        return np.zeros(image.shape, np.float32), True
    values = apply_scale(flat[None], scale, invert=invert)[0]
    return np.clip(values, -CLIP_SD, CLIP_SD, out=values), False


def _unspotted(image: NDArray[Any]) -> NDArray[Any]:
    """Clip far outliers, which a Fourier crop would otherwise spread over a particle's size."""
    middle = float(np.median(image))
    low, high = np.percentile(image, (15.87, 84.13))
    sd = (float(high) - float(low)) / 2
    if sd <= 0:
        return image
    clipped: NDArray[Any] = np.clip(image, middle - HOT_SD * sd, middle + HOT_SD * sd)
    return clipped


def padded(image: Image, multiple: int = CELL_PX) -> Image:
    """Fill up to multiples of a cell at the far ends, by mirror images of what is there."""
    ny, nx = image.shape
    after = ((0, -ny % multiple), (0, -nx % multiple))
    # `symmetric` works for rims wider than the image too.
    return np.pad(image, after, mode="symmetric")


def anchors(cells: tuple[int, int]) -> Floats:
    """Centres `(I, J, 2)` of cells, yx pixels: cell i holds the pixels 16 i to 16 i + 15."""
    i, j = np.indices(cells)
    centres: Floats = np.stack([i, j], -1).astype(np.float64) * CELL_PX + (CELL_PX - 1) / 2
    return centres


def decoded(output: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Points `(n, 2)` and probabilities `(n,)` of a network's output `(3, I, J)`, row by row."""
    offsets = np.moveaxis(output[:2].astype(float), 0, -1)
    points = anchors((output.shape[1], output.shape[2])) + offsets
    logits = output[2].astype(float).ravel()
    return points.reshape(-1, 2), 1 / (1 + np.exp(-logits))


def iou_of_squares(a: Floats, b: Floats, side_px: float) -> Floats:
    """Intersection over union `(n, m)` of squares of one size about the points of `a` and `b`."""
    apart = np.abs(np.asarray(a, float)[:, None] - np.asarray(b, float)[None])
    shared = np.clip(side_px - apart, 0, None).prod(-1)
    overlap: Floats = shared / (2 * side_px**2 - shared)
    return overlap


@dataclass(frozen=True, kw_only=True)
class PickRules:
    """What makes a candidate a pick; lengths in particle diameters."""

    threshold: float = 0.5
    min_distance: float = 0.6
    edge: float = 0.5
    floor: float = 0.02


def judged(
    yx: Floats,
    score: Floats,
    rules: PickRules,
    *,
    diameter_px: float,
    shape: tuple[int, int],
    mask: NDArray[np.bool_] | None = None,
) -> Mapping[str, NDArray[Any]]:
    """Say of each candidate whether it is a pick, and why not.

    Candidates below `floor` and outside the image are dropped. Of two nearer than `min_distance`
    the better one stays: two cells often answer to one particle, and the authors' code keeps both.
    One nearer to the edge than `edge`, or on a true pixel of `mask` `(Y, X)`, is rejected, but
    still silences its neighbours, which would otherwise take its place.

    Returns
    -------
    dict
        `yx`, `score` and `reason` (empty for picks), best first; equal scores in the order y, x.
    """
    within = (yx > -0.5).all(1) & (yx < np.asarray(shape) - 0.5).all(1) & (score >= rules.floor)
    yx, score = yx[within], score[within]
    order = np.lexsort((yx[:, 1], yx[:, 0], -score))
    yx, score = yx[order], score[order]
    reason = np.full(len(score), "", dtype=object)
    kept = np.zeros(len(score), bool)
    kept[thinned(yx, rules.min_distance * diameter_px, None)] = True
    reason[~kept] = TOO_CLOSE
    margin = rules.edge * diameter_px
    edge = (yx < margin - 0.5).any(1) | (yx > np.asarray(shape) - 0.5 - margin).any(1)
    reason[edge & (reason == "")] = AT_EDGE
    if mask is not None and len(yx):
        at = np.rint(yx).astype(int).clip(0, np.asarray(shape) - 1)
        reason[mask[at[:, 0], at[:, 1]] & (reason == "")] = MASKED
    reason[(score < rules.threshold) & (reason == "")] = LOW
    return {"yx": yx, "score": score, "reason": reason}
