"""Training of a picker of micrographs, in the two phases of the paper, or of a new head.

The checkpoints lie in a working folder that is no declared output, so that a killed training goes
on where it stopped when the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tomoline.errors import InputError
from tomoline.evaluation.detection import Detection, Ranked, detection
from tomoline.infer import choose_device
from tomoline.io.atomic import write_text
from tomoline.io.micrographs import is_micrograph_name, read_micrograph
from tomoline.io.picks import Exposure, read_truth
from tomoline.log import get_logger
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.networks.pickers import HeadCard, PickerCard, load_picker, save_picker
from tomoline.ops.micrographs import PickRules, Prepared, prepare_micrograph
from tomoline.settings import PickerSource, TrainPickerSettings
from tomoline.stages.picking import Picking, picks_in
from tomoline.training.hydrapicker import (
    HydraOptions,
    HydraRecipe,
    Labelled,
    Sets,
    only_head_learns,
)
from tomoline.training.loop import Trainer
from tomoline.training.options import TrainOptions

SETTINGS = TrainPickerSettings
log = get_logger(__name__)

PICKS_SUFFIX = "_picks.csv"
HELD_OUT_EVERY = 5
# Candidates of any score, so that curves are whole; edges count, as truth is given there too.
ALL = PickRules(threshold=0.01, floor=0.01, edge=0.0)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A micrograph with known particles, prepared; `true_yx` in given pixels."""

    name: str
    prepared: Prepared
    true_yx: np.ndarray[Any, np.dtype[np.float64]]
    diameter_px: float

    @property
    def labelled(self) -> Labelled:
        """What the training reads."""
        return Labelled(self.prepared.values, self.prepared.to_prepared(self.true_yx))


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: TrainPickerSettings,
    work: str,
    models: str = "resources/models",
) -> None:
    """Train until done and write the model, its curves and its figures on held-out micrographs.

    Outputs `card` (card.yaml of the model), `curves` (JSON lines of all phases); `work` keeps the
    checkpoints, `models` is where `start` is looked for.
    """
    torch.manual_seed(settings.seed)
    train, held_out = load_sources(settings)
    network = _begin(settings, models).to(choose_device(settings.device))
    if settings.mode == "full":
        network = _two_phases(network, train, held_out, settings, Path(work))
    else:
        few_shot(network, train, held_out, settings, Path(work))
    write_text(Path(outputs["curves"]), _curves(Path(work)))
    card = card_of(network, held_out, settings)
    state = {k: v.to(torch.float32) for k, v in network.state_dict().items()}
    written = save_picker(Path(outputs["card"]).parent, card, state)
    for name, head in written.heads.items():
        log.info("head %s: threshold %.3f", name, head.threshold)


def load_sources(
    settings: TrainPickerSettings,
) -> tuple[dict[str, list[Known]], dict[str, list[Known]]]:
    """Read every source: what is trained on, and what is held out.

    Raises
    ------
    InputError
        No sources, a folder without labelled micrographs, a held-out name that is not there, or
        nothing left to train on.
    """
    if not settings.sources:
        raise InputError(
            "train_picker.sources", expected="data sets to learn from", found="none",
            remedy="name folders with micrographs and their _picks.csv (docs/micrographs.md)",
        )  # fmt: skip
    train, held_out = {}, {}
    for name, source in settings.sources.items():
        files = labelled_files(Path(source.folder))
        apart = _held_out(source, [file.stem for file in files], name)
        kept = [file for file in files if file.stem not in apart]
        kept = kept[: source.labelled or None]
        if not kept:
            raise InputError(
                f"train_picker.sources.{name}", expected="a micrograph that is not held out",
                found=f"{len(files)} micrographs, all held out", remedy="hold out fewer",
            )  # fmt: skip
        train[name] = [known_of(file, source) for file in kept]
        held_out[name] = [known_of(file, source) for file in files if file.stem in apart]
        log.info("%s: %d micrographs to train on, %d held out, %d particles", name, len(kept),
                 len(held_out[name]), sum(len(k.true_yx) for k in train[name]))  # fmt: skip
    return train, held_out


def labelled_files(folder: Path) -> list[Path]:
    """The micrographs of a folder that have a list of particles beside them, by name."""
    found = [
        path for path in sorted(folder.glob("*"))
        if is_micrograph_name(path.name) and picks_beside(path).is_file()
    ]  # fmt: skip
    if not found:
        raise InputError(
            folder, expected=f"micrographs with their <name>{PICKS_SUFFIX}", found="none",
            remedy="check the path, and that the lists lie beside the micrographs",
        )  # fmt: skip
    return found


def picks_beside(path: Path) -> Path:
    """The list of particles that belongs to a micrograph."""
    return path.with_name(path.stem + PICKS_SUFFIX)


def known_of(path: Path, source: PickerSource) -> Known:
    """Read and prepare a micrograph with its particles."""
    pixels, facts = read_micrograph(path)
    exposure = Exposure(
        micrograph=path.stem, path=str(path), shape_yx=facts.shape_yx, pixel_size_angstrom=1.0
    )
    table = read_truth(picks_beside(path), exposure)
    diameter = source.diameter_px or _diameter(path, table["diameter_px"].to_numpy(float))
    return Known(
        name=path.stem,
        prepared=prepare_micrograph(pixels, diameter, contrast=source.contrast),
        true_yx=table[["y_px", "x_px"]].to_numpy(float).reshape(-1, 2),
        diameter_px=diameter,
    )


def evaluated(
    network: HydraPicker, known: Sequence[Known], head: str, how: Picking | None = None
) -> Detection:
    """Rank a head's candidates on micrographs with known particles."""
    network.eval()
    how = how or Picking(head=head, device=next(network.parameters()).device)
    ranked = []
    for one in known:
        found = picks_in(network, one.prepared, how, ALL)
        own = found["reason"] == ""
        ranked.append(
            Ranked(
                yx=found["yx"][own],
                score=found["score"][own],
                true_yx=one.true_yx,
                diameter_px=one.diameter_px,
            )
        )
    return detection(ranked)


def card_of(
    network: HydraPicker, held_out: Mapping[str, Sequence[Known]], settings: TrainPickerSettings
) -> PickerCard:
    """The card: each head with its threshold and curve on its own held-out micrographs.

    The general head's threshold is the mean of its best ones over the sets, as an unseen set's own
    is not known; its curve is of all sets' picks together.
    """
    heads: dict[str, HeadCard] = {}
    metrics: dict[str, Any] = {}
    measured = {name: known for name, known in held_out.items() if known}
    general = {name: evaluated(network, known, GENERAL) for name, known in measured.items()}
    pooled = [one for known in measured.values() for one in known]
    whole = evaluated(network, pooled, GENERAL)
    heads[GENERAL] = HeadCard(
        source=", ".join(settings.sources),
        threshold=_safe(float(np.mean([r.best_threshold() for r in general.values()] or [0.5]))),
        precision_curve=whole.precision_curve(),
    )
    for name in network.specialised():
        result = evaluated(network, measured[name], name) if name in measured else None
        heads[name] = HeadCard(
            source=name,
            threshold=_safe(result.best_threshold()) if result else 0.5,
            precision_curve=result.precision_curve() if result else [],
        )
        if result:
            metrics[name] = {
                "held_out_micrographs": len(measured[name]), "particles": result.particles,
                "ap": round(result.ap, 4), "auroc": _rounded(result.auroc),
                "general_ap": round(general[name].ap, 4),
                "general_auroc": _rounded(general[name].auroc),
            }  # fmt: skip
    return PickerCard(
        name=settings.name, parameters=parameters_of(network), heads=heads, metrics=metrics,
        training=settings.model_dump(mode="json", exclude_defaults=True),
    )  # fmt: skip


def parameters_of(network: HydraPicker) -> dict[str, Any]:
    """What `build` needs to make the network again."""
    return {
        "heads": network.specialised(), "body": network.body_channels, "width": network.width,
        "dropout": network.dropout, "stem": "strided" if network.stem_stride == 2 else "full",
    }  # fmt: skip


def _begin(settings: TrainPickerSettings, models: str) -> HydraPicker:
    if not settings.start:
        return HydraPicker(
            body=settings.body, width=settings.width, dropout=settings.dropout, stem=settings.stem
        )
    folder = Path(settings.start) if "/" in settings.start else Path(models) / settings.start
    return load_picker(folder)[1]


def _two_phases(
    network: HydraPicker, train: Mapping[str, Sequence[Known]],
    held_out: Mapping[str, Sequence[Known]], settings: TrainPickerSettings, work: Path,
) -> HydraPicker:  # fmt: skip
    """One head for all sets by Adam; then, from its weights, a head each by SGD."""
    first = TrainOptions(
        optimiser=settings.optimiser, learning_rate=settings.learning_rate, schedule="restarts",
        step_epochs=settings.restart_epochs, max_epochs=settings.single_epochs,
        patience=max(1, settings.single_epochs), average_decay=settings.average_decay,
        validate_every=_every(settings.single_epochs),
    )  # fmt: skip
    _train(network, train, held_out, _options(settings, "single"), first, work / "single")
    for name in sorted(train):
        network.add_head(name)
    if not settings.head_epochs:
        return network
    second = TrainOptions(
        optimiser="sgd", learning_rate=settings.head_learning_rate, schedule="cosine",
        max_epochs=settings.head_epochs, patience=settings.head_epochs,
        average_decay=settings.average_decay, validate_every=_every(settings.head_epochs),
    )  # fmt: skip
    _train(network, train, held_out, _options(settings, "heads"), second, work / "heads")
    return network


def few_shot(
    network: HydraPicker, train: Mapping[str, Sequence[Known]],
    held_out: Mapping[str, Sequence[Known]], settings: TrainPickerSettings, work: Path,
) -> None:  # fmt: skip
    """A head for each source beside frozen ones, or all layers through the general head."""
    options = TrainOptions(
        learning_rate=settings.new_head_rate, schedule="cosine", max_epochs=settings.head_epochs,
        patience=max(1, settings.head_epochs), average_decay=settings.average_decay,
        validate_every=_every(settings.head_epochs),
    )  # fmt: skip
    for name in sorted(train):
        own, apart = {name: train[name]}, {name: held_out[name]}
        if settings.mode == "all":
            _train(network, own, apart, _options(settings, "single"), options, work / name)
            continue
        if name not in network.heads:
            network.add_head(name)
        only_head_learns(network, name)
        _train(network, own, apart, _options(settings, "new_head", name), options, work / name)
        for parameter in network.parameters():
            parameter.requires_grad_(True)


def _train(
    network: HydraPicker, train: Mapping[str, Sequence[Known]],
    held_out: Mapping[str, Sequence[Known]], options: HydraOptions, plan: TrainOptions, work: Path,
) -> None:  # fmt: skip
    """Train a phase; leave the averaged weights with the least validation loss in `network`."""
    recipe = HydraRecipe(_sets(train), _sets(held_out), options)
    trainer = Trainer(network, recipe, plan, work)
    trainer.run()
    best = recipe.held_out and plan.max_epochs
    network.load_state_dict(trainer.best_weights() if best else trainer.average)


def _options(settings: TrainPickerSettings, phase: Any, new_head: str = "") -> HydraOptions:
    shared = {
        key: getattr(settings, key)
        for key in ("crop_px", "batch_size", "steps_per_epoch", "gamma", "class_weight",
                    "bias_weight", "scale_jitter", "seed")
    }  # fmt: skip
    device = choose_device(settings.device)
    return HydraOptions(phase=phase, new_head=new_head, device=str(device), **shared)


def _sets(known: Mapping[str, Sequence[Known]]) -> Sets:
    return {name: [one.labelled for one in items] for name, items in known.items() if items}


def _every(epochs: int) -> int:
    """Epochs between validations: some four of them, as each reads whole micrographs."""
    return max(1, epochs // 4)


def _held_out(source: PickerSource, stems: Sequence[str], name: str) -> set[str]:
    unknown = [stem for stem in source.held_out if stem not in stems]
    if unknown:
        raise InputError(
            f"train_picker.sources.{name}.held_out", expected=f"names among {', '.join(stems)}",
            found=", ".join(unknown), remedy="correct them; they are file names without suffix",
        )  # fmt: skip
    return set(source.held_out) or set(stems[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])


def _diameter(path: Path, given: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    if not len(given) or not given.max() > 0:
        raise InputError(
            picks_beside(path), expected="the particles' diameter_px", found="none",
            remedy="give diameter_px in train_picker.sources",
        )  # fmt: skip
    return float(given.max())


def _curves(work: Path) -> str:
    rows = []
    for path in sorted(work.glob("*/curves.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(json.dumps({"phase": path.parent.name, **json.loads(line)}))
    return "".join(f"{row}\n" for row in rows)


def _safe(value: float) -> float:
    return float(np.clip(round(value, 4), 0.01, 0.99))


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
