"""Images of the settings: labelled ones, read and divided; and those to segment, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.io.micrographs import read_facts, read_micrograph
from tomoline.ops.images import labels_for, prepare_image
from tomoline.settings import SegmentImagesSettings, TrainImagesSettings
from tomoline.training.images import LabelledImage

LABEL_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_seg")


@dataclass(frozen=True, kw_only=True)
class Division:
    """Pairs of image and label files for training, for choosing the epoch, and for the test."""

    training: list[tuple[Path, Path]]
    validation: list[tuple[Path, Path]]
    test: list[tuple[Path, Path]]


def expand(patterns: Sequence[str], *, key: str) -> list[Path]:
    """Files of patterns, each pattern's sorted by name.

    Raises
    ------
    InputError
        For a pattern that no file answers to; `key` is the setting that holds them.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        anchor = Path(path.anchor) if path.anchor else Path()
        relative = path.relative_to(anchor) if path.anchor else path
        wild = any(c in pattern for c in "*?[")
        own = sorted(anchor.glob(str(relative))) if wild else [path]
        if not own:
            raise InputError(
                key, expected=f"files like {pattern}", found="none",
                remedy="correct the pattern, or make the files first",
            )  # fmt: skip
        found += own
    return found


def pairs_of(settings: TrainImagesSettings) -> list[tuple[Path, Path]]:
    """Image and label files, by their order.

    Raises
    ------
    InputError
        For patterns without files, and lists that do not go along with each other.
    """
    images = expand(settings.images, key="train_images.images")
    labels = expand(settings.labels, key="train_images.labels")
    if len(images) != len(labels) or not images:
        raise InputError(
            "train_images", expected="as many labels as images, and some",
            found=f"{len(images)} images and {len(labels)} labels",
            remedy="correct the patterns of images and labels",
        )  # fmt: skip
    for image, label in zip(images, labels, strict=True):
        known = {image.stem + ending for ending in ("", *LABEL_ENDINGS)}
        if label.stem not in known:
            raise InputError(
                label, expected=f"the labels of {image}: {', '.join(sorted(known))}",
                found=label.stem, remedy="name labels as their images, or with _mask behind",
            )  # fmt: skip
    return list(zip(images, labels, strict=True))


def divide(settings: TrainImagesSettings) -> Division:
    """Divide the images by the seed: first the test's, then validation's, the rest to train on."""
    pairs = pairs_of(settings)
    held = settings.test_images + settings.validation_images
    if held >= len(pairs):
        raise InputError(
            "train_images", expected=f"more than {held} images, which are held out",
            found=str(len(pairs)), remedy="lower test_images or validation_images",
        )  # fmt: skip
    order = np.random.default_rng([settings.seed, 12]).permutation(len(pairs))
    chosen = [pairs[k] for k in order]
    test, rest = chosen[: settings.test_images], chosen[settings.test_images :]
    return Division(
        test=sorted(test), validation=sorted(rest[: settings.validation_images]),
        training=sorted(rest[settings.validation_images :]),
    )  # fmt: skip


def pixel_size_of(settings: TrainImagesSettings, found: float | None, path: Path) -> float:
    """Pixel size of an image: that of the settings, else its header's."""
    size = settings.pixel_size_angstrom or found
    if size is None:
        raise InputError(
            path, expected="a pixel size in the header", found="none",
            remedy="set train_images.pixel_size_angstrom",
        )  # fmt: skip
    return size


def load_pair(
    pair: tuple[Path, Path], settings: TrainImagesSettings, model_size: float
) -> LabelledImage:
    """Read an image and its labels, at the model's pixel size."""
    values, facts = read_micrograph(pair[0])
    grey, _ = read_micrograph(pair[1])
    if grey.shape != values.shape:
        raise InputError(
            pair[1], expected=f"labels of {values.shape} pixels, as {pair[0].name}",
            found=f"{grey.shape}", remedy="give the labels in the image's own pixels",
        )  # fmt: skip
    scale = model_size / pixel_size_of(settings, facts.pixel_size_angstrom, pair[0])
    prepared = prepare_image(values, scale, invert=settings.invert)
    labels = labels_for(classes_of(grey, settings), prepared)
    return LabelledImage(name=pair[0].stem, values=prepared.values, labels=labels)  # type: ignore[arg-type]


def classes_of(grey: NDArray[np.generic], settings: TrainImagesSettings) -> NDArray[np.uint8]:
    """Classes, 0 the background, of the grey values of a label image."""
    labels = np.zeros(grey.shape, np.uint8)
    for k, values in enumerate(settings.grey_values.values(), 1):
        labels[np.isin(grey, values)] = k
    return labels


def class_names(settings: TrainImagesSettings) -> list[str]:
    """Names of the classes, the background first."""
    return [BACKGROUND, *settings.grey_values]


def model_size_of(settings: TrainImagesSettings, pairs: list[tuple[Path, Path]]) -> float:
    """Pixel size of the model: as set, else that of the first image."""
    if settings.model_pixel_size_angstrom is not None:
        return settings.model_pixel_size_angstrom
    return pixel_size_of(settings, read_facts(pairs[0][0]).pixel_size_angstrom, pairs[0][0])


def images_by_name(settings: SegmentImagesSettings) -> dict[str, str]:
    """Images of the settings by the names of their folders below the results.

    Raises
    ------
    InputError
        For no images, and for two of one name.
    """
    found: dict[str, str] = {}
    for path in expand(settings.images, key="segment_images.images"):
        name = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-")[:100]
        if not name or name in found:
            raise InputError(
                path, expected="images of different names, fit for folders",
                found=f"{name!r} for this one and {found.get(name)}",
                remedy="rename one of them, or segment them as two data sets",
            )  # fmt: skip
        found[name] = str(path)
    if not found:
        raise InputError(
            "segment_images.images", expected="at least one image", found="none",
            remedy="name the images, with wildcards if there are many",
        )  # fmt: skip
    return found
