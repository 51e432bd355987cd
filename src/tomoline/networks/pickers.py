"""Pickers on disk: a card and, beside it, weights as safetensors.

A picker of micrographs has no voxel size, classes or box, so its card is another than that of the
networks for tomograms; files, hash and strictness are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.networks.blocks import count_parameters
from tomoline.networks.cards import CARD, WEIGHTS, check_digest, model_folder, read_card
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.networks.registry import build
from tomoline.networks.weights import write_weights
from tomoline.ops.micrographs import EXTENT_PX


class HeadCard(BaseModel):
    """What is known of one head: where it was trained, and what its scores are worth.

    `threshold` has the best F1 on its held-out micrographs; `precision_curve` are pairs of a score
    and the precision of all picks from that score on, both rising.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = ""
    threshold: float = Field(0.5, gt=0, lt=1)
    precision_curve: list[tuple[float, float]] = []

    @model_validator(mode="after")
    def _rising(self) -> HeadCard:
        points = self.precision_curve
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(points)):
            raise ValueError("precision_curve must rise")
        return self

    def threshold_for(self, precision: float) -> float | None:
        """The lowest score whose picks reach a precision; None where none was seen to."""
        reached = [score for score, value in self.precision_curve if value >= precision]
        return float(np.clip(min(reached), 1e-6, 1 - 1e-6)) if reached else None


class PickerCard(BaseModel):
    """What a picker is and what it was measured to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    network: Literal["hydrapicker"] = "hydrapicker"
    role: Literal["picker"] = "picker"
    parameters: dict[str, Any]
    extent_px: float = Field(EXTENT_PX, gt=0)
    heads: dict[str, HeadCard]
    n_parameters: int = Field(0, ge=0)
    weights_sha256: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    licence: str = "MIT"

    @model_validator(mode="after")
    def _general(self) -> PickerCard:
        if GENERAL not in self.heads:
            raise ValueError(f"heads must hold {GENERAL!r}")
        return self

    def head(self, name: str) -> HeadCard:
        """A head's entry; InputError, with the known ones, where there is none."""
        if name not in self.heads:
            raise InputError(
                "micrographs.head", expected=f"a head of {self.name}: {', '.join(self.heads)}",
                found=name, remedy="correct the name, or train a head of that name",
            )  # fmt: skip
        return self.heads[name]


def load_picker_card(path: str | Path) -> PickerCard:
    """Read and check a card, given the model's folder or it; InputError as `load_card`."""
    remedy = "correct `micrographs.model`, or train a picker"
    return read_card(path, PickerCard, called="a picker's card", remedy=remedy)


def is_picker(path: str | Path) -> bool:
    """Whether a folder holds a picker's card, whole or not."""
    card = model_folder(path) / CARD
    return card.is_file() and "\nrole: picker\n" in card.read_text(encoding="utf-8")


def verify_picker(path: str | Path) -> PickerCard:
    """Check that the weights are there and are those the card was written for."""
    card = load_picker_card(path)
    check_digest(model_folder(path), card.weights_sha256)
    return card


def load_picker(path: str | Path) -> tuple[PickerCard, HydraPicker]:
    """Read a picker, its weights checked against the card's hash and the network's shapes."""
    card = verify_picker(path)
    weights = model_folder(path) / WEIGHTS
    network = build(card.network, card.parameters, source=str(model_folder(path) / CARD))
    try:
        network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            weights, expected=f"weights of {card.network} with {card.parameters}",
            found=str(error).strip().splitlines()[-1].strip(),
            remedy="the card and the weights do not belong together: copy both again",
        ) from error  # fmt: skip
    return card, cast(HydraPicker, network.eval())


def write_with_heads(path: str | Path, names: Sequence[str], folder: str | Path) -> PickerCard:
    """Write a picker again with its general head and the named ones only; returns the new card.

    Most of a picker's weights are its heads, and a head for simulated particles or for a data set
    that is done is of use to nobody else.

    Raises
    ------
    InputError
        No picker at `path`, a head that it has not got, or `folder` is the picker's own or holds a
        model of other work.
    """
    card, network = load_picker(path)
    if Path(folder).resolve() == model_folder(path).resolve():
        raise InputError(
            folder, expected="another folder than the picker's own", found="the same",
            remedy="name one that is not there yet: the other heads would be lost",
        )  # fmt: skip
    if (Path(folder) / CARD).exists() and not is_picker(folder):
        raise InputError(
            folder, expected="a folder for a picker", found="a model of other work",
            remedy="name one that is not there yet: that model would be lost",
        )  # fmt: skip
    for name in names:
        card.head(name)
    dropped = [name for name in network.specialised() if name not in names]
    for name in dropped:
        del network.heads[name]
    kept = card.model_copy(update={
        "parameters": {**card.parameters, "heads": network.specialised()},
        "heads": {name: head for name, head in card.heads.items() if name not in dropped},
    })  # fmt: skip
    return save_picker(folder, kept, network.state_dict())


def save_picker(folder: str | Path, card: PickerCard, state: dict[str, Tensor]) -> PickerCard:
    """Write weights and card; returns the card with hash and parameter count filled in."""
    folder = Path(folder)
    digest = write_weights(folder, state)
    count = count_parameters(build(card.network, card.parameters))
    card = card.model_copy(update={"weights_sha256": digest, "n_parameters": count})
    text = yaml.safe_dump(
        card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=None,
    )  # fmt: skip
    write_text(folder / CARD, text)
    return card
