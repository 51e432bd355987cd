"""review.csv: picks that a person is asked about, and what the person answered.

One row a pick; `decision` is empty until it is filled in, with `yes` (a particle of the class
proposed), `no` (no particle), `unsure`, or the name of the class that it is. People fill it in with
spreadsheet programs, so reading forgives what those do to a file: byte order marks, semicolons,
quotes, blanks, capitals, empty lines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.errors import InputError
from tomoline.io.annotations import PLACE_COLUMNS
from tomoline.io.atomic import write_text

REVIEW_COLUMNS = (
    "number",  # on the contact sheet
    "tomogram", "particle_id",
    "x_vox", "y_vox", "z_vox",  # voxels of the tomogram as it was given, the first being 0
    "status",  # accepted or rejected
    "class",  # the one proposed; empty where none was
    "score", "margin",
    "why",
    "decision",
)  # fmt: skip
NEEDED = ("tomogram", "particle_id", *PLACE_COLUMNS, "decision")
README = """\
{count} picks of the data set {dataset} to look at.

review.csv    one row a pick; fill in the column `decision` (any spreadsheet program):
                  yes         a particle, of the class in the column `class`
                  no          no particle
                  {classes}
                              a particle of that class
                  unsure      cannot be told
                  (empty)     not looked at
review.html   the same with pictures: open it in a browser (it needs no network and no server;
              a phone will do), answer with mouse or keys, then `Download review.csv`.
copick/       the same as a copick project, for ChimeraX (ArtiaX) and napari.
asked.csv     what was ever asked; the program's own notes.

Then, in the project's folder:

    tomoline adopt {dataset} review.csv

`why` says why a pick was chosen: those "drawn at random" are a fair sample, of which the share of
particles is estimated; the others are those that the models are least sure of.
"""


def cells_of(row: pd.Series) -> Iterator[str]:
    """The cells of one row of review.csv as text, in the order of REVIEW_COLUMNS."""
    for name in REVIEW_COLUMNS:
        digits = 3 if name in PLACE_COLUMNS else 4 if name in ("score", "margin") else None
        yield str(row[name]) if digits is None else f"{float(row[name]):.{digits}f}"


def write_review(path: str | Path, table: pd.DataFrame) -> None:
    """Write review.csv; `table` has REVIEW_COLUMNS."""
    rows = [list(cells_of(row)) for _, row in table.iterrows()]
    text = pd.DataFrame(rows, columns=list(REVIEW_COLUMNS)).to_csv(index=False, lineterminator="\n")
    write_text(path, text)


def read_review(path: str | Path) -> pd.DataFrame:
    """Read a filled-in review: `line` (in the file), NEEDED, and `class` and `why` as text.

    `particle_id` is int, places are float, `decision` is stripped text.

    Raises
    ------
    InputError
        No such file, not a table of text, columns that are missing, or numbers that are none.
    """
    path = Path(path)
    rows = _rows(path)
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    missing = [name for name in NEEDED if name not in header]
    if missing:
        remedy = "give the review.csv that `tomoline review` wrote, filled in"
        if "decision" not in header and {"x", "x_vox"} & set(header):
            remedy += "; picks of other programs come in with `tomoline import`"
        raise InputError(
            path, expected=f"a table with the columns {', '.join(NEEDED)}",
            found=f"no column {', '.join(missing)}; there are {', '.join(header) or 'none'}",
            remedy=remedy,
        )  # fmt: skip
    cells = [dict(zip(header, map(str.strip, row), strict=False)) for _, row in rows[1:]]
    table = pd.DataFrame({"line": [line for line, _ in rows[1:]]})
    for name in (*NEEDED, "class", "why", "status"):
        table[name] = [cell.get(name, "") for cell in cells]
    for name in ("particle_id", *PLACE_COLUMNS):
        # A decimal comma is what a spreadsheet program of many countries makes of a number.
        numbers = pd.to_numeric(table[name].str.replace(",", "."), errors="coerce")
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise InputError(
                f"{path}, line {table['line'].iloc[row]}", expected=f"a number in column {name}",
                found=repr(table[name].iloc[row]), remedy="restore the cell from review.csv",
            )  # fmt: skip
        table[name] = numbers
    table["particle_id"] = table["particle_id"].round().astype(np.int64)
    return table


def _rows(path: Path) -> Sequence[tuple[int, list[str]]]:
    """Rows that hold something, with their line numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            path, expected="a review that was filled in", found="no such file",
            remedy="check the path, or write one: tomoline review NAME",
        ) from None  # fmt: skip
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            path, expected="comma-separated text in UTF-8", found=str(error),
            remedy="save it as `CSV UTF-8`, not as a spreadsheet or in another encoding",
        ) from None  # fmt: skip
    first = next((line for line in text.splitlines() if line.strip(" ,;\t#")), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    found = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#"):
                found.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}", expected="a table of text", found=str(error),
            remedy="look for a quote that does not end, or write the review anew",
        ) from None  # fmt: skip
    return found
