"""A data set of micrographs: `config/datasets/<name>.yaml` and its sheet, one row a micrograph.

As for tomograms (`tomoline.io.sheet`), both are written by `tomoline onboard` and may be edited.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.io.sheet import (
    DATASETS_FOLDER,
    Verdict,
    cell_text,
    check_header,
    explain,
    is_safe_name,
    read_lines,
    read_yaml,
)
from tomoline.settings import MicrographDatasetSettings, validated

MICROGRAPHS = "micrographs"
# Folders of a data set's results that are not a micrograph's.
RESERVED_NAMES = ("benchmarks", "export", "logs", "report", "review")
COLUMNS = (
    "micrograph",  # unique safe name
    "path",  # as found, relative to the project where below it, else absolute
    "use",  # yes or no; a human may edit it
    "verdict",  # ok, warning or refused
    "reason",  # why, in words; empty when ok
    "pixel_size_angstrom",  # header's value
    "ny", "nx",  # rows and columns
    "kind",  # mrc, tiff, png, jpeg
    "truth",  # known particles (CSV, STAR, .box); may be empty
    "mask",  # picture or MRC of that aspect: where nothing is picked; may be empty
    "file_bytes", "file_mtime_ns",
)  # fmt: skip
_NUMBERS = ("pixel_size_angstrom", "ny", "nx", "file_bytes", "file_mtime_ns")


class MicrographRow(BaseModel):
    """One micrograph; the fields are `COLUMNS`. Columns a human added are in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    micrograph: str
    path: str
    use: Literal["yes", "no"]
    verdict: Verdict
    reason: str = ""
    pixel_size_angstrom: float | None = None
    ny: int | None = None
    nx: int | None = None
    kind: str = ""
    truth: str = ""
    mask: str = ""
    file_bytes: int | None = None
    file_mtime_ns: int | None = None

    @field_validator("micrograph")
    @classmethod
    def _safe(cls, value: str) -> str:
        if not is_safe_name(value) or value.lower() in RESERVED_NAMES:
            raise ValueError(
                f"{value!r} is not a safe name: letters, digits, '.', '_' and '-' only, starting "
                f"with a letter or digit, at most 100, and none of {', '.join(RESERVED_NAMES)}"
            )
        return value

    @property
    def wanted(self) -> bool:
        """Whether the workflow runs this row."""
        return self.use == "yes" and self.verdict != "refused"


def read_micrograph_sheet(path: str | Path) -> list[MicrographRow]:
    """Read and check a sheet; rows in file order. InputError as `tomoline.io.sheet.read_sheet`."""
    path = Path(path)
    lines = read_lines(path)
    header = [name.strip() for name in lines[0]] if lines else []
    check_header(path, header, COLUMNS)
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if any(cell.strip() for cell in cells):
            rows.append(_row(path, number, dict(zip(header, cells, strict=False))))
    seen: dict[str, MicrographRow] = {}
    for row in filter(lambda row: row.wanted, rows):
        other = seen.setdefault(row.micrograph.casefold(), row)
        if other is not row:
            raise InputError(
                path, expected="every micrograph to be used has its own name",
                found=f"{row.micrograph!r} names both {other.path} and {row.path}",
                remedy="change one name in the column micrograph, or set its use to no",
            )  # fmt: skip
    return rows


def write_micrograph_sheet(path: str | Path, rows: Sequence[MicrographRow]) -> None:
    """Write `rows`, atomically; columns a human added follow the known ones."""
    extra = list(dict.fromkeys(name for row in rows for name in (row.model_extra or {})))
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow([*COLUMNS, *extra])
    for row in rows:
        values = row.model_dump()
        writer.writerow([cell_text(values.get(name)) for name in (*COLUMNS, *extra)])
    write_text(path, buffer.getvalue())


def load_micrographs(
    name: str, *, folder: str | Path = DATASETS_FOLDER
) -> tuple[MicrographDatasetSettings, list[MicrographRow]]:
    """Read a data set of micrographs: its settings and its rows, all checked."""
    path = Path(folder) / f"{name}.yaml"
    dataset = validated(MicrographDatasetSettings, read_yaml(path), source=path)
    if dataset.name != path.stem:
        raise InputError(
            path, expected=f"name: {path.stem}, as the file is called",
            found=f"name: {dataset.name}", remedy="give file and key the same name",
        )  # fmt: skip
    return dataset, read_micrograph_sheet(path.parent / dataset.sheet)


def _row(path: Path, number: int, cells: dict[str, str]) -> MicrographRow:
    values: dict[str, Any] = {name: text.strip() for name, text in cells.items() if name}
    for name in ("use", "verdict"):
        values[name] = values[name].lower()
    for name in _NUMBERS:
        values[name] = values.get(name) or None
    try:
        return MicrographRow(**values)
    except ValidationError as error:
        raise InputError(
            f"{path}, line {number}",
            expected="use yes or no, verdict ok, warning or refused, a safe name, a path",
            found=explain(error), remedy="mend the cell",
        ) from error  # fmt: skip
