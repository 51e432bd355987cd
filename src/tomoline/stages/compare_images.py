"""Segmenters compared on the images that no training has seen: MIoU, Dice, cost and time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tomoline.evaluation.segmentation import confusion_matrix, scores_of_confusion
from tomoline.io.atomic import write_text
from tomoline.log import get_logger
from tomoline.networks.cost import count_multiply_adds
from tomoline.networks.weights import load_network
from tomoline.ops.images import label_image
from tomoline.settings import TrainImagesSettings
from tomoline.stages.image_sets import divide, load_pair
from tomoline.stages.segment_images import image_probabilities, runner_from

SETTINGS = TrainImagesSettings
log = get_logger(__name__)

REFERENCE_PX = 512  # of the papers' multiply-adds
# Li et al. (2021), tables 2 and 3, for the ISBI set: what is beside ours in the page.
PAPER = {
    "pyconv_unet": {"miou": 0.8385, "dice": 0.9117, "million_parameters": 3.7, "gmac": 10.65},
    "unet2d": {"miou": 0.7742, "dice": 0.8639, "million_parameters": 7.77, "gmac": 48.57},
}


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: TrainImagesSettings
) -> None:
    """Score each model on the test images.

    Input `cards` (list of card.yaml); outputs `table` (TSV, a row a model and image, and one of all
    images, `all`) and `page` (Markdown).
    """
    rows: list[dict[str, Any]] = []
    for card in inputs["cards"]:
        rows += scored(Path(card), settings)
    table = pd.DataFrame(rows)
    write_text(Path(outputs["table"]), table.to_csv(sep="\t", index=False, float_format="%.5g"))
    write_text(Path(outputs["page"]), page(table, settings))


def scored(path: Path, settings: TrainImagesSettings) -> list[dict[str, Any]]:
    """Rows of the table for a model: one an image, and one of all their pixels."""
    card, network = load_network(path)
    runner = runner_from(card, network, settings)
    macs = count_multiply_adds(network, (1, 1, REFERENCE_PX, REFERENCE_PX))
    n, rows, seconds = len(card.classes), [], 0.0
    total = np.zeros((n, n), np.int64)
    assert card.threshold is not None
    for pair in divide(settings).test:
        image = load_pair(pair, settings, card.voxel_size_angstrom)
        begun = time.perf_counter()
        p = image_probabilities(runner, image.values, settings.test_time_flips)
        seconds += time.perf_counter() - begun
        counts = confusion_matrix(label_image(p, card.threshold), image.labels, n)
        total += counts
        rows.append({"model": card.name, "network": card.network, "image": image.name,
                     **figures(counts, card.classes)})  # fmt: skip
    mean = {k: float(np.mean([r[k] for r in rows])) for k in ("miou", "dice")}
    whole = figures(total, card.classes)
    rows.append({
        "model": card.name, "network": card.network, "image": "all", **whole,
        "mean_miou": mean["miou"], "mean_dice": mean["dice"],
        "million_parameters": card.n_parameters / 1e6, "gmac": macs / 1e9,
        "seconds_per_image": seconds / max(1, len(rows)),
    })  # fmt: skip
    log.info("%s: MIoU %.4f, Dice %.4f", card.name, whole["miou"], whole["dice"])
    return rows


def figures(counts: Any, classes: list[str]) -> dict[str, float]:
    """MIoU over background and classes, Dice as the mean of the classes and of each by itself."""
    scores = scores_of_confusion(counts)
    dice = {f"dice_{name}": float(d) for name, d in zip(classes, scores.class_dice, strict=True)}
    return {"miou": scores.miou, "dice": float(np.nanmean(scores.class_dice[1:])), **dice}


def page(table: pd.DataFrame, settings: TrainImagesSettings) -> str:
    """Return the comparison as Markdown."""
    whole = table[table["image"] == "all"]
    lines = [
        f"# Segmenters on {settings.test_images} images of {settings.name}, none trained on",
        "",
        f"MIoU and Dice as printed by Li et al. (2021, eq. 1 to 4), over all pixels of all test "
        f"images; Dice of {', '.join(settings.grey_values)} (mean where several). Multiply-adds at "
        f"{REFERENCE_PX} x {REFERENCE_PX}.",
        "",
        "| network | MIoU | Dice | million parameters | GMac | seconds an image |",
        "|---|---|---|---|---|---|",
    ]
    for row in whole.to_dict("records"):
        lines.append(
            f"| {row['network']} | {row['miou']:.4f} | {row['dice']:.4f} "
            f"| {row['million_parameters']:.2f} | {row['gmac']:.2f} "
            f"| {row['seconds_per_image']:.1f} |"
        )
    if "isbi" in settings.name:
        for name, known in PAPER.items():
            lines.append(
                f"| {name}, printed by Li et al. for ISBI 2012 | {known['miou']} | {known['dice']} "
                f"| {known['million_parameters']} | {known['gmac']} | |"
            )
    return "\n".join(lines) + "\n"
