"""A dataset's two files: `config/datasets/<name>.yaml` and its sheet, one row a tomogram.

Both are written by `tomoline onboard` and may be edited by hand afterwards (in a text editor or a
spreadsheet program), so reading is strict about meaning and lenient about what such programs do
to a file: byte order marks, line ends, capitals in yes/no, extra columns. Extra columns are kept.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tomoline.contracts import SHEET_COLUMNS
from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.settings import SAFE_NAME, DatasetSettings, MicrographDatasetSettings, validated

DATASETS_FOLDER = Path("config/datasets")

Verdict = Literal["ok", "warning", "refused"]

_LOWERED = ("use", "verdict", "axes")
_OPTIONAL_NUMBERS = (
    "voxel_size_angstrom", "nz", "ny", "nx", "mode", "file_bytes", "file_mtime_ns",
)  # fmt: skip


class SheetRow(BaseModel):
    """One tomogram of a dataset; the fields are `contracts.SHEET_COLUMNS`.

    Numbers that could not be read from a refused file are None (an empty cell). Columns that a
    human added are in `model_extra`, as text.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    tomogram: str
    path: str
    use: Literal["yes", "no"]
    verdict: Verdict
    reason: str = ""
    voxel_size_angstrom: float | None = None
    nz: int | None = None
    ny: int | None = None
    nx: int | None = None
    mode: int | None = None
    axes: Literal["xyz", "xzy"] = "xyz"
    tilt_series: str = ""
    truth: str = ""
    occupancy: str = ""
    file_bytes: int | None = None
    file_mtime_ns: int | None = None

    @field_validator("tomogram")
    @classmethod
    def _safe(cls, value: str) -> str:
        if not is_safe_name(value):
            raise ValueError(
                f"{value!r} is not a safe name: letters, digits, '.', '_' and '-' only, starting "
                "with a letter or digit, at most 100"
            )
        return value

    @field_validator("path")
    @classmethod
    def _given(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the path is empty")
        return value

    @property
    def wanted(self) -> bool:
        """Whether the workflow runs this row."""
        return self.use == "yes"


def is_safe_name(name: str) -> bool:
    """Whether `name` can be a folder below results/ and a wildcard of the workflow."""
    # fullmatch, because `$` alone would let a trailing line feed through
    return re.fullmatch(SAFE_NAME.removeprefix("^").removesuffix("$"), name) is not None


def check_name(name: str, *, what: str) -> str:
    """Return `name`, or raise InputError where it could not safely be a folder's name."""
    if not is_safe_name(name):
        raise InputError(
            name or "(empty)",
            expected=f"a {what} of letters, digits, '.', '_' and '-', starting with a letter or "
            "digit, at most 100 characters",
            found=repr(name),
            remedy="choose such a name",
        )
    return name


def read_sheet(path: str | Path) -> list[SheetRow]:
    """Read and check a sheet; rows in file order.

    Raises
    ------
    InputError
        Missing or unreadable file, missing or repeated columns, a cell that makes no sense (with
        its line number), or two rows to be used under one name.
    """
    path = Path(path)
    lines = read_lines(path)
    header = [name.strip() for name in lines[0]] if lines else []
    check_header(path, header, SHEET_COLUMNS)
    rows = [
        _parse_row(path, line_number, dict(zip(header, cells, strict=False)))
        for line_number, cells in enumerate(lines[1:], start=2)
        if any(cell.strip() for cell in cells)
    ]
    _check_unique(path, rows)
    return rows


def write_sheet(path: str | Path, rows: Sequence[SheetRow]) -> None:
    """Write `rows`, atomically; columns a human added follow the known ones."""
    extra = list(dict.fromkeys(name for row in rows for name in (row.model_extra or {})))
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    columns = [*SHEET_COLUMNS, *extra]
    writer.writerow(columns)
    for row in rows:
        values = row.model_dump()
        writer.writerow([cell_text(values.get(name)) for name in columns])
    write_text(path, buffer.getvalue())


def read_dataset(path: str | Path) -> DatasetSettings:
    """Read and check `config/datasets/<name>.yaml`.

    Raises
    ------
    InputError
        Missing file, bad YAML, unknown keys (the known ones are listed), values out of range, or
        a `name` that is not the file's own.
    """
    path = Path(path)
    raw = read_yaml(path)
    if raw.get("kind") == "micrographs":
        raise InputError(
            path,
            expected="a dataset of tomograms",
            found="one of micrographs",
            remedy="micrographs are picked by `snakemake` alone (docs/micrographs.md)",
        )
    dataset = validated(DatasetSettings, raw, source=path)
    if dataset.name != path.stem:
        raise InputError(
            path,
            expected=f"name: {path.stem}, as the file is called",
            found=f"name: {dataset.name}",
            remedy="give file and key the same name",
        )
    return dataset


def kind_of(name: str, *, folder: str | Path = DATASETS_FOLDER) -> str:
    """Say what a dataset is made of: `micrographs`, or `tomograms` (also where it is not there)."""
    check_name(name, what="dataset name")
    path = Path(folder) / f"{name}.yaml"
    return str(read_yaml(path).get("kind", "tomograms")) if path.is_file() else "tomograms"


def load_dataset(
    name: str, *, folder: str | Path = DATASETS_FOLDER
) -> tuple[DatasetSettings, list[SheetRow]]:
    """Read the dataset `name` of `folder`: its settings and its rows, all checked."""
    check_name(name, what="dataset name")
    path = Path(folder) / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            path,
            expected=f"an onboarded dataset called {name}",
            found="no such file; there are: " + (", ".join(list_datasets(folder)) or "none"),
            remedy=f"tomoline onboard PATH... --name {name}",
        )
    dataset = read_dataset(path)
    return dataset, read_sheet(path.parent / dataset.sheet)


def labels_file(dataset: str, tomogram: str, *, folder: str | Path = DATASETS_FOLDER) -> Path:
    """The file of a tomogram's labels; it need not be there."""
    return Path(folder) / f"{dataset}_annotations" / f"{tomogram}.csv"


def list_datasets(folder: str | Path = DATASETS_FOLDER) -> list[str]:
    """Return the names of the onboarded datasets, sorted."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def write_dataset(path: str | Path, dataset: DatasetSettings | MicrographDatasetSettings) -> None:
    """Write a new dataset file, each key with its description as a comment."""
    lines = [f"# Dataset {dataset.name}, written by `tomoline onboard`; edit it freely."]
    for key, field in type(dataset).model_fields.items():
        lines += textwrap.wrap(
            field.description or "", 98, initial_indent="# ", subsequent_indent="# "
        )
        lines.append(f"{key}: {yaml_value(getattr(dataset, key))}")
    write_text(path, "\n".join(lines) + "\n")


def update_dataset(path: str | Path, changes: Mapping[str, Any]) -> DatasetSettings:
    """Change single keys of a dataset file and leave every other line as a human left it."""
    change_keys(Path(path), changes)
    return read_dataset(path)


def change_keys(path: Path, changes: Mapping[str, Any]) -> None:
    """Change single keys of a file of lines `key: value`, and nothing else."""
    text = path.read_text(encoding="utf-8")
    for key, value in changes.items():
        line = f"{key}: {yaml_value(value)}"
        # the backslashes of JSON are doubled because re reads escapes in a replacement
        text, count = re.subn(rf"(?m)^{re.escape(key)}:.*$", line.replace("\\", r"\\"), text)
        if count == 0:
            text = text.rstrip("\n") + f"\n{line}\n"
    write_text(path, text)


def explain(error: ValidationError) -> str:
    """Say in one line what pydantic found wrong."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'value'} ({item['input']!r}): "
        f"{item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )


def read_lines(path: Path) -> list[list[str]]:
    """Cells of a sheet, line by line; InputError where it is not there or is no text."""
    if not path.is_file():
        raise InputError(
            path,
            expected="a sheet of tomograms",
            found="no such file",
            remedy="run `tomoline onboard`, or mend the key `sheet` of the dataset",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            path,
            expected="a table of tab-separated text in UTF-8",
            found=f"bytes that are not text ({error.reason} at byte {error.start})",
            remedy="save the sheet as tab-separated text, not as a spreadsheet",
        ) from error
    return list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))


def check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a sheet that lacks one of `columns`, or has a column twice: InputError."""
    missing = [name for name in columns if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if missing or repeated:
        found = [f"no column {', '.join(missing)}"] if missing else []
        found += [f"repeated column {', '.join(repeated)}"] if repeated else []
        raise InputError(
            path,
            expected="one tab-separated column each of " + ", ".join(columns),
            found="; ".join(found),
            remedy="put the column back (tabs, not commas or blanks, between columns)",
        )


def _parse_row(path: Path, line_number: int, cells: Mapping[str, str]) -> SheetRow:
    values: dict[str, Any] = {name: text.strip() for name, text in cells.items() if name}
    for name in _LOWERED:
        values[name] = values.get(name, "").lower()
    for name in _OPTIONAL_NUMBERS:
        values[name] = values.get(name) or None
    try:
        return SheetRow(**values)
    except ValidationError as error:
        raise InputError(
            f"{path}, line {line_number}",
            expected="use yes or no, verdict ok, warning or refused, axes xyz or xzy, a safe "
            "tomogram name, a path",
            found=explain(error),
            remedy="mend the cell",
        ) from error


def _check_unique(path: Path, rows: Iterable[SheetRow]) -> None:
    seen: dict[str, SheetRow] = {}
    for row in rows:
        if not row.wanted:
            continue
        # results/TS_01 and results/ts_01 are one folder on some file systems
        other = seen.setdefault(row.tomogram.casefold(), row)
        if other is not row:
            raise InputError(
                path,
                expected="every tomogram to be used has its own name",
                found=f"{row.tomogram!r} names both {other.path} and {row.path}",
                remedy="change one name in the column tomogram, or set its use to no",
            )


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a dataset's file, not checked; InputError where it has none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            path,
            expected="a dataset written by `tomoline onboard`",
            found="no such file",
            remedy=f"tomoline onboard PATH... --name {path.stem}",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            path,
            expected="YAML",
            found=" ".join(str(error).split()),
            remedy="mend the line named, or remove the file and run `tomoline onboard` again",
        ) from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise InputError(
            path,
            expected="lines of the form `key: value`",
            found=type(raw).__name__,
            remedy="remove the file and run `tomoline onboard` again",
        )
    return raw


def cell_text(value: Any) -> str:
    """What a value is in a sheet."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return re.sub(r"[\t\r\n]+", " ", text)  # these would break the table


def yaml_value(value: Any) -> str:
    """What a value is in a dataset's file."""
    # JSON is YAML; null and quoted strings read the same everywhere
    return json.dumps(value, ensure_ascii=False)
