"""The section on the networks: their cards, how they were trained, their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from tomoline.report import figures, pages
from tomoline.report.sources import as_float

_CARD_WORDS = {
    "role": "What it does",
    "network": "Architecture",
    "n_parameters": "Trainable parameters",
    "classes": "Classes",
    "voxel_size_angstrom": "Voxel size (Å)",
    "voxel_size_range_angstrom": "Voxel sizes accepted (Å)",
    "contrast": "Contrast it was trained on",
    "receptive_field_vox": "Receptive field (voxels)",
    "threshold": "Threshold",
    "bandwidth_vox": "Mean-shift bandwidth (voxels)",
    "temperature": "Temperature of its probabilities",
    "box_vox": "Box (voxels)",
    "licence": "Licence",
    "weights_sha256": "Weights (SHA-256)",
}
_ROLES = {"localizer": "finds particles", "classifier": "names their class"}


def models_html(cards: Sequence[Mapping[str, Any]],
                curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:  # fmt: skip
    """Return one part a card. `curves` maps a model's name to the rows of its curves.jsonl."""
    order = ("localizer", "classifier")
    ranked = sorted(
        cards, key=lambda c: order.index(c["role"]) if c.get("role") in order else len(order)
    )
    return "".join(_model_html(card, curves.get(str(card.get("name", "")), ())) for card in ranked)


def _model_html(card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    text = f"<h3>{escape(str(card.get('name', 'model')))}</h3>"
    if card.get("description"):
        text += pages.paragraph(str(card["description"]))
    pairs = {
        word: _plain(_ROLES.get(card[key], card[key]) if key == "role" else card[key])
        for key, word in _CARD_WORDS.items()
        if card.get(key) not in (None, "", [])
    }
    pairs |= {
        f"Measured: {key.replace('_', ' ')}": _plain(value)
        for key, value in _flat(card.get("metrics"))
    }
    facts = pages.facts(pairs)
    training = dict(_flat(card.get("training")))
    if training:
        listed = pages.facts({k.replace("_", " "): _plain(v) for k, v in training.items()})
        facts += pages.details("How it was trained", listed)
    charts = curves_html(rows) + _precision_html(card.get("precision_curve"))
    return text + pages.grid(f"<div>{facts}</div>", charts, wide=True)


def _precision_html(curve: Any) -> str:
    """Return the chart of a localizer's expected precision, where its card has one."""
    if not curve:
        return ""
    scores, precisions = zip(*curve, strict=True)
    chart = figures.lines(
        {"expected precision": (scores, precisions)}, title="Expected precision",
        x_label="score", y_label="", x_span=(0.0, 1.0), y_span=(0.0, 1.0),
    )  # fmt: skip
    return pages.figure(
        chart, "What a score promises: the probability that there is a particle, as measured on "
        "simulated tomograms kept apart.",
    )  # fmt: skip


def curves_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the training curves: losses, and the validation figures that lie within 0 and 1."""
    if not rows:
        return ""
    epochs = np.array([as_float(row.get("epoch", i)) for i, row in enumerate(rows)]) + 1
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: np.array([as_float(row.get(key)) for row in rows]) for key in keys}
    losses = {
        word: (epochs, columns[key])
        for key, word in (("loss", "training"), ("train_loss", "training"),
                          ("val_loss", "validation"))
        if key in columns
    }  # fmt: skip
    measures = {
        key[4:].replace("_", " "): (epochs, values)
        for key, values in columns.items()
        if key.startswith("val_") and key != "val_loss" and _within_unit(values)
    }
    charts = ""
    if losses:
        charts += pages.figure(
            figures.lines(losses, title="Loss", x_label="epoch", y_label="loss"),
            "Loss on the training tomograms and on tomograms kept apart (validation). Curves "
            "that fall together and level out are what one wants.",
        )
    if measures:
        first = dict(list(measures.items())[:6])
        charts += pages.figure(
            figures.lines(first, title="Validation figures", x_label="epoch", y_label="",
                          y_span=(0.0, 1.0)),
            "Figures on the tomograms kept apart, epoch by epoch (1 is best).",
        )  # fmt: skip
    return f"<div>{charts}</div>" if charts else ""


def _within_unit(values: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size) and bool((finite >= 0).all() and (finite <= 1).all())


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings with their dotted names."""
    if not isinstance(value, Mapping):
        return []
    leaves: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        leaves += _flat(item, f"{name}: ") if isinstance(item, Mapping) else [(name, item)]
    return leaves


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figures.number(float(value), 4)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)
