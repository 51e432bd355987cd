"""Readers of known particle positions: SHREC, CSV (polnet and others) and RELION's STAR.

Every reader returns one table with TRUTH_COLUMNS, coordinates 0-based and in voxels of the
tomogram as it was given, and `radius_vox` where the file has it. `id` is the particle's number in
the occupancy volume, where there is one.

Annotations are the same table, and with `score` where the program they come from has one: what
`tomoline import` makes of a user's picks in any dialect (export/), written as CSV. They also have
`verdict` (yes: a particle; no: none is there; unsure) and `source`, where the row came from. Rows
that are not `yes` are labels to learn from and no known particles, so the readers of those leave
them out; `read_labels` gives all.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.io.mrc import open_volume
from tomoline.io.star import read_star

TRUTH_COLUMNS = ("id", "class", "z_vox", "y_vox", "x_vox")
RADIUS_COLUMN = "radius_vox"
SCORE_COLUMN = "score"
VERDICT_COLUMN, SOURCE_COLUMN = "verdict", "source"
YES, NO, UNSURE = "yes", "no", "unsure"
VERDICTS = (YES, NO, UNSURE)
PLACE_COLUMNS = ["z_vox", "y_vox", "x_vox"]
# SHREC'20 gives z in its 200-voxel slab of a 512-voxel volume (METHODS.md).
SHREC20_Z_OFFSET_VOX = 156.0

_DECIMAL_COMMA = r"^\s*(-?\d+),(\d+)\s*$"

TruthFormat = Literal["auto", "shrec19", "shrec20", "shrec21", "csv", "star"]

_ALIASES = {
    "id": ("id", "particle_id", "instance"),
    "class": ("class", "cls", "pdb", "class_name", "name", "tomolineclassname"),
    # the last are those of a points layer that napari saved
    "z_vox": ("z_vox", "z", "axis-0"),
    "y_vox": ("y_vox", "y", "axis-1"),
    "x_vox": ("x_vox", "x", "axis-2"),
    RADIUS_COLUMN: (RADIUS_COLUMN, "radius"),
    SCORE_COLUMN: (SCORE_COLUMN,),
}


class VoxelGeometry(Protocol):
    """What a STAR file's coordinates need to become voxels (export/geometry.py has it)."""

    def from_unbinned(self, zyx_pixel: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Unbinned pixels (n, 3) to voxels."""

    def from_centred_angstrom(
        self, zyx_angstrom: NDArray[np.float64], /, *, centre: Literal["picker", "cpp"]
    ) -> NDArray[np.float64]:
        """Angstrom from the tomogram's centre (n, 3) to voxels."""


@dataclass(frozen=True, kw_only=True)
class TruthOptions:
    """How a truth file is to be read.

    `z_offset_vox` None takes SHREC'20's own, else 0. `geometry` is needed for STAR files only,
    `tilt_series` picks its rows there, where it names several tomograms.
    """

    layout: TruthFormat = "auto"
    z_offset_vox: float | None = None
    geometry: VoxelGeometry | None = None
    relion_centre: Literal["picker", "cpp"] = "picker"
    tilt_series: str | None = None


def read_truth(path: str | Path, options: TruthOptions | None = None) -> pd.DataFrame:
    """Read known positions, whatever their format; see the module's docstring.

    Raises InputError for a missing or empty file, a format that does not fit, or coordinates that
    are not numbers.
    """
    path, options = Path(path), options or TruthOptions()
    layout = _detected(path) if options.layout == "auto" else options.layout
    table = _READERS[layout](path, options)
    offset = options.z_offset_vox
    if offset is None:
        offset = SHREC20_Z_OFFSET_VOX if layout == "shrec20" else 0.0
    table["z_vox"] = table["z_vox"] + offset
    _check(table, path)
    return table


def annotation_table(
    zyx_vox: NDArray[np.float64],
    classes: Sequence[str],
    *,
    scores: Sequence[float] | NDArray[np.float64] | None = None,
    radius_vox: Sequence[float] | NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Make a table of annotations of places (n, 3), numbered from 1 in their order."""
    zyx = np.asarray(zyx_vox, dtype=float).reshape(-1, 3)
    table = pd.DataFrame({"id": np.arange(1, len(zyx) + 1), "class": list(classes)})
    table["class"] = table["class"].astype(str)
    for column, values in zip(("z_vox", "y_vox", "x_vox"), zyx.T, strict=True):
        table[column] = values
    if radius_vox is not None:
        table[RADIUS_COLUMN] = np.asarray(radius_vox, dtype=float)
    if scores is not None:
        table[SCORE_COLUMN] = np.asarray(scores, dtype=float)
    return table


def write_annotations(path: str | Path, table: pd.DataFrame) -> None:
    """Write annotations as the CSV that `read_truth` reads, with six decimals."""
    write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def read_labels(path: str | Path) -> pd.DataFrame:
    """Read all rows of an annotation file: TRUTH_COLUMNS, `verdict` and `source`, and radius and
    score where the file has them (NaN in rows without).

    A file without verdicts, as any program may write it, holds particles; its source is empty.
    Raises InputError for a file that is none, a verdict that is unknown, or an id that is there
    twice.
    """
    path = Path(path)
    raw = read_text_table(path)
    verdict, source = _column(raw, VERDICT_COLUMN), _column(raw, SOURCE_COLUMN)
    verdict = verdict.str.strip().str.lower().replace("", YES)
    bad = ~verdict.isin(VERDICTS)
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise InputError(
            path,
            expected=f"{', '.join(VERDICTS)} in column {VERDICT_COLUMN}",
            found=f"{verdict.iloc[row]!r} in row {row + 1}",
            remedy="correct the row",
        )
    optional = [name for name in (RADIUS_COLUMN, SCORE_COLUMN) if name in raw]
    table = _named(raw.drop(columns=optional), path)
    for name in optional:
        empty = raw[name].str.strip() == ""
        table[name] = _numbers(raw.assign(**{name: raw[name].mask(empty, "nan")}), name, path,
                               gaps=True).to_numpy()  # fmt: skip
    table[VERDICT_COLUMN], table[SOURCE_COLUMN] = verdict.to_numpy(), source.to_numpy()
    _check(table, path)
    return table


def label_table(table: pd.DataFrame, *, source: str, verdict: str = YES) -> pd.DataFrame:
    """Return annotations as labels of one source and, where they have none, of one verdict."""
    if VERDICT_COLUMN in table:
        return table.assign(**{SOURCE_COLUMN: source})
    return table.assign(**{VERDICT_COLUMN: verdict, SOURCE_COLUMN: source})


def write_labels(path: str | Path, table: pd.DataFrame) -> None:
    """Write labels as the CSV that `read_labels` reads; columns in one order, whatever the rows."""
    optional = [name for name in (RADIUS_COLUMN, SCORE_COLUMN) if name in table]
    columns = [*TRUTH_COLUMNS, *optional, VERDICT_COLUMN, SOURCE_COLUMN]
    write_annotations(path, table[columns])


def _column(raw: pd.DataFrame, name: str) -> pd.Series:
    if name in raw:
        return raw[name].astype(str)
    return pd.Series([""] * len(raw), index=raw.index, dtype=str)


def _detected(path: Path) -> TruthFormat:
    if path.suffix.lower() == ".star":
        return "star"
    if re.fullmatch(r"particle_locations_model_\d+\.txt", path.name):
        return "shrec19"
    first = next((line for line in _lines(path) if line.strip()), "")
    return "csv" if "," in first or path.suffix.lower() == ".csv" else "shrec21"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(
            path, expected="a file of known positions", found="no such file", remedy="check `truth`"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            path, expected="text", found="binary data", remedy="give the positions, not the volume"
        ) from None


def _read_shrec(path: Path, options: TruthOptions) -> pd.DataFrame:
    """Lines `pdb x y z rotZ rotX rotZ` ('20, '21) or `pdb z y x ...` ('19); line n is id n."""
    rows = []
    layout = _detected(path) if options.layout == "auto" else options.layout
    lines = [line for line in _lines(path) if line.strip()]
    for number, line in enumerate(lines, 1):
        fields = line.split()
        try:
            first, second, third = (float(field) for field in fields[1:4])
        except ValueError:
            raise InputError(
                path,
                expected="lines of a name and three coordinates (SHREC particle_locations.txt)",
                found=f"line {number}: {line[:80]!r}",
                remedy="correct the line, or set evaluate.truth_format",
            ) from None
        zyx = (first, second, third) if layout == "shrec19" else (third, second, first)
        rows.append((number, fields[0], *zyx))
    return pd.DataFrame(rows, columns=list(TRUTH_COLUMNS))


def _read_csv(path: Path, options: TruthOptions) -> pd.DataFrame:
    """Columns x, y, z (or x_vox ...), and where they are there id, class (or cls), radius."""
    return read_named_table(read_text_table(path), path).drop(columns=SCORE_COLUMN, errors="ignore")


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV table with a header, all cells as text; InputError where it is none.

    Spreadsheet programs of many countries write semicolons, and commas in numbers; those are read
    as well.
    """
    first = next((line for line in _lines(path) if line.strip()), "")
    separator = max(",;\t", key=first.count)
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, skipinitialspace=True, sep=separator
        )
        # Between commas, "1,234" might as well be more than a thousand.
        return table if separator == "," else table.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            path,
            expected="a CSV table with a header",
            found=str(error),
            remedy="write a header line: id,class,x,y,z",
        ) from error


def read_named_table(raw: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Make annotations of a table of text by its columns' names; InputError naming the fault.

    Of labels (`read_labels`) only those that are particles are taken.
    """
    if VERDICT_COLUMN in raw:
        kept = raw[VERDICT_COLUMN].astype(str).str.strip().str.lower().isin(["", YES])
        raw = raw[kept].reset_index(drop=True)
        gaps = [c for c in (RADIUS_COLUMN, SCORE_COLUMN) if c in raw and (raw[c] == "").any()]
        raw = raw.drop(columns=gaps)
    return _named(raw, path)


def _named(raw: pd.DataFrame, path: Path) -> pd.DataFrame:
    by_name = {str(column).strip().lower(): column for column in reversed(raw.columns)}
    found = {
        name: next((by_name[alias] for alias in aliases if alias in by_name), None)
        for name, aliases in _ALIASES.items()
    }
    missing = [name for name in ("z_vox", "y_vox", "x_vox") if found[name] is None]
    if missing:
        raise InputError(
            path,
            expected="columns x, y and z (voxels), optionally id, class and radius",
            found=f"columns {', '.join(map(str, raw.columns))}",
            remedy="name the columns so",
        )
    table = pd.DataFrame(index=raw.index)
    for name, column in found.items():
        if column is None:
            continue
        table[name] = (
            raw[column].astype(str).str.strip() if name == "class" else _numbers(raw, column, path)
        )
    if "id" not in table:
        table["id"] = np.arange(1, len(table) + 1)
    if "class" not in table:
        table["class"] = ""
    table["id"] = table["id"].astype(int)
    more = [column for column in (RADIUS_COLUMN, SCORE_COLUMN) if column in table]
    return table[[*TRUTH_COLUMNS, *more]].reset_index(drop=True)


def _numbers(raw: pd.DataFrame, column: str, path: Path, *, gaps: bool = False) -> pd.Series:
    values = pd.to_numeric(raw[column], errors="coerce")
    bad = values.isna() & ~((raw[column].astype(str) == "nan") & gaps)
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise InputError(
            path,
            expected=f"numbers in column {column}",
            found=f"{raw[column].iloc[row]!r} in row {row + 1}",
            remedy="correct the row",
        )
    return values.astype(float)


def _read_star(path: Path, options: TruthOptions) -> pd.DataFrame:
    """RELION-5's centred coordinates, or rlnCoordinate{X,Y,Z} in unbinned pixels."""
    blocks = read_star(path, text_columns=("rlnTomoName", "tomolineClassName"))
    raw = blocks.get("particles", next(iter(blocks.values())))
    if options.tilt_series is not None and "rlnTomoName" in raw:
        raw = raw[raw["rlnTomoName"] == options.tilt_series]
    raw = raw.reset_index(drop=True)
    centred = [f"rlnCenteredCoordinate{axis}Angst" for axis in "ZYX"]
    corner = [f"rlnCoordinate{axis}" for axis in "ZYX"]
    columns = next((c for c in (centred, corner) if set(c) <= set(raw.columns)), None)
    if columns is None or options.geometry is None:
        raise InputError(
            path,
            expected="rlnCenteredCoordinate{X,Y,Z}Angst or rlnCoordinate{X,Y,Z}, and a tomogram "
            "to place them in",
            found=f"columns {', '.join(map(str, raw.columns))}",
            remedy="give RELION's particles.star",
        )
    zyx = np.stack([_numbers(raw, column, path).to_numpy() for column in columns], axis=1)
    if columns is centred:
        zyx = options.geometry.from_centred_angstrom(zyx, centre=options.relion_centre)
    else:
        zyx = options.geometry.from_unbinned(zyx)
    table = pd.DataFrame(zyx, columns=["z_vox", "y_vox", "x_vox"])
    table["id"] = np.arange(1, len(table) + 1)
    name = next((c for c in ("tomolineClassName", "rlnClassNumber") if c in raw), None)
    table["class"] = "" if name is None else raw[name].astype(str)
    return table[list(TRUTH_COLUMNS)]


def _check(table: pd.DataFrame, path: Path) -> None:
    if not np.isfinite(table[["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float)).all():
        raise InputError(
            path, expected="finite coordinates", found="NaN or infinity", remedy="correct the file"
        )
    if table["id"].duplicated().any():
        twice = table["id"][table["id"].duplicated()].iloc[0]
        raise InputError(
            path, expected="each id once", found=f"id {twice} twice", remedy="correct the ids"
        )


_READERS: dict[str, Callable[[Path, TruthOptions], pd.DataFrame]] = {
    "shrec19": _read_shrec,
    "shrec20": _read_shrec,
    "shrec21": _read_shrec,
    "csv": _read_csv,
    "star": _read_star,
}


def read_occupancy(
    path: str | Path, shape_zyx: tuple[int, int, int], *, z_offset_vox: float | None = None
) -> NDArray[np.integer[Any]]:
    """Read a volume of particle numbers: MRC (SHREC's occupancy_mask.mrc) or .npz (`instance`).

    A slab of the tomogram, as SHREC'19 and '20 have it, is put where `z_offset_vox` says, None in
    the middle. Returns unsigned integers (nz, ny, nx), 0 for background. Raises InputError where
    the shape is not the tomogram's or the values are not whole numbers from 0.
    """
    path = Path(path)
    volume = _instance_of_npz(path) if path.suffix == ".npz" else np.asarray(open_volume(path))
    above = slab_offset(volume.shape, shape_zyx)
    if above is not None and z_offset_vox:
        above = round(z_offset_vox)
    if above is None or not 0 <= above <= shape_zyx[0] - volume.shape[0]:
        raise InputError(
            path,
            expected=f"a volume of the tomogram's shape {shape_zyx} (z, y, x)",
            found=f"shape {volume.shape}",
            remedy="give the occupancy volume that belongs to this tomogram",
        )
    whole = volume.astype(np.int64)
    if not np.array_equal(whole, volume) or whole.min() < 0:
        raise InputError(
            path,
            expected="whole particle numbers, 0 for background",
            found="fractions or negative values",
            remedy="give occupancy_mask.mrc, not the tomogram or a density",
        )
    below = shape_zyx[0] - above - volume.shape[0]
    return np.pad(whole.astype(np.uint32), ((above, below), (0, 0), (0, 0)))


def slab_offset(part: tuple[int, ...], whole: tuple[int, int, int]) -> int | None:
    """Sections above a centred slab of a volume; 0 for the volume itself, None for neither.

    Thinner than a quarter of the volume it would be something else (SHREC's is 200 of 512).
    """
    if len(part) != 3 or part[1:] != whole[1:] or not whole[0] <= 4 * part[0] <= 4 * whole[0]:
        return None
    spare = whole[0] - part[0]
    return None if spare % 2 else spare // 2


def _instance_of_npz(path: Path) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "instance" in arrays:
                instance: NDArray[Any] = arrays["instance"]
                return instance
            found = f"arrays {', '.join(arrays)}"
    except FileNotFoundError:
        found = "no such file"
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        found = f"a file that numpy cannot read ({error})"
    raise InputError(
        path,
        expected="an .npz file with the array `instance`",
        found=found,
        remedy="check `occupancy` in the dataset's sheet",
    )
