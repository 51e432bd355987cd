"""Training of a segmenter of images: one network of the setting `train_images.networks`.

As in `train`, the checkpoint lies in a working folder that is no declared output, so that a killed
training goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tomoline.evaluation.segmentation import confusion_matrix, scores_of_confusion
from tomoline.infer import choose_device, choose_precision, for_images
from tomoline.io.atomic import atomic_path, write_text
from tomoline.log import get_logger
from tomoline.networks.registry import build
from tomoline.networks.weights import ModelCard, save_model
from tomoline.ops.images import label_image
from tomoline.report.curves import draw_curves
from tomoline.settings import TrainImagesSettings
from tomoline.stages.image_sets import class_names, divide, load_pair, model_size_of
from tomoline.stages.segment_images import image_probabilities, runner_from
from tomoline.stages.train import shared_options
from tomoline.training.images import ImageOptions, ImageRecipe, LabelledImage
from tomoline.training.loop import Trainer
from tomoline.training.options import TrainOptions

SETTINGS = TrainImagesSettings
log = get_logger(__name__)

THRESHOLDS = tuple(round(0.1 + 0.025 * k, 3) for k in range(33))
PIXEL_RANGE = (0.8, 1.25)  # of the model's pixel size; images beyond are rescaled anyway


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: TrainImagesSettings,
    network: str,
    work: str,
) -> None:
    """Train `network` until done, and write curves and model.

    Outputs `card` (card.yaml, the weights beside it), `curves` (JSON lines), `picture` (PNG).
    `work` keeps the checkpoints.
    """
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    torch.manual_seed(settings.seed)
    division = divide(settings)
    size = model_size_of(settings, division.training)
    training = [load_pair(p, settings, size) for p in division.training]
    validation = [load_pair(p, settings, size) for p in division.validation]
    log.info("%d images to train on, %d for validation, %d of the test are not read, on %s, %s",
             len(training), len(validation), len(division.test), device, precision)  # fmt: skip
    built = for_images(build(network, parameters_of(settings, network))).to(device)
    recipe = ImageRecipe(training, validation, len(settings.grey_values) + 1, ImageOptions(
        **shared_options(settings, ImageOptions), device=str(device),
        precision=str(precision).removeprefix("torch."),  # type: ignore[arg-type]
    ))  # fmt: skip
    trainer = Trainer(
        built, recipe, TrainOptions(**shared_options(settings, TrainOptions)), Path(work)
    )
    trainer.run()
    rows = (Path(work) / "curves.jsonl").read_text()
    write_text(Path(outputs["curves"]), rows)
    parsed = [json.loads(r) for r in rows.splitlines()]
    with atomic_path(Path(outputs["picture"])) as partial:
        draw_curves(parsed, partial)
    card = make_card(network, settings, size, next(
        r for r in parsed if r["epoch"] == trainer.best_epoch
    ))  # fmt: skip
    state = trainer.best_weights()
    card = with_threshold(card, state, validation, settings)
    save_model(Path(outputs["card"]).parent, card, state)


def parameters_of(settings: TrainImagesSettings, network: str) -> dict[str, Any]:
    """What the network takes, as its card keeps it."""
    parameters: dict[str, Any] = {"classes": len(settings.grey_values) + 1}
    if settings.filters:
        parameters["filters"] = list(settings.filters)
    if settings.pyramid and network == "pyconv_unet":
        parameters["pyramid"] = list(settings.pyramid)
    return parameters


def make_card(
    network: str, settings: TrainImagesSettings, size: float, best: Mapping[str, float]
) -> ModelCard:
    """Card of the model; threshold, hash and parameter count follow."""
    parameters = parameters_of(settings, network)
    built: Any = build(network, parameters)
    names = class_names(settings)
    figures = {k: round(float(v), 5) for k, v in best.items() if k.startswith("val_")}
    return ModelCard(
        name=f"{settings.name}-{network}",
        description=f"A segmenter of single images: {', '.join(names[1:])} against background.",
        network=network, parameters=parameters, role="segmenter", classes=names,
        voxel_size_angstrom=size, threshold=0.5,
        voxel_size_range_angstrom=(PIXEL_RANGE[0] * size, PIXEL_RANGE[1] * size),
        receptive_field_vox=int(built.receptive_field_vox),
        n_parameters=sum(p.numel() for p in built.parameters()),
        training=settings.model_dump(mode="json", exclude={"images", "labels", "networks"})
        | {"best_epoch": int(best["epoch"])},
        metrics={"validation": figures},
    )  # fmt: skip


def with_threshold(
    card: ModelCard, state: Mapping[str, torch.Tensor], images: list[LabelledImage],
    settings: TrainImagesSettings,
) -> ModelCard:  # fmt: skip
    """The card with the threshold that has the best mean IoU on the validation images."""
    network: nn.Module = build(card.network, card.parameters)
    network.load_state_dict(dict(state))
    runner = runner_from(card, network.eval(), settings)
    found = [image_probabilities(runner, i.values, settings.test_time_flips) for i in images]
    n = len(card.classes)
    best = (-1.0, 0.5)
    # The middle one of equals comes first, so that it stays.
    for threshold in sorted(THRESHOLDS, key=lambda t: abs(t - 0.5)):
        counts = sum(
            (confusion_matrix(label_image(p, threshold), i.labels, n)
             for p, i in zip(found, images, strict=True)),
            np.zeros((n, n), np.int64),
        )  # fmt: skip
        best = max(best, (round(scores_of_confusion(counts).miou, 5), threshold),
                   key=lambda pair: pair[0])  # fmt: skip
    miou, threshold = best
    metrics = {"validation": {**card.metrics["validation"], "miou_at_threshold": miou}}
    return card.model_copy(update={"threshold": threshold, "metrics": metrics})
