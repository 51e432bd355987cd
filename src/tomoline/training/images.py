"""Recipe for segmenters of images: classes of pixels, by cross-entropy and soft Dice.

Augmentation as in the paper of PyConvU-Net: horizontal and vertical flips, turns by 90 and 180
degrees; and a little change of grey values. Windows are cut at random places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.evaluation.segmentation import confusion_matrix, scores_of_confusion
from tomoline.training.augment import random_intensity
from tomoline.training.losses import tversky_loss, weighted_focal_loss


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image `(y, x)`, normalised, and the class of each of its pixels, 0 the background."""

    name: str
    values: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Batches and loss."""

    crop_px: int = 256
    batch_size: int = 2
    steps_per_epoch: int = 16
    intensity: float = 0.1
    gamma: float = 0.0
    dice_weight: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0


class ImageRecipe:
    """Batches, loss and validation figures; see the module's text."""

    def __init__(
        self,
        training: Sequence[LabelledImage],
        validation: Sequence[LabelledImage],
        classes: int,
        options: ImageOptions,
    ) -> None:
        self.training, self.held_out = training, validation
        self.classes, self.options = classes, options

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.options.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Random windows; the images come in turn, in a new order each time round."""
        o = self.options
        rng = np.random.default_rng([o.seed, epoch, 9])
        order: list[int] = []
        for _ in range(o.steps_per_epoch):
            items = []
            for _ in range(o.batch_size):
                order = order or list(rng.permutation(len(self.training)))
                items.append(window(self.training[order.pop()], o, rng))
            yield {
                "volume": torch.from_numpy(np.stack([i[0] for i in items])[:, None]),
                "labels": torch.from_numpy(np.stack([i[1] for i in items])),
            }

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, focused where gamma is not 0, and the wanted part of soft Dice."""
        o = self.options
        logits, target = self._logits(network, batch["volume"]), batch["labels"].to(o.device)
        loss = weighted_focal_loss(logits, target, gamma=o.gamma)
        if o.dice_weight:
            loss = loss + o.dice_weight * tversky_loss(logits, target)
        return loss

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss, mean IoU and Dice of the classes, over all held-out pixels."""
        total, pixels = 0.0, 0
        counts = np.zeros((self.classes, self.classes), np.int64)
        for image in self.held_out:
            batch = {
                "volume": torch.from_numpy(np.ascontiguousarray(image.values))[None, None],
                "labels": torch.from_numpy(np.ascontiguousarray(image.labels))[None],
            }
            logits = self._logits(network, batch["volume"])
            target = batch["labels"].to(self.options.device)
            loss = weighted_focal_loss(logits, target, gamma=self.options.gamma)
            total, pixels = total + float(loss) * target.numel(), pixels + target.numel()
            labels = logits.argmax(1)[0].cpu().numpy()
            counts += confusion_matrix(labels, image.labels, self.classes)
        scores = scores_of_confusion(counts)
        return {
            "loss": total / pixels, "miou": scores.miou,
            "dice": float(np.nanmean(scores.class_dice[1:])),
        }  # fmt: skip

    def _logits(self, network: nn.Module, x: Tensor) -> Tensor:
        moved = x.to(self.options.device, getattr(torch, self.options.precision))
        logits: Tensor = network(moved.contiguous(memory_format=torch.channels_last))
        return logits.float()


def window(
    image: LabelledImage, options: ImageOptions, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random window of an image and its labels, flipped, turned, and changed in grey.

    Images smaller than the window are filled up with their mirror images.
    """
    size = options.crop_px
    arrays: list[NDArray[Any]] = []
    start = [int(rng.integers(0, max(n - size, 0) + 1)) for n in image.values.shape]
    for array in (image.values, image.labels):
        cut = array[tuple(slice(s, s + size) for s in start)]
        missing = [(0, size - n) for n in cut.shape]
        arrays.append(np.pad(cut, missing, mode="symmetric"))
    values, labels = random_turn(rng, *arrays)
    if options.intensity:
        values = random_intensity(rng, values, options.intensity)
    return np.ascontiguousarray(values, np.float32), np.ascontiguousarray(labels)


def random_turn(rng: np.random.Generator, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Turn all arrays `(y, x)` alike by a random quarter turn, and flip half of them."""
    turns, flipped = int(rng.integers(4)), rng.random() < 0.5
    turned = (np.rot90(a, turns) for a in arrays)
    return tuple(np.flip(a, 1) if flipped else a for a in turned)
