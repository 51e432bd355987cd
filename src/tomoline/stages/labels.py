"""What is known of a data set's tomograms by people: where it is kept, and how it grows.

One file a tomogram, `config/datasets/<dataset>_annotations/<tomogram>.csv`, of the columns that
`tomoline.io.annotations` describes. Imports (`stages/importing.py`) and reviews
(`stages/adopt.py`) add to it; fine-tuning (`stages/finetune.py`) learns from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.evaluation.matching import match_one_to_one
from tomoline.io.annotations import (
    PLACE_COLUMNS,
    SOURCE_COLUMN,
    TRUTH_COLUMNS,
    VERDICT_COLUMN,
    VERDICTS,
    read_labels,
)
from tomoline.networks.cards import is_class_name

# Nearer to each other two labels, or a pick and one, are of one particle.
SAME_PLACE_ANGSTROM = 30.0
SAME_PICK_VOX = 0.5  # nearer to each other two picks of one file are one click too many


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What joining did: rows added, rows that stayed as they were, and in words those replaced."""

    added: int
    unchanged: int
    replaced: tuple[str, ...]


def labels_of(file: str | Path) -> pd.DataFrame:
    """The labels of a file; an empty table where there is none. InputError as `read_labels`."""
    if Path(file).is_file():
        return read_labels(file)
    columns = [*TRUTH_COLUMNS, VERDICT_COLUMN, SOURCE_COLUMN]
    empty = pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
    return empty.astype({"id": int, **dict.fromkeys(PLACE_COLUMNS, float)})


def same_place_vox(voxel_size_angstrom: float) -> float:
    """How near to each other labels of one particle lie, in voxels of the tomogram."""
    return max(SAME_PLACE_ANGSTROM / voxel_size_angstrom, SAME_PICK_VOX)


def check_class_names(names: Iterable[str], source: str | Path) -> None:
    """Refuse names of classes that mean something else (answers, the background), or that not
    every file can hold.

    Raises
    ------
    InputError
        Naming the first such name.
    """
    taken = {*VERDICTS, BACKGROUND}
    for name in names:
        if name.casefold() in taken or not is_class_name(name):
            raise InputError(
                source, expected="class names of at most 100 characters, without quotes, and none "
                f"of {', '.join(sorted(taken))}", found=repr(name),
                remedy="choose another name, in the file or with --classes",
            )  # fmt: skip


def without_repeats(table: pd.DataFrame, source: str | Path) -> tuple[pd.DataFrame, int]:
    """Leave out picks that lie on an earlier one of the same file; returns how many there were.

    Raises
    ------
    InputError
        If two picks at one place are of different classes.
    """
    places = table[PLACE_COLUMNS].to_numpy(float)
    pairs = sorted(cKDTree(places).query_pairs(SAME_PICK_VOX)) if len(places) else []
    classes = table["class"].astype(str).to_numpy()
    for first, second in pairs:
        if classes[first].casefold() != classes[second].casefold():
            raise InputError(
                source, expected="one class at a place",
                found=f"picks {first + 1} and {second + 1}, {classes[first] or 'no class'} and "
                f"{classes[second] or 'no class'}, at "
                f"{tuple(np.round(places[second, ::-1], 1).tolist())} (x, y, z)",
                remedy="remove one of them",
            )  # fmt: skip
    twice = sorted({second for _, second in pairs})
    return table.drop(index=table.index[twice]).reset_index(drop=True), len(twice)


def joined(
    old: pd.DataFrame, new: pd.DataFrame, *, within_vox: float
) -> tuple[pd.DataFrame, Changes]:
    """Join labels; a new one within `within_vox` of an old one replaces it and keeps its id.

    The nearest pairs are matched one to one, so of two neighbours each keeps its own. Joining the
    same labels again changes nothing.
    """
    pairs = match_one_to_one(
        new[PLACE_COLUMNS].to_numpy(float), old[PLACE_COLUMNS].to_numpy(float), within_vox
    ).true_of_prediction
    same = np.array([
        place >= 0 and _says(new.iloc[k]) == _says(old.iloc[place])
        for k, place in enumerate(pairs)
    ], bool)  # fmt: skip
    replaced = [
        f"{_said(old.iloc[place])} is now {_said(new.iloc[k])}"
        for k, place in enumerate(pairs) if place >= 0 and not same[k]
    ]  # fmt: skip
    gone = [int(place) for k, place in enumerate(pairs) if place >= 0 and not same[k]]
    taken = new[~same].copy()
    highest = max(int(old["id"].max()) if len(old) else 0, 0)
    places = pairs[~same]
    fresh = highest + np.cumsum(places < 0)
    taken["id"] = [
        int(old["id"].iloc[place]) if place >= 0 else int(number)
        for place, number in zip(places, fresh, strict=True)
    ]
    kept = old.drop(index=old.index[gone])
    parts = [part for part in (kept, taken) if len(part)] or [taken]
    whole = pd.concat(parts, ignore_index=True).sort_values("id", kind="stable")
    changes = Changes(
        added=int((places < 0).sum()), unchanged=int(same.sum()), replaced=tuple(replaced)
    )
    return whole.reset_index(drop=True), changes


def _says(row: pd.Series) -> tuple[str, str]:
    return str(row[VERDICT_COLUMN]), str(row["class"])


def _said(row: pd.Series) -> str:
    """A label in words, with where it came from."""
    verdict, name = _says(row)
    what = {"no": "no particle", "unsure": "unsure"}.get(verdict, name or "a particle")
    source = str(row[SOURCE_COLUMN])
    return f"{what} ({source})" if source else what
