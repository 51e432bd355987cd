"""Images for a segmenter, and its probabilities back in the image's own pixels.

Arrays are `(y, x)`, or `(C, y, x)` for the probabilities of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoline.ops.normalise import normalise, repair
from tomoline.ops.rescale import rescale

Floats = NDArray[np.float32]
# Relative difference of pixel sizes that is left as it is.
TOLERANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image at the model's pixel size, normalised; `given = prepared * scale_yx`."""

    values: Floats
    scale_yx: tuple[float, float]
    given_shape: tuple[int, int]


def prepare_image(
    image: NDArray[Any], scale: float = 1.0, *, invert: bool = False
) -> PreparedImage:
    """Rescale (Fourier crop) so that a pixel is `scale` given ones, and normalise.

    Background mean 0, SD 1; what is not finite is the mean. A constant image becomes 0.
    """
    mended = repair(np.asarray(image))[0]
    shape = (image.shape[0], image.shape[1])
    scales = (1.0, 1.0, 1.0)
    volume = np.asarray(mended, np.float32)[None]
    if abs(scale - 1) > TOLERANCE:
        volume, scales = rescale(volume, scale)
    values = normalise(volume[:1], invert=invert)[0]
    return PreparedImage(values=values, scale_yx=scales[1:], given_shape=shape)


def labels_for(
    labels: NDArray[np.integer[Any]], prepared: PreparedImage
) -> NDArray[np.integer[Any]]:
    """Labels of the given image at the prepared one's pixels: those of the nearest given pixel."""
    index = [
        np.clip(np.rint(np.arange(n) * scale), 0, given - 1).astype(int)
        for n, scale, given in zip(
            prepared.values.shape, prepared.scale_yx, prepared.given_shape, strict=True
        )
    ]
    return np.asarray(labels[np.ix_(*index)])


def to_given(probabilities: Floats, prepared: PreparedImage) -> Floats:
    """Probabilities `(C, y, x)` of a prepared image in the given one's pixels, linearly."""
    if prepared.given_shape == probabilities.shape[1:] and prepared.scale_yx == (1.0, 1.0):
        return probabilities
    y, x = (
        np.arange(n) / scale
        for n, scale in zip(prepared.given_shape, prepared.scale_yx, strict=True)
    )
    grid = np.stack(np.meshgrid(y, x, indexing="ij"))
    return np.stack([
        ndimage.map_coordinates(p, grid, order=1, mode="nearest") for p in probabilities
    ])  # fmt: skip


def label_image(
    probabilities: Floats, threshold: float, least_area_px: float = 0.0
) -> NDArray[np.uint8]:
    """Class of each pixel, from 1, where the background's probability leaves `threshold` or more.

    Of several classes the likeliest. Patches of fewer pixels than `least_area_px` are left out.
    """
    marked = 1 - probabilities[0] >= threshold
    if least_area_px > 1 and marked.any():
        patches, count = ndimage.label(marked)
        areas = ndimage.sum_labels(marked, patches, np.arange(count + 1))
        marked &= (areas >= least_area_px)[patches]
    kinds = 1 + probabilities[1:].argmax(0)
    return np.asarray(np.where(marked, kinds, 0), np.uint8)
