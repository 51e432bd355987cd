"""A model's card in words, with every number that can be checked checked against the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from tomoline.networks.blocks import count_parameters
from tomoline.networks.cards import ModelCard, Sift, load_card, model_folder
from tomoline.networks.pickers import PickerCard, load_picker
from tomoline.networks.weights import load_network


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A card, and what the network built from it and its weights really has."""

    folder: Path
    card: ModelCard
    n_parameters: int
    receptive_field_vox: int

    @property
    def disagreements(self) -> list[str]:
        """What the card says otherwise."""
        pairs = (
            ("parameters", self.card.n_parameters, self.n_parameters),
            ("receptive field", self.card.receptive_field_vox, self.receptive_field_vox),
        )
        return [
            f"the card says {said} {what}, the network has {has}"
            for what, said, has in pairs
            if said != has
        ]


def examine_model(folder: str | Path) -> ModelFacts:
    """Load a model, its hash, shapes and dilation rule checked on the way.

    Raises
    ------
    InputError
        No such model, or weights and card that do not belong together, or a dilation schedule
        that leaves holes.
    """
    load_card(folder)  # says which models there are
    card, network = load_network(folder)
    return ModelFacts(
        folder=model_folder(folder),
        card=card,
        n_parameters=sum(parameter.numel() for parameter in network.parameters()),
        receptive_field_vox=_receptive_field(network, card),
    )


def format_model(facts: ModelFacts) -> str:
    """Lay a model's facts out for a terminal."""
    card = facts.card
    low, high = card.voxel_size_range_angstrom
    size = facts.receptive_field_vox
    rows = [
        ("folder", str(facts.folder)),
        ("role", card.role),
        ("network", card.network + "".join(f", {k} {v}" for k, v in card.parameters.items())),
        ("parameters", f"{facts.n_parameters:,}"),
        ("classes", f"{len(card.classes)}: " + ", ".join(card.classes)),
        ("voxel size", f"{card.voxel_size_angstrom:g} A (reads {low:g} to {high:g} A)"),
        ("contrast", f"{card.contrast} particles"),
        ("receptive field", f"{size} voxels ({size * card.voxel_size_angstrom:.0f} A)"),
        *([] if card.names_whole else [("dilation rule", "kept: no holes in the receptive field")]),
        ("weights", f"SHA-256 {card.weights_sha256[:16]}..., as the card says"),
    ]
    for name in ("threshold", "bandwidth_vox", "box_vox"):
        if getattr(card, name) is not None:
            rows.append((name, f"{getattr(card, name):g}"))
    if card.temperature is not None:
        rows.append(("temperature", f"{card.temperature:.3g}"))
    if card.sift is not None:
        rows.append(("sifts", _sift(card.sift)))
    if card.precision_curve is not None:
        rows.append(("precision curve", _curve(card.precision_curve)))
    if card.domain is not None:
        rows.append(("domain", f"{card.domain.tomograms} tomograms: {card.domain.source}"))
    rows += [(f"trained: {key}", str(value)) for key, value in card.training.items()]
    rows += [(f"measured: {key}", str(value)) for key, value in card.metrics.items()]
    rows.append(("licence", card.licence))
    warnings = "".join(f"  WARNING: {text}\n" for text in facts.disagreements)
    return _laid_out(card, rows) + warnings


def format_picker(folder: str | Path) -> str:
    """Lay a picker's card out for a terminal, its weights checked as `examine_model` does."""
    card, network = load_picker(folder)
    rows = [
        ("folder", str(model_folder(folder))), ("role", card.role),
        ("network", card.network + "".join(f", {k} {v}" for k, v in card.parameters.items())),
        ("parameters", f"{count_parameters(network):,}"),
        ("extent", f"a particle is {card.extent_px:g} pixels wide"),
        ("weights", f"SHA-256 {card.weights_sha256[:16]}..., as the card says"),
        *((f"head {name}", f"threshold {head.threshold:g}, trained on {head.source or 'nothing'}")
          for name, head in card.heads.items()),
        *((f"trained: {key}", str(value)) for key, value in card.training.items()),
        *((f"measured: {key}", str(value)) for key, value in card.metrics.items()),
        ("licence", card.licence),
    ]  # fmt: skip
    return _laid_out(card, rows)


def _laid_out(card: ModelCard | PickerCard, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [card.name, *([card.description] if card.description else []), ""]
    return "\n".join([*lines, *(f"  {name:{width}}  {value}" for name, value in rows)]) + "\n"


def _sift(sift: Sift) -> str:
    return (
        f"candidates of the localizer {sift.localizer_sha256[:16]}... from {sift.threshold:g} on; "
        f"particles from a probability of {sift.least:g} on"
    )


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Some of a precision curve's points in words."""
    scores, precisions = zip(*points, strict=True)
    wanted = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return ", ".join(f"score {s:g}: {p:.2f}" for s, p in
                     zip(wanted, np.interp(wanted, scores, precisions), strict=True))  # fmt: skip


def _receptive_field(network: nn.Module, card: ModelCard) -> int:
    """The network's own figure; the card's where a network does not tell."""
    return int(getattr(network, "receptive_field_vox", card.receptive_field_vox))
