"""Coordinates of particles in micrographs: every dialect read and written, in one pixel convention.

`x_px`, `y_px` count from the first pixel of the file as it is stored, whose centre is 0 (the first
row of an MRC file is the lowest, of a TIFF, PNG or JPEG the highest line of the picture).

- RELION STAR (`rlnMicrographName`, `rlnCoordinateX`, `rlnCoordinateY`,
  `rlnAutopickFigureOfMerit`): pixels from the first of the image in memory, 0-based. RELION turns
  a TIFF over when it reads one ("flipped along the slow axis", its manual's conventions), so there
  y is `ny - 1 - y_px`; `rows_from_below` says which micrographs that holds for.
- cryoSPARC: the same block with an optics table, and names without folders, as it joins imported
  particles to exposures by name.
- EMAN .box: the lowest corner and size of each box, whole pixels, y as RELION has it; the centre is
  corner + size // 2.
- CSV: our own columns, with a header.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.io.star import read_star, write_star

PICK_COLUMNS = (
    "micrograph", "pick_id", "x_px", "y_px", "score", "diameter_px", "status", "reason",
)  # fmt: skip
STAR_COLUMNS = (
    "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit",
)  # fmt: skip
ROWS_FROM_ABOVE = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What a dialect needs to know of a micrograph: its file, size and pixel."""

    micrograph: str
    path: str
    shape_yx: tuple[int, int]
    pixel_size_angstrom: float
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1

    @property
    def rows_from_above(self) -> bool:
        """Whether the first row of the file is the highest of the picture."""
        return Path(self.path).suffix.lower() in ROWS_FROM_ABOVE

    def turned(self, y_px: Any) -> Any:
        """y of the file's rows from y in RELION's and EMAN's memory, or the other way round."""
        return self.shape_yx[0] - 1 - y_px if self.rows_from_above else y_px


def pick_table(columns: Mapping[str, Any]) -> pd.DataFrame:
    """A table of picks with all columns in order, checked."""
    return _checked(pd.DataFrame({name: list(columns[name]) for name in PICK_COLUMNS}), "picks")


def write_picks(path: str | Path, table: pd.DataFrame) -> None:
    """Write picks.csv, atomically; floats with three decimals (scores six)."""
    whole = _checked(table, str(path)).copy()
    for name in ("x_px", "y_px", "diameter_px"):
        whole[name] = [f"{value + 0.0:.3f}" for value in whole[name]]
    whole["score"] = [f"{value:.6f}" for value in whole["score"]]
    write_text(path, whole.to_csv(index=False, lineterminator="\n"))


def read_picks(path: str | Path) -> pd.DataFrame:
    """Read picks.csv, strictly. InputError for a missing file, column, or a value of no sense."""
    rows = _csv_rows(path)
    header = list(rows[0]) if rows else _header(path)
    missing = [name for name in PICK_COLUMNS if name not in header]
    if missing:
        raise _fault(path, f"the columns {', '.join(PICK_COLUMNS)}", f"no {', '.join(missing)}")
    frame = pd.DataFrame({name: [row[name] for row in rows] for name in PICK_COLUMNS}, dtype=object)
    return _checked(frame, str(path))


def accepted(table: pd.DataFrame) -> pd.DataFrame:
    """The picks of a table, without the rejected candidates."""
    return table[table["status"] == "accepted"].reset_index(drop=True)


def write_relion(path: str | Path, picks: pd.DataFrame, exposures: Sequence[Exposure]) -> None:
    """Write accepted picks as RELION's STAR; names are the files' paths."""
    write_star(path, {"particles": _star_table(picks, exposures, full_names=True)})


def write_cryosparc(path: str | Path, picks: pd.DataFrame, exposures: Sequence[Exposure]) -> None:
    """Write accepted picks as a STAR with optics, micrographs by file name alone."""
    table = _star_table(picks, exposures, full_names=False)
    groups = _optics(exposures)
    number = {e.micrograph: 1 + list(groups).index(_optics_key(e)) for e in exposures}
    own = accepted(picks)["micrograph"]
    table["rlnOpticsGroup"] = [number[name] for name in own]
    optics = pd.DataFrame(
        [
            {
                "rlnOpticsGroup": k, "rlnOpticsGroupName": f"opticsGroup{k}",
                "rlnMicrographPixelSize": float(pixel), "rlnVoltage": float(kv),
                "rlnSphericalAberration": float(cs), "rlnAmplitudeContrast": float(ac),
            }
            for k, (pixel, kv, cs, ac) in enumerate(groups, 1)
        ]
    )  # fmt: skip
    write_star(path, {"optics": optics, "particles": table})


def write_box(path: str | Path, picks: pd.DataFrame, exposure: Exposure) -> None:
    """Write one micrograph's accepted picks as an EMAN .box file, without header."""
    own = accepted(picks)
    lines = []
    for x, y, diameter in zip(own["x_px"], own["y_px"], own["diameter_px"], strict=True):
        side = 2 * max(1, round(diameter / 2))
        corner = (_nearest(v) - side // 2 for v in (x, exposure.turned(y)))
        lines.append("\t".join(str(v) for v in (*corner, side, side)))
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_box(path: str | Path, exposure: Exposure) -> pd.DataFrame:
    """Read an EMAN .box file: `x_px`, `y_px`, `score` (1), `diameter_px` (the box's size)."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        values = _numbers(path, number, cells[:4])
        if len(values) < 4 or values[2] <= 0 or values[3] <= 0:
            raise _fault(f"{path}, line {number}", "corner x, y and size of a box", line.strip())
        x, y, wide, high = values
        rows.append((x + wide // 2, exposure.turned(y + high // 2), 1.0, wide))
    return pd.DataFrame(rows, columns=["x_px", "y_px", "score", "diameter_px"], dtype=float)


def read_relion(path: str | Path, exposures: Sequence[Exposure]) -> dict[str, pd.DataFrame]:
    """Read a STAR's coordinates by micrograph: `x_px`, `y_px`, `score` (1 where there is none).

    A micrograph is known by its path, its file name, or its stem; a file without
    `rlnMicrographName` (RELION's *_autopick.star) is that of the only exposure.

    Raises
    ------
    InputError
        No block with coordinates, a micrograph that is not among `exposures`, or a value that is
        no number.
    """
    wanted = {"rlnCoordinateX", "rlnCoordinateY"}
    blocks = read_star(path, text_columns=["rlnMicrographName"])
    table = next((t for t in blocks.values() if wanted <= set(t.columns)), None)
    if table is None:
        raise _fault(path, "a block with rlnCoordinateX and rlnCoordinateY", "none")
    names = _names_of(path, table, exposures)
    known = {key: e for e in exposures for key in _keys(e)}
    parts: dict[str, list[tuple[float, float, float]]] = {e.micrograph: [] for e in exposures}
    scores = table.get("rlnAutopickFigureOfMerit", pd.Series(1.0, index=table.index))
    for name, x, y, score in zip(
        names, table["rlnCoordinateX"], table["rlnCoordinateY"], scores, strict=True
    ):
        exposure = known.get(name) or known.get(Path(name).name) or known.get(Path(name).stem)
        if exposure is None:
            raise _fault(path, f"micrographs among {', '.join(sorted(parts))}", name)
        own = parts[exposure.micrograph]
        place = _numbers(path, len(own) + 1, [x, y, score])
        own.append((place[0], float(exposure.turned(place[1])), place[2]))
    return {
        name: pd.DataFrame(rows, columns=["x_px", "y_px", "score"], dtype=float)
        for name, rows in parts.items()
    }


def read_truth(path: str | Path, exposure: Exposure) -> pd.DataFrame:
    """Read known particles of one micrograph: `x_px`, `y_px`, and `diameter_px` (0: not given).

    CSV with the columns x_px and y_px (ours, or a list of one's own), a STAR file, or .box, by the
    suffix. Rejected rows of picks.csv are left out.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".box":
        return read_box(path, exposure)[["x_px", "y_px", "diameter_px"]]
    if suffix == ".star":
        frame = read_relion(path, [exposure])[exposure.micrograph]
        return frame[["x_px", "y_px"]].assign(diameter_px=0.0)
    rows = [row for row in _csv_rows(path) if row.get("status", "accepted") == "accepted"]
    for name in ("x_px", "y_px"):
        if name not in _header(path):
            raise _fault(path, "the columns x_px and y_px", f"{', '.join(_header(path))}")
    values = [
        _numbers(path, n, [row["x_px"], row["y_px"], row.get("diameter_px") or 0.0])
        for n, row in enumerate(rows, 2)
        if row.get("micrograph", exposure.micrograph) == exposure.micrograph
    ]
    return pd.DataFrame(values, columns=["x_px", "y_px", "diameter_px"], dtype=float)


def _star_table(
    picks: pd.DataFrame, exposures: Sequence[Exposure], *, full_names: bool
) -> pd.DataFrame:
    known = {e.micrograph: e for e in exposures}
    own = accepted(picks)
    its = [known[name] for name in own["micrograph"]]
    columns = (
        [e.path if full_names else Path(e.path).name for e in its],
        [float(v) for v in own["x_px"]],
        [float(e.turned(v)) for e, v in zip(its, own["y_px"], strict=True)],
        [float(v) for v in own["score"]],
    )
    return pd.DataFrame(dict(zip(STAR_COLUMNS, columns, strict=True)))


def _optics_key(e: Exposure) -> tuple[float, float, float, float]:
    return (
        e.pixel_size_angstrom, e.voltage_kv, e.spherical_aberration_mm, e.amplitude_contrast
    )  # fmt: skip


def _optics(exposures: Sequence[Exposure]) -> list[tuple[float, float, float, float]]:
    return list(dict.fromkeys(_optics_key(e) for e in exposures))


def _keys(exposure: Exposure) -> tuple[str, ...]:
    path = Path(exposure.path)
    return (exposure.path, path.name, path.stem, exposure.micrograph)


def _names_of(path: str | Path, table: pd.DataFrame, exposures: Sequence[Exposure]) -> list[str]:
    if "rlnMicrographName" in table.columns:
        return [str(name) for name in table["rlnMicrographName"]]
    if len(exposures) != 1:
        raise _fault(path, "rlnMicrographName, as there are several micrographs", "no such column")
    return [exposures[0].micrograph] * len(table)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _fault(path, "a file of coordinates", "no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise _fault(path, "a text file of coordinates", str(error)) from error


def _csv_rows(path: str | Path) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise _fault(f"{path}, line {number}", "as many values as columns", "another number")
    return rows


def _header(path: str | Path) -> list[str]:
    return next(csv.reader(io.StringIO(_text(path), newline="")), [])


def _numbers(path: str | Path, line: int, cells: Sequence[Any]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise _fault(f"{path}, row {line}", "numbers", str(error)) from error
    if not np.isfinite(values).all():
        raise _fault(f"{path}, row {line}", "finite numbers", str(cells))
    return values


def _checked(table: pd.DataFrame, source: str) -> pd.DataFrame:
    out = pd.DataFrame(index=range(len(table)))
    for name in PICK_COLUMNS:
        values = list(table[name])
        if name in ("micrograph", "status", "reason"):
            out[name] = pd.Series([str(value) for value in values], dtype=object)
        else:
            numbers = [_numbers(source, n, [v])[0] for n, v in enumerate(values, 1)]
            out[name] = np.asarray(numbers, np.int64 if name == "pick_id" else float)
    good = (out["status"] == "accepted") == (out["reason"] == "")
    if not (good & out["status"].isin(["accepted", "rejected"])).all():
        raise _fault(source, "status accepted without, or rejected with, a reason", "another row")
    return out


def _fault(source: str | Path, expected: str, found: str) -> InputError:
    return InputError(
        source, expected=expected, found=found,
        remedy="write it again with the program it comes from, or mend the line",
    )  # fmt: skip
