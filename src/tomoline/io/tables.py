"""The two tables of a tomogram, candidates.csv and particles.csv, read and written strictly.

Columns are those of `tomoline.contracts`; `expected_precision` is there for all rows or not at all
(a localizer that was not calibrated gives none). Floats have six decimals, so equal values give
equal bytes. A rejected particle that no voxel voted on has shares and probabilities of 0.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tomoline.contracts import CANDIDATE_COLUMNS, EXPECTED_PRECISION, PARTICLE_COLUMNS
from tomoline.errors import InputError
from tomoline.io.atomic import write_text

PROBABILITY_PREFIX = "p_"
ACCEPTED, REJECTED = "accepted", "rejected"

_INTEGERS = {
    "candidate_id", "particle_id", "size_vox", "tomogram_nz", "tomogram_ny", "tomogram_nx",
}  # fmt: skip
_WORDS = {"tomogram", "status", "reason", "class"}
_SHARES = {  # 0..1, as p_<class>
    "score", "mean_probability", "vote_share", "margin", EXPECTED_PRECISION,
}  # fmt: skip
_POSITIVE = {"voxel_size_angstrom", "binning", "tomogram_nz", "tomogram_ny", "tomogram_nx"}
_ROUNDING = 1e-5


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns of class probabilities, of the classes without the background."""
    return [PROBABILITY_PREFIX + name for name in classes]


def table_classes(particles: pd.DataFrame) -> list[str]:
    """Classes, without the background, that a particle table has probabilities of."""
    own = [str(c) for c in particles.columns[len(PARTICLE_COLUMNS) :]]
    return [c[len(PROBABILITY_PREFIX) :] for c in own if c.startswith(PROBABILITY_PREFIX)]


def candidate_table(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Make a candidate table of columns in any order. InputError as `read_candidates`."""
    return _checked(_ordered(columns, CANDIDATE_COLUMNS), list(CANDIDATE_COLUMNS), "candidates")


def particle_table(columns: Mapping[str, Any], classes: Sequence[str]) -> pd.DataFrame:
    """Make a particle table of columns in any order; `classes` are those without the background.

    InputError as `read_particles`.
    """
    optional = [EXPECTED_PRECISION] if EXPECTED_PRECISION in columns else []
    wanted = [*PARTICLE_COLUMNS, *optional, *probability_columns(classes)]
    return _checked(_ordered(columns, wanted), wanted, "particles")


def _ordered(columns: Mapping[str, Any], wanted: Sequence[str]) -> pd.DataFrame:
    known = [name for name in wanted if name in columns]
    unknown = [name for name in columns if name not in wanted]
    # As lists, because columns may be parts of other tables, with row numbers of their own.
    return pd.DataFrame({name: list(columns[name]) for name in known + unknown})


def write_candidates(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write candidates.csv, atomically; InputError if the table is not one of candidates."""
    _write(path, _checked(table, list(CANDIDATE_COLUMNS), path))


def write_particles(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write particles.csv, atomically; InputError if the table is not one of particles."""
    _write(path, _checked(table, _particle_columns(table, path), path))


def read_candidates(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read candidates.csv: one row a candidate, numbers as int64 and float64, the rest as str.

    Raises
    ------
    InputError
        If a column is missing, unknown or out of order, or a value is not of its column's kind.
    """
    return _checked(_read(path), list(CANDIDATE_COLUMNS), path)


def read_particles(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read particles.csv, as `read_candidates`; it ends with one p_<class> column a class."""
    raw = _read(path)
    return _checked(raw, _particle_columns(raw, path), path)


def _particle_columns(table: pd.DataFrame, source: str | os.PathLike[str]) -> list[str]:
    fixed = len(PARTICLE_COLUMNS)
    extra = [str(name) for name in table.columns[fixed:]]
    optional = [EXPECTED_PRECISION] if extra[:1] == [EXPECTED_PRECISION] else []
    extra = extra[len(optional) :]
    bad = [n for n in extra if not n.startswith(PROBABILITY_PREFIX) or n == PROBABILITY_PREFIX]
    if bad:
        raise _fault(source, "p_<class> columns after those of the contract", ", ".join(bad))
    return [*PARTICLE_COLUMNS, *optional, *extra]


def _read(path: str | os.PathLike[str]) -> pd.DataFrame:
    file = Path(path)
    if not file.is_file():
        raise _fault(path, "a table", "no such file")
    try:
        # As text first: "NA" is a name and "007" a tomogram. pandas would fill or cut odd rows.
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream, strict=True)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise _fault(path, "a comma-separated table in UTF-8", str(error)) from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise _fault(path, f"{len(header)} values in a row", f"{len(row)} in row {number}")
    return pd.DataFrame(rows, columns=pd.Index(header), dtype=str)


def _write(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    whole = table.copy()
    for name in whole.columns:
        if whole[name].dtype.kind == "f":
            whole[name] = whole[name].round(6) + 0.0  # no -0.000000
    write_text(path, whole.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def _checked(
    table: pd.DataFrame, columns: list[str], source: str | os.PathLike[str]
) -> pd.DataFrame:
    """Return a copy with the columns' types; InputError at the first fault."""
    found = [str(name) for name in table.columns]
    if found != columns:
        wrong = [c for c in columns if c not in found] or [c for c in found if c not in columns]
        raise _fault(
            source, f"the columns {', '.join(columns)}",
            f"{', '.join(found) or 'none'} (see {', '.join(wrong) or 'their order'})",
        )  # fmt: skip
    typed = pd.DataFrame({name: _typed(table[name], name, source) for name in columns})
    _check_rows(typed, columns[0] if columns[0] in _INTEGERS else "particle_id", source)
    return typed


def _typed(values: pd.Series[Any], name: str, source: str | os.PathLike[str]) -> pd.Series[Any]:
    if name in _WORDS:
        return values.astype(str)
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    low, high = (0.0, 1.0) if _is_share(name) else (-np.inf, np.inf)
    if name in _INTEGERS:
        low = 1.0
    good = np.isfinite(numbers) & (numbers >= low - _ROUNDING) & (numbers <= high + _ROUNDING)
    if name in _POSITIVE:
        good &= numbers > 0
    if name in _INTEGERS:
        good &= numbers == np.rint(numbers)
    if not good.all():
        row = int(np.flatnonzero(~np.asarray(good))[0])
        kind = "a whole number of 1 or more" if name in _INTEGERS else "a number"
        kind = "a number from 0 to 1" if _is_share(name) else kind
        kind = "a number above 0" if name in _POSITIVE - _INTEGERS else kind
        raise _fault(source, f"{kind} in column {name}", f"{values.iloc[row]!r} in row {row + 1}")
    return numbers.astype(np.int64) if name in _INTEGERS else numbers


def _is_share(name: str) -> bool:
    return name in _SHARES or name.startswith(PROBABILITY_PREFIX)


def _check_rows(table: pd.DataFrame, key: str, source: str | os.PathLike[str]) -> None:
    """Rules that tie columns to each other."""
    accepted = table["status"] == ACCEPTED
    identity = ["tomogram", key] if "tomogram" in table.columns else [key]
    rules = [
        (accepted | (table["status"] == REJECTED), "status accepted or rejected", "status"),
        (accepted == (table["reason"] == ""), "a reason if, and only if, rejected", "reason"),
        (~table.duplicated(identity), f"each {key} once", key),
    ]
    if "class" in table.columns:
        known = table["class"].isin(table_classes(table))
        empty = table["class"] == ""
        words = "a class that has its p_ column if accepted, none if rejected"
        rules.append(((accepted & known) | (~accepted & empty), words, "class"))
    for good, expected, name in rules:
        if not good.all():
            row = int(np.flatnonzero(~good.to_numpy())[0])
            raise _fault(source, expected, f"{name} {table[name].iloc[row]!r} in row {row + 1}")


def _fault(source: str | os.PathLike[str], expected: str, found: str) -> InputError:
    return InputError(
        Path(source), expected=expected, found=found,
        remedy="delete the file and run the workflow again; it is written by it, not by hand",
    )  # fmt: skip
