"""Files of the classifiers that name particles together: `card`, `card_2`, `card_3` and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.networks.cards import ModelCard

File = TypeVar("File")


def numbered(name: str, files: Sequence[File]) -> dict[str, File]:
    """Name files: the first `name`, the others with their number."""
    return {name if k == 1 else f"{name}_{k}": file for k, file in enumerate(files, 1)}


def of_members(files: Mapping[str, Any], name: str) -> list[Any]:
    """The files that `numbered` named, in order; the first has to be there."""
    found = [files[name]]
    while f"{name}_{len(found) + 1}" in files:
        found.append(files[f"{name}_{len(found) + 1}"])
    return found


def check_members(cards: Sequence[ModelCard]) -> None:
    """Refuse classifiers that cannot name the same subtomograms together.

    Raises
    ------
    InputError
        For another voxel size, box, contrast or list of classes than the first one's.
    """
    first = cards[0]
    for card in cards[1:]:
        for key, what in (
            ("voxel_size_angstrom", "a voxel size of {} angstrom"), ("box_vox", "a box of {}"),
            ("contrast", "{} particles"), ("classes", "the classes {}"),
        ):  # fmt: skip
            wanted, found = getattr(first, key), getattr(card, key)
            if wanted != found:
                raise InputError(
                    f"models.ensemble, {card.name}",
                    expected=f"{what.format(_said(wanted))}, as {first.name} has",
                    found=_said(found), remedy="leave it out, or train it for the same",
                )  # fmt: skip


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(name for name in value if name != BACKGROUND)
    return f"{value:g}" if isinstance(value, float) else str(value)
