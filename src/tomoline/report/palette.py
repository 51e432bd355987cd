"""Colours and shapes of classes: told apart by colour-blind readers and on grey paper.

The seven colours are those of Okabe and Ito (2008, "Color universal design") without black, which
would vanish in a tomogram. The shape changes every seven classes, so colour and shape together
name a class, and every picture's legend shows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
SHAPES = ("circle", "square", "diamond", "triangle")
ACCENT = "#0072B2"
REJECTED = "#8A8A8A"


@dataclass(frozen=True, kw_only=True)
class ClassStyle:
    """How one class is drawn: `index` counts from 0 in the legend's order."""

    name: str
    index: int
    colour: str
    shape: str


def styles(names: Iterable[str]) -> dict[str, ClassStyle]:
    """Return one style a class, in the order given; the same names always look the same."""
    return {
        name: ClassStyle(
            name=name,
            index=i,
            colour=COLOURS[i % len(COLOURS)],
            shape=SHAPES[(i // len(COLOURS)) % len(SHAPES)],
        )
        for i, name in enumerate(names)
    }


def class_order(columns: Sequence[str], seen: Iterable[str] = ()) -> list[str]:
    """Return the class names: those of the table's `p_<class>` columns, then others seen, sorted.

    The order of the columns is the model's, so a class keeps its colour in every tomogram.
    """
    names = [column[2:] for column in columns if column.startswith("p_") and len(column) > 2]
    return names + sorted({name for name in seen if name} - set(names))
