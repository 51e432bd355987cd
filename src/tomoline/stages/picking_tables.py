"""Tables 1 to 4 of the HydraPicker paper, in our numbers, and two other pickers beside ours.

Every table is a list of rows with `data_set`, `method`, `ap`, `auroc`, `particles`, `micrographs`;
the last row of a method, `mean`, is over data sets. All methods get the same prepared micrographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tomoline.evaluation.detection import Detection, Ranked, detection
from tomoline.io.atomic import write_json, write_text
from tomoline.log import get_logger
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.networks.pickers import load_picker
from tomoline.peers.micrograph_pickers import DOG_WIDTHS_PX, dog_candidates, topaz_candidates
from tomoline.settings import PickerSource, PickingBenchmark, TrainPickerSettings, model_path
from tomoline.stages.train_picker import Known, evaluated, few_shot, load_sources

log = get_logger(__name__)

MODELS = "resources/models"
Row = dict[str, Any]
COLUMNS = ("data_set", "method", "ap", "auroc", "particles", "micrographs")


def specialised(settings: PickingBenchmark, work: Path) -> list[Row]:
    """Table 1: on held-out micrographs of the sources, the general and each set's own head."""
    _, network = load_picker(model_path(settings.model, MODELS))
    rows = []
    for name, (_, apart) in _sets(settings, settings.sources).items():
        for head in (GENERAL, *([name] if name in network.heads else [])):
            label = "HydraPicker, own head" if head != GENERAL else "HydraPicker, general head"
            rows.append(_row(name, label, evaluated(network, apart, head), apart))
        rows += _peers(name, apart, settings, work)
    return with_means(rows)


def zero_shot(settings: PickingBenchmark, work: Path) -> list[Row]:
    """Table 2: on data sets never trained on, the general head and the peers."""
    _, network = load_picker(model_path(settings.model, MODELS))
    rows = []
    for name, (_, apart) in _sets(settings, settings.targets).items():
        result = evaluated(network, apart, GENERAL)
        rows.append(_row(name, "HydraPicker, zero-shot", result, apart))
        rows += _peers(name, apart, settings, work)
    return with_means(rows)


def with_few_labels(settings: PickingBenchmark, work: Path) -> list[Row]:
    """Table 3: a new head from a few labelled micrographs, body and general head frozen."""
    rows = []
    for name, (train, apart) in _sets(settings, settings.targets).items():
        _, before = load_picker(model_path(settings.model, MODELS))
        rows.append(_row(name, "HydraPicker, zero-shot", evaluated(before, apart, GENERAL), apart))
        for number in sorted({min(n, len(train)) for n in settings.labelled}):
            label = f"HydraPicker, new head, {number} labelled"
            learnt = _learnt(settings, settings.model, name, train[:number], "new_head", work)
            rows.append(_row(name, label, evaluated(learnt, apart, name), apart))
    return with_means(rows)


def against_single_head(settings: PickingBenchmark, work: Path) -> list[Row]:
    """Table 4: the same labels learnt by a new head, and by a network of one head."""
    rows = []
    for name, (train, apart) in _sets(settings, settings.targets).items():
        number = min(max(settings.labelled), len(train))
        for label, model, mode, head in (
            ("multi-head: new head", settings.model, "new_head", name),
            ("single-head: fine-tuned", settings.single or settings.model, "all", GENERAL),
        ):
            learnt = _learnt(settings, model, name, train[:number], mode, work)
            rows.append(_row(name, label, evaluated(learnt, apart, head), apart))
    return with_means(rows)


TABLES: dict[str, Callable[[PickingBenchmark, Path], list[Row]]] = {
    "specialised": specialised,
    "zero-shot": zero_shot,
    "few-shot": with_few_labels,
    "single-head": against_single_head,
}


def write_table(name: str, settings: PickingBenchmark, folder: Path) -> str:
    """Compute a table and write `<name>.json` and `<name>.md` below `folder`; the Markdown."""
    rows = TABLES[name](settings, folder / "work")
    write_json(folder / f"{name}.json", rows)
    text = "\n".join([
        "| data set | method | AP | AUROC | particles | micrographs |", "|---|---|---|---|---|---|",
        *("| " + " | ".join(_cell(row[key]) for key in COLUMNS) + " |" for row in rows),
    ])  # fmt: skip
    write_text(folder / f"{name}.md", text + "\n")
    return text


def with_means(rows: Sequence[Row]) -> list[Row]:
    """The rows and, for each method that is on more than one data set, its means."""
    out = list(rows)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        if len(own) > 1:
            known = [row["auroc"] for row in own if row["auroc"] is not None]
            out.append({
                "data_set": "mean", "method": method,
                "ap": round(float(np.mean([row["ap"] for row in own])), 4),
                "auroc": round(float(np.mean(known)), 4) if known else None,
                "particles": sum(row["particles"] for row in own),
                "micrographs": sum(row["micrographs"] for row in own),
            })  # fmt: skip
    return out


def _sets(
    settings: PickingBenchmark, sources: Mapping[str, PickerSource]
) -> dict[str, tuple[list[Known], list[Known]]]:
    """What may be trained on, and what is scored, of each data set."""
    train, apart = load_sources(TrainPickerSettings(sources=dict(sources), seed=settings.seed))
    return {name: (train[name], apart[name]) for name in sources}


def _learnt(
    settings: PickingBenchmark, model: str, name: str, train: Sequence[Known], mode: Any, work: Path
) -> HydraPicker:
    """A picker that has learnt from a few micrographs. Nothing is kept between calls."""
    _, network = load_picker(model_path(model, MODELS))
    plan = TrainPickerSettings(
        start=model, mode=mode, head_epochs=settings.epochs, crop_px=settings.crop_px,
        steps_per_epoch=settings.steps_per_epoch, new_head_rate=settings.learning_rate,
        average_decay=0.9, seed=settings.seed,
    )  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as folder:
        few_shot(network, {name: list(train)}, {name: []}, plan, Path(folder))
    return network


def _peers(name: str, apart: Sequence[Known], settings: PickingBenchmark, work: Path) -> list[Row]:
    """Difference of Gaussians at its best width by truth, which flatters it, and Topaz."""
    images = [one.prepared.values for one in apart]
    dogs = [
        _ranked(apart, [dog_candidates(image, width) for image in images])
        for width in DOG_WIDTHS_PX
    ]
    best = max(dogs, key=lambda result: result.ap)
    rows = [_row(name, "difference of Gaussians", best, apart)]
    if settings.topaz_python:
        found = topaz_candidates(images, work / f"topaz-{name}", Path(settings.topaz_python))
        rows.append(_row(name, "Topaz, shipped weights", _ranked(apart, found), apart))
    return rows


def _ranked(apart: Sequence[Known], found: Sequence[tuple[Any, Any]]) -> Detection:
    return detection([
        Ranked(
            yx=one.prepared.to_given(yx), score=score, true_yx=one.true_yx,
            diameter_px=one.diameter_px,
        )
        for one, (yx, score) in zip(apart, found, strict=True)
    ])  # fmt: skip


def _row(name: str, method: str, result: Detection, apart: Sequence[Known]) -> Row:
    log.info("%s, %s: AP %.3f", name, method, result.ap)
    return {
        "data_set": name, "method": method, "ap": round(result.ap, 4),
        "auroc": round(result.auroc, 4) if np.isfinite(result.auroc) else None,
        "particles": result.particles, "micrographs": len(apart),
    }  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
