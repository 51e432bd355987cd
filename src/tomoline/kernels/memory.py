"""Memory that a pass of a network takes for each voxel. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from tomoline.kernels.triton_plan import plan_of_parameters
from tomoline.networks.cards import ModelCard

Code = Literal["plain", "cpu", "triton"]
# Of the kernel's buffer on a processor: its margins, at the edges that windows have.
MARGINS = 1.15


def bytes_per_voxel(
    card: ModelCard,
    *,
    code: Code = "plain",
    itemsize: int = 4,
    flips: int = 1,
    shape: tuple[int, int, int] | None = None,
) -> float:
    """Bytes for each voxel of a window; every layer's maps stay until the last.

    Parameters
    ----------
    shape:
        Of the volume (zyx): thin ones have wide margins for their size.
    code:
        What runs the network. `plain` layers copy all maps once to add one, and a further half is
        for the convolution's own work space. The kernels keep them in one buffer; that of `triton`
        has columns beside it, and its next window waits on the device already.
    itemsize:
        Bytes of a map's voxel: 2 in bfloat16, 4 in float32.
    flips:
        Passes whose mean is taken.
    """
    parameters = card.parameters
    if card.network == "unet":
        return _unet_bytes(parameters, len(card.classes), itemsize)
    if card.of_images:
        # Logits of all slices, three times, and probabilities of one or three axes; the maps are
        # those of some slices at a time (`networks.slices.CHUNK_PIXELS`).
        return 16.0 + len(card.classes) * (3.0 * itemsize + 16.0)
    channels = int(parameters.get("in_channels", 1))
    depth, width = int(parameters.get("depth", 49)), int(parameters.get("width", 2))
    maps, classes = channels + depth * width, len(card.classes)
    if code == "triton":
        plan = plan_of_parameters(parameters, itemsize)
        waiting, result = 4.0 * 2 * channels, 2.0
        turned = 4.0 * (2 + 2 * classes) if flips > 1 else 0.0
        return plan.bytes_per_voxel(itemsize) + waiting + result + turned
    if code == "cpu":
        if itemsize == 2:  # two maps of a layer lie together
            maps = 2 * (-(-channels // 2) + depth * -(-width // 2))
        reach = int(parameters.get("max_dilation", 7))
        margins = math.prod((n + reach) / n for n in shape) if shape else 1.0
        # The input in both types, the result; with flips both turned, and a sum.
        return itemsize * max(MARGINS, margins) * maps + 7.0 + (18.0 if flips > 1 else 0.0)
    return itemsize * 2.5 * maps + 16.0 * classes


def _unet_bytes(parameters: Mapping[str, Any], classes: int, itemsize: int) -> float:
    """Of a U-Net on its plain layers: the highest level going up, and a half for work space."""
    first, second, *_ = parameters.get("filters", (32, 48, 64))
    return itemsize * 1.5 * (2 * int(first) + 3 * int(second)) + 16.0 * classes
