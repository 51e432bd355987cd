"""A segmenter on one image or micrograph: what is what, in the image's own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoline.errors import InputError
from tomoline.infer import (
    Runner,
    choose_device,
    choose_precision,
    for_images,
    make_runner,
    split_on_memory,
)
from tomoline.io.atomic import write_json
from tomoline.io.micrographs import read_micrograph
from tomoline.io.png import write_grey
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard
from tomoline.ops.images import label_image, prepare_image, to_given
from tomoline.settings import InferenceSettings, SegmentImagesSettings

SETTINGS = SegmentImagesSettings
log = get_logger(__name__)

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
MOST_PIXELS = 1 << 23  # of a pass; larger images go in halves that overlap


class Device(Protocol):
    """The settings that say where a network runs."""

    @property
    def device(self) -> Any: ...

    @property
    def precision(self) -> Any: ...


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: SegmentImagesSettings
) -> None:
    """Segment one image.

    Inputs `image` and `card` (the segmenter's). Outputs, of the image's size and order of rows:
    `probability` (PNG, 255 times the probability of not being background), `mask` (PNG, 0
    background, else the class's place in the card from 1), `summary` (JSON: classes, shares).
    """
    runner = make_runner(inputs["card"], InferenceSettings(
        device=settings.device, precision=settings.precision, test_time_flips=1,
    ))  # fmt: skip
    card = runner.card
    if card.role != "segmenter":
        raise InputError(
            inputs["card"], expected="a segmenter of images", found=f"a {card.role}",
            remedy="correct segment_images.model",
        )  # fmt: skip
    image, facts = read_micrograph(inputs["image"])
    size = settings.pixel_size_angstrom or facts.pixel_size_angstrom
    if size is None:
        raise InputError(
            inputs["image"], expected="a pixel size in the header", found="none",
            remedy="set segment_images.pixel_size_angstrom",
        )  # fmt: skip
    prepared = prepare_image(image, card.voxel_size_angstrom / size, invert=settings.invert)
    p = to_given(
        image_probabilities(runner, prepared.values, settings.test_time_flips), prepared
    )  # fmt: skip
    threshold = settings.threshold or card.threshold
    assert threshold is not None
    labels = label_image(p, threshold, settings.least_area_nm2 / (size / 10) ** 2)
    write_grey(Path(outputs["probability"]), np.rint(255 * (1 - p[0]).clip(0, 1)).astype(np.uint8))
    write_grey(Path(outputs["mask"]), labels)
    shares = {name: round(float((labels == k).mean()), 6) for k, name in enumerate(card.classes)}
    write_json(Path(outputs["summary"]), {
        "model": card.name, "threshold": threshold, "pixel_size_angstrom": size,
        "classes": dict(enumerate(card.classes)), "shares": shares,
    })  # fmt: skip
    log.info("%s", ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()))


def image_probabilities(
    runner: Runner, image: NDArray[np.float32], flips: int = 1
) -> NDArray[np.float32]:
    """Class probabilities `(C, y, x)` of a prepared image, averaged over 1 or 4 flips of it."""
    once = replace(runner, flips=1)
    halo = -(-runner.card.receptive_field_vox // 32) * 16

    def predict(part: NDArray[np.float32]) -> NDArray[np.float32]:
        if part.size > MOST_PIXELS:
            raise MemoryError(f"at most {MOST_PIXELS} pixels at once")
        return once.probabilities(part[None, None])[0, :, 0]

    total = np.zeros((len(runner.card.classes), *image.shape), np.float32)
    for axes in FLIPS[:flips]:
        turned = np.ascontiguousarray(np.flip(image, axes) if axes else image)
        p = split_on_memory(predict, turned, halo=halo, device=runner.device)
        total += np.flip(p, axes) if axes else p
    return np.asarray(total / flips, np.float32)


def runner_from(card: ModelCard, network: nn.Module, settings: Device) -> Runner:
    """A network of images ready to predict, of weights that are not on disk yet."""
    device = choose_device(settings.device)
    precision: torch.dtype = choose_precision(settings.precision, device)
    return Runner(card, for_images(network).to(device).eval(), device, precision, "plain", 1)
