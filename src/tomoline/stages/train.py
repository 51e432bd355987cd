"""Training of a network, and the models that come of it.

The checkpoint lies in a working folder that is no declared output, so that a killed training goes
on where it stopped when the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.infer import Runner, choose_device, choose_precision, for_images
from tomoline.io.atomic import atomic_path, write_text
from tomoline.kernels.choose import speed_up
from tomoline.log import get_logger
from tomoline.networks.cards import NAME_WHOLE
from tomoline.networks.registry import build
from tomoline.networks.weights import WEIGHTS, ModelCard, save_model
from tomoline.report.curves import draw_curves
from tomoline.settings import ClassifySettings, Section, SegmentSettings, TrainSettings
from tomoline.simulation.densities import SHREC_CLASSES, Density, load_density
from tomoline.stages.calibrate import calibrate
from tomoline.stages.confidence import (
    Found,
    Known,
    find_in,
    vote_on,
    with_precision,
    with_temperature,
)
from tomoline.stages.train_sets import Sets, measured, recipe_of, sets_of, tasks_of
from tomoline.training import distributed
from tomoline.training.data import SimulatedSource, TrainingVolume
from tomoline.training.folders import FolderSource
from tomoline.training.loop import Recipe, Trainer
from tomoline.training.msdnet import MSDNetRecipe, MSDNetRecipeOptions, Source, split_joint
from tomoline.training.options import TrainOptions
from tomoline.training.sets import SetRecipe
from tomoline.training.subtomogram import SubtomogramOptions, SubtomogramRecipe

SETTINGS = TrainSettings
log = get_logger(__name__)

Part = Literal["localizer", "classifier", "segmenter"]
VOXEL_SIZE_ANGSTROM = 10.0  # of the shipped densities
VOXEL_SIZE_RANGE_ANGSTROM = (9.0, 11.0)  # what a network sees without harm; beyond, rescale
VALIDATION = "the training's validation tomograms"
BANDWIDTH_VOX = 3.0  # until it is chosen on held-out tomograms


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: TrainSettings,
    work: str,
) -> None:
    """Train until done and write curves and models.

    Input `densities` (folder). Outputs `curves` (JSON lines), `picture` (PNG), and `localizer`,
    `classifier` or `segmenter` (card.yaml of the models the task makes); from sets of subtomograms
    also `figures` (JSON). `work` keeps the checkpoints.
    """
    device = choose_device(settings.device)
    rank, processes = distributed.begin(device.type)
    torch.manual_seed(settings.seed)
    sets = sets_of(settings) if settings.source == "subtomograms" else None
    classes = sets.classes if sets else tuple(settings.classes) or SHREC_CLASSES
    precision = choose_precision(settings.precision, device)
    network = for_images(_network(settings, len(classes)).to(device))
    kernel = speed_up(network, device, precision, trains=True)
    log.info("training on %s, %s, kernel %s", device, _name(precision), kernel)
    where = {
        "device": str(device), "rank": rank, "processes": processes, "precision": _name(precision)
    }  # fmt: skip
    recipe: Recipe
    if sets:
        recipe = recipe_of(sets, settings, where)
    else:
        densities = [load_density(Path(inputs["densities"]), name) for name in classes]
        source = _source(settings, densities, Path(inputs["densities"]))
        recipe = _recipe(settings, source, densities, where)
    trainer = Trainer(
        network, recipe, TrainOptions(**shared_options(settings, TrainOptions)), Path(work)
    )
    trainer.run()
    if not distributed.is_first():
        return
    rows = (Path(work) / "curves.jsonl").read_text()
    write_text(Path(outputs["curves"]), rows)
    with atomic_path(Path(outputs["picture"])) as partial:
        draw_curves([json.loads(r) for r in rows.splitlines()], partial)
    if sets:
        _write_set_model(trainer, settings, sets, outputs)
    else:
        _write_models(trainer, settings, classes, outputs, source)


def output_paths(settings: TrainSettings, folder: Path) -> dict[str, Path]:
    """Where a training's curves and models go below a folder of models."""
    parts = ["localizer", "classifier"] if settings.task == "joint" else [settings.task]
    own = folder / settings.name
    models = {part: folder / f"{settings.name}-{part}" / "card.yaml" for part in parts}
    figures = {"figures": own / "figures.json"} if settings.source == "subtomograms" else {}
    return {**models, **figures, "curves": own / "curves.jsonl", "picture": own / "curves.png"}


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def shared_options(settings: Section, kind: type[Any]) -> dict[str, Any]:
    """The settings that an options class has under the same name, but for what the device sets."""
    chosen = {"device", "precision"}
    return {
        key: value for key, value in settings.model_dump().items()
        if key in kind.__dataclass_fields__ and key not in chosen
    }  # fmt: skip


def _source(settings: TrainSettings, densities: list[Density], folder: Path) -> Source:
    names = [d.name for d in densities]
    if settings.source == "simulator":
        return SimulatedSource(
            folder,
            names,
            shape_zyx=settings.shape_zyx,
            seed=settings.seed,
            snr_range=settings.snr_range,
            voxels_per_particle=settings.voxels_per_particle,
            distractors=settings.distractors,
            misalignment_vox=settings.misalignment_vox,
            spectrum_jitter=settings.spectrum_jitter,
        )
    return FolderSource(
        [Path(f) for f in settings.folders], [Path(f) for f in settings.validation_folders],
        names, [d.radius_vox for d in densities], seed=settings.seed,
    )  # fmt: skip


def _recipe(
    settings: TrainSettings, source: Source, densities: list[Density], where: dict[str, Any]
) -> Recipe:
    if settings.network in NAME_WHOLE:
        own = shared_options(settings, SubtomogramOptions) | settings.candidates.model_dump()
        whole = SubtomogramOptions(**own, **where)
        return SubtomogramRecipe(source, len(densities) + 1, whole)
    options = MSDNetRecipeOptions(**shared_options(settings, MSDNetRecipeOptions), **where)
    return MSDNetRecipe(source, [d.effective_radius_vox for d in densities], options)


def _parameters(settings: TrainSettings, classes: int) -> dict[str, Any]:
    """What the kind of network takes, as its card keeps it."""
    if settings.network == "unet":
        return {"classes": classes, "filters": list(settings.filters)}
    if settings.network in ("dsmnet", "densenet"):
        return {"classes": classes, **getattr(settings, settings.network).model_dump(mode="json")}
    if settings.network in ("vgg", "encoder_decoder"):
        return {"classes": classes}
    if settings.network == "pyconv_unet":
        own = settings.pyconv
        return {
            "classes": classes, "in_channels": own.slices, "filters": list(own.filters),
            "pyramid": list(own.pyramid),
        }  # fmt: skip
    return {"classes": classes, **settings.shape.model_dump()}


def _network(settings: TrainSettings, structures: int) -> nn.Module:
    outputs = {
        "localizer": 2, "segmenter": 2, "classifier": structures + 1, "joint": structures + 3
    }  # fmt: skip
    network = build(settings.network, _parameters(settings, outputs[settings.task]))
    if settings.init_from:
        _take_over(network, Path(settings.init_from))
    return network


def _take_over(network: nn.Module, folder: Path) -> None:
    """Start from another model or training: every tensor of the same name and shape."""
    path, last = folder / WEIGHTS, folder / "checkpoint.pt"
    if not path.is_file() and not last.is_file():
        raise InputError(
            folder, expected=f"a model ({WEIGHTS}) or a training (checkpoint.pt) to start from",
            found="neither", remedy="correct train.init_from, or leave it empty",
        )  # fmt: skip
    if path.is_file():
        given = load_file(path)
    else:
        given = torch.load(last, map_location="cpu", weights_only=True)["average"]
    own = network.state_dict()
    taken = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not taken:
        raise InputError(
            folder, expected="at least one layer of the same shape", found="none",
            remedy="set train.shape as in the other model's card",
        )  # fmt: skip
    network.load_state_dict({**own, **taken})
    log.info("%d of %d tensors taken over from %s", len(taken), len(own), folder)


def _write_set_model(
    trainer: Trainer, settings: TrainSettings, sets: Sets, outputs: Mapping[str, Any]
) -> None:
    assert isinstance(trainer.recipe, SetRecipe)
    state = trainer.best_weights()
    card = make_card(settings.task, settings, sets.classes, _best_row(trainer))  # type: ignore[arg-type]
    card = card.model_copy(
        update={
            "training": card.training | {"voxels_seen": trainer.voxels_seen},
            "box_vox": sets.box_vox,
            "voxel_size_angstrom": sets.voxel_size_angstrom,
            "voxel_size_range_angstrom": tuple(
                round(sets.voxel_size_angstrom * edge / VOXEL_SIZE_ANGSTROM, 3)
                for edge in VOXEL_SIZE_RANGE_ANGSTROM
            ),
        }
    )
    trainer.network.load_state_dict(state)
    trainer.network.eval()
    figures = Path(outputs["figures"])
    card = measured(card, trainer.network, trainer.recipe, sets, figures)
    save_model(Path(outputs[settings.task]).parent, card, state)
    log.info("wrote %s", Path(outputs[settings.task]).parent)


def _best_row(trainer: Trainer) -> dict[str, Any]:
    rows = [json.loads(r) for r in (trainer.folder / "curves.jsonl").read_text().splitlines()]
    return next(r for r in rows if r["epoch"] == trainer.best_epoch)


def _write_models(
    trainer: Trainer,
    settings: TrainSettings,
    classes: tuple[str, ...],
    outputs: Mapping[str, Any],
    source: Source,
) -> None:
    best = _best_row(trainer)
    state = trainer.best_weights()
    held_out = source.validation(settings.validation_volumes) if settings.calibrate else []
    found: list[Found] = []
    parts: list[Part] = ["localizer", "classifier"]
    for part in parts if settings.task == "joint" else [settings.task]:
        own = split_joint(state, part) if settings.task == "joint" else state  # type: ignore[arg-type]
        card = make_card(part, settings, classes, best)  # type: ignore[arg-type]
        seen = card.training | {"voxels_seen": trainer.voxels_seen}
        card = card.model_copy(update={"training": seen})
        if not settings.calibrate:
            log.info("%s keeps usual settings, as train.calibrate is false", card.name)
        elif part == "localizer":
            card = _with_threshold(card, own, held_out)
            runner = runner_of(card, own, settings.device, flips=SegmentSettings().test_time_flips)
            found = [find_in(runner, known) for known in _known(held_out, classes)]
            card = with_precision(card, found, source=VALIDATION)
        elif found:
            runner = runner_of(card, own, settings.device, flips=ClassifySettings().test_time_flips)
            card = with_temperature(card, [vote_on(runner, f) for f in found], source=VALIDATION)
        else:
            log.info("no temperature without a localizer: `tomoline calibrate` finds it with one")
        save_model(Path(outputs[part]).parent, card, own)
        log.info("wrote %s", Path(outputs[part]).parent)


def _known(held_out: Sequence[TrainingVolume], classes: tuple[str, ...]) -> list[Known]:
    """Validation tomograms in the calibration's words."""
    return [
        Known(name=f"validation {k}", volume=v.volume, centres_zyx=v.centres_zyx,
              classes=[classes[label - 1] for label in v.labels])
        for k, v in enumerate(held_out, 1)
    ]  # fmt: skip


def runner_of(card: ModelCard, state: Mapping[str, Tensor], device: str, *, flips: int) -> Runner:
    """A network ready to predict, of weights that are not on disk yet."""
    where = choose_device(device)
    precision = choose_precision("auto", where)
    network = build(card.network, card.parameters)
    network.load_state_dict(dict(state))
    network = network.to(where).eval()
    return Runner(card, network, where, precision, speed_up(network, where, precision), flips)


def _with_threshold(
    card: ModelCard, state: Mapping[str, Tensor], held_out: Sequence[TrainingVolume]
) -> ModelCard:
    network: Any = build(card.network, card.parameters)
    network.load_state_dict(dict(state))
    chosen = calibrate(card, network, held_out)
    return card.model_copy(
        update={
            "threshold": chosen.threshold,
            "bandwidth_vox": chosen.bandwidth_vox,
            "halo_vox": chosen.halo_vox,
            "metrics": {**card.metrics, **chosen.figures},
        }
    )


def make_card(
    part: Part, settings: TrainSettings, classes: tuple[str, ...], best: Mapping[str, float]
) -> ModelCard:
    """Card of a model of this training; hash and parameter count follow when it is saved."""
    names = [BACKGROUND, *(classes if part == "classifier" else ("particle",))]
    parameters = _parameters(settings, len(names))
    network = build(settings.network, parameters)
    own: dict[str, Any] = (
        {"threshold": 0.5, "bandwidth_vox": BANDWIDTH_VOX}
        if part == "localizer"
        else {"box_vox": settings.box_vox}
    )
    figures = {k: round(float(v), 5) for k, v in best.items() if k.startswith("val_")}
    return ModelCard(
        name=f"{settings.name}-{part}",
        description=_description(part, settings),
        network=settings.network, parameters=parameters, role=part, classes=names,
        voxel_size_angstrom=VOXEL_SIZE_ANGSTROM,
        voxel_size_range_angstrom=VOXEL_SIZE_RANGE_ANGSTROM,
        # What names whole subtomograms sees all of them.
        receptive_field_vox=int(getattr(network, "receptive_field_vox", settings.box_vox)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        training=settings.model_dump(mode="json") | {"best_epoch": int(best["epoch"])},
        metrics={"validation": figures}, **own,
    )  # fmt: skip


def _description(part: Part, settings: TrainSettings) -> str:
    if settings.source != "subtomograms":
        return _DESCRIPTIONS["whole" if settings.network in NAME_WHOLE else part]
    does = {
        "classification": "names the structure in a subtomogram",
        "segmentation": "marks its own voxels among its neighbours'",
        "recovery": "recovers its density",
    }
    what = [text for task, text in does.items() if task in tasks_of(settings)]
    return (
        f"A network that {', '.join(what)}. Trained on simulated subtomograms centred on their "
        "particles; it knows no background."
    )


_DESCRIPTIONS: dict[str, str] = {
    "localizer": "A network that marks the core of every particle, whatever its class. Trained on "
    "simulated tomograms of cytosolic complexes at 10 A a voxel.",
    "whole": "A network that names the structure in a subtomogram, or that it is background. "
    "Trained on simulated tomograms of the twelve SHREC structures at 10 A a voxel.",
    "classifier": "A network that names the structure of every voxel of a subtomogram. Trained on "
    "simulated tomograms of the twelve SHREC structures at 10 A a voxel.",
}
