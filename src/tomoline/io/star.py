"""STAR files: written by us, so that equal tables give equal bytes; read with `starfile`.

`starfile` writes a creation date into every file. RELION reads the same text without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import starfile

from tomoline.errors import InputError
from tomoline.io.atomic import write_text

DECIMALS = 6
_NEEDS_QUOTES = re.compile(r"[\s#']|^$|^(data_|loop_|save_|_)")


def format_star(blocks: Mapping[str, pd.DataFrame], *, comment: str = "") -> str:
    """Return the text of a STAR file with one loop per block, in the order given.

    Floats are written with six decimals, everything else as its string, quoted where it must be.
    `comment` goes above the first block only: a comment between an empty loop and the next block
    stops `starfile`. A table without rows is written as its column names.

    Raises ValueError for a cell that STAR cannot hold (a double quote, a line feed, or NaN).
    """
    lines = [f"# {comment}", ""] if comment else []
    for name, table in blocks.items():
        lines += [f"data_{name}", "", "loop_"]
        lines += [f"_{column} #{n}" for n, column in enumerate(table.columns, 1)]
        lines += _rows(table)
        lines += ["", ""]
    return "\n".join(lines[:-1]) + "\n"


def write_star(path: str | Path, blocks: Mapping[str, pd.DataFrame], *, comment: str = "") -> None:
    """Write `format_star`'s text, whole or not at all."""
    write_text(path, format_star(blocks, comment=comment))


def read_star(path: str | Path, *, text_columns: Iterable[str] = ()) -> dict[str, pd.DataFrame]:
    """Read every loop of a STAR file as a table; a list block becomes a table of one row.

    `text_columns` are kept as strings even where they look like numbers (names such as `4e10`).
    Raises InputError where the file is missing or is not STAR.
    """
    try:
        raw = starfile.read(Path(path), always_dict=True, parse_as_string=list(text_columns))
    except FileNotFoundError:
        raise InputError(
            path, expected="a STAR file", found="no such file", remedy="check the path"
        ) from None
    except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise InputError(
            path,
            expected="a STAR file",
            found=f"text that does not parse ({error})",
            remedy="write it again with the program it comes from",
        ) from error
    if not raw:
        raise InputError(
            path,
            expected="a STAR file with at least one data_ block",
            found="none",
            remedy="give the STAR file itself, not another text file",
        )
    return {
        str(name): block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
        for name, block in raw.items()
    }


def _rows(table: pd.DataFrame) -> list[str]:
    columns = [[_cell(value) for value in table[column].tolist()] for column in table.columns]
    widths = [max((len(cell) for cell in column), default=0) for column in columns]
    return [
        " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"STAR cannot hold {value}")
        # -0.0 and 0.0 are equal tables, so they must be equal bytes.
        return f"{round(value, DECIMALS) + 0.0:.{DECIMALS}f}"
    text = str(value)
    if '"' in text or "\n" in text:
        raise ValueError(f"STAR cannot hold {text!r}")
    return f'"{text}"' if _NEEDS_QUOTES.search(text) else text
