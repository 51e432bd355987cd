"""`tomoline import`: a user's picks, from any program whose dialect we write, as annotations.

The picks are placed in the voxels of the tomograms of an onboarded dataset, by the same geometry as
exports, and written as one CSV a tomogram (`io.annotations`) below
`config/datasets/<dataset>_annotations/`. Nothing has to have been run before. What another file
brought, and what a review decided, stays there: each row says where it came from, and an import
replaces only what the same file brought before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.errors import InputError
from tomoline.export.dialect import Dialect, Place
from tomoline.export.geometry import RelionCentre, TomogramGeometry
from tomoline.export.registry import dialect as dialect_of
from tomoline.io.annotations import (
    PLACE_COLUMNS,
    RADIUS_COLUMN,
    SOURCE_COLUMN,
    label_table,
    write_labels,
)
from tomoline.io.sheet import (
    DATASETS_FOLDER,
    SheetRow,
    labels_file,
    load_dataset,
    write_sheet,
)
from tomoline.settings import DatasetSettings
from tomoline.stages.labels import (
    check_class_names,
    joined,
    labels_of,
    same_place_vox,
    without_repeats,
)
from tomoline.stages.names import file_stem, tilt_series_name

_TOMOSTAR = ".tomostar"


@dataclass(frozen=True, kw_only=True)
class Picks:
    """What is to be imported, and how it is to be understood.

    `tomogram` is needed for a file that does not say which tomogram it is of, where the dataset
    has several. `class_names` are those of the numbers 1, 2, ... in files that hold numbers only;
    with a single name and a file without classes, it is everything's. `as_truth` also names the
    annotations in the sheet, so that `evaluate` compares with them.
    """

    path: Path
    dialect: str
    dataset: str
    tomogram: str | None = None
    class_names: tuple[str, ...] = ()
    radius_angstrom: float | None = None
    relion_centre: RelionCentre = "picker"
    as_truth: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Files written, with their tables, by tomogram; names that no tomogram has; and in words what
    became of labels that were there before."""

    files: dict[str, Path]
    tables: dict[str, pd.DataFrame]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many picks were taken."""
        return sum(len(table) for table in self.tables.values())


def import_picks(picks: Picks, *, project: str | Path = ".") -> Imported:
    """Read picks and write annotations.

    Raises InputError where the file is not of the dialect, where it cannot be told which tomogram
    it is of, where a name fits several tomograms, or where a pick lies outside its tomogram.
    Nothing is written then.
    """
    folder = Path(project) / DATASETS_FOLDER
    dialect = dialect_of(picks.dialect)
    dataset, rows = load_dataset(picks.dataset, folder=folder)
    if not picks.path.exists():
        raise InputError(
            picks.path, expected="a file of picks", found="no such file", remedy="check the path"
        )
    chosen, named, unmatched = _tomograms(picks, dialect, rows)
    tables = {}
    for row in chosen:
        table = _read(picks, dialect, dataset, row, named)
        if len(table) or not named:
            tables[row.tomogram] = table
    files = {name: labels_file(picks.dataset, name, folder=folder) for name in tables}
    source, notes, whole = f"{picks.dialect} {picks.path.name}", [], {}
    voxels = {row.tomogram: geometry_of(row, dataset).voxel_size_angstrom for row in chosen}
    for name, table in tables.items():
        within = same_place_vox(voxels[name])
        whole[name], told = _added(files[name], table, source=source, within_vox=within)
        notes += [f"{name}: {words}" for words in told]
    for name, labels in whole.items():
        write_labels(files[name], labels)
    if picks.as_truth and files:
        _name_as_truth(Path(project), folder / dataset.sheet, rows, files)
    return Imported(files=files, tables=tables, unmatched=unmatched, notes=tuple(notes))


def format_imported(done: Imported) -> str:
    """Say for people what was imported, a line a tomogram."""
    lines = []
    for name, table in done.tables.items():
        counts = table["class"].replace("", "without class").value_counts().sort_index()
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"{name}: {len(table)} picks ({kinds or 'none'}) -> {done.files[name]}")
    lines += done.notes
    if done.unmatched:
        lines.append(f"no tomogram of the dataset is called: {', '.join(done.unmatched)}")
    if not done.count:
        lines.append("no picks were found")
    return "\n".join(lines) + "\n"


def geometry_of(row: SheetRow, dataset: DatasetSettings) -> TomogramGeometry:
    """Geometry of a tomogram by its sheet's row: the same as `prepare` finds.

    Raises InputError where the sheet does not know size or voxel size.
    """
    voxel = dataset.voxel_size_angstrom or row.voxel_size_angstrom
    if row.nz is None or row.ny is None or row.nx is None or not voxel:
        raise InputError(
            f"tomogram {row.tomogram}",
            expected="its size and voxel size in the dataset's sheet",
            found=row.reason or "empty cells",
            remedy="mend the file and onboard it again, or set voxel_size_angstrom",
        )
    axes = row.axes if dataset.axes == "auto" else dataset.axes
    shape = (row.nz, row.ny, row.nx) if axes == "xyz" else (row.ny, row.nz, row.nx)
    return TomogramGeometry.of_given(shape, voxel, dataset)


def _read(
    picks: Picks,
    dialect: Dialect,
    dataset: DatasetSettings,
    row: SheetRow,
    named: dict[str, str],
) -> pd.DataFrame:
    geometry = geometry_of(row, dataset)
    is_named: Callable[[str], bool] = lambda name: not named or named.get(name) == row.tomogram  # noqa: E731
    table = dialect.read(
        picks.path,
        Place(
            geometry=geometry,
            is_named=is_named,
            relion_centre=picks.relion_centre,
            class_names=picks.class_names,
        ),
    )
    _check_inside(table, geometry, picks, row)
    if len(picks.class_names) == 1 and (table["class"] == "").all():
        table["class"] = picks.class_names[0]
    check_class_names(filter(None, table["class"].unique()), picks.path)
    if picks.radius_angstrom is not None and RADIUS_COLUMN not in table:
        table[RADIUS_COLUMN] = picks.radius_angstrom / geometry.voxel_size_angstrom
    return table


def _added(
    file: Path, table: pd.DataFrame, *, source: str, within_vox: float
) -> tuple[pd.DataFrame, list[str]]:
    """Put picks beside what is known of the tomogram already; also what became of that, in words.

    A pick at the place of a label that another file or a review brought replaces it, so that no
    particle has two.
    """
    old = labels_of(file)
    before = old[SOURCE_COLUMN] == source
    own, twice = without_repeats(table, source)
    merged, changes = joined(old[~before], label_table(own, source=source), within_vox=within_vox)
    said = []
    gone = int(before.sum()) - _still_there(old[before], own)
    if gone:
        said.append(f"{gone} labels that a file of this name brought before are no longer there")
    if twice:
        said.append(f"{twice} picks lie on others of the file and were left out")
    return merged, [*said, *changes.replaced]


def _still_there(old: pd.DataFrame, new: pd.DataFrame) -> int:
    """How many labels come again, with the same place and class."""
    keys = [
        set(zip(*(t[c].round(3) for c in PLACE_COLUMNS), t["class"], strict=True))
        for t in (old, new)
    ]
    return len(keys[0] & keys[1])


def _tomograms(
    picks: Picks, dialect: Dialect, rows: Sequence[SheetRow]
) -> tuple[list[SheetRow], dict[str, str], tuple[str, ...]]:
    """Return the rows to read for, the file's names with the tomograms they mean, and the rest."""
    if picks.tomogram is not None:
        chosen = [row for row in rows if row.tomogram == picks.tomogram]
        if not chosen:
            raise InputError(
                "--tomogram",
                expected="one of " + ", ".join(row.tomogram for row in rows),
                found=picks.tomogram,
                remedy="correct the name",
            )
    else:
        chosen = [row for row in rows if row.wanted]
    names = dialect.names(picks.path)
    if len(names) == 1 and picks.tomogram is not None:  # the user knows better
        return chosen, {names[0]: picks.tomogram}, ()
    if names:
        means = {name: _meant(name, chosen, picks.path) for name in names}
        named = {name: tomogram for name, tomogram in means.items() if tomogram}
        unmatched = tuple(name for name in names if name not in named)
        if not named:
            raise InputError(
                picks.path,
                expected="picks of " + ", ".join(row.tilt_series for row in chosen),
                found="picks of " + ", ".join(names),
                remedy="correct tilt_series in the dataset's sheet, or name one with --tomogram",
            )
        return [row for row in chosen if row.tomogram in named.values()], named, unmatched
    if len(chosen) != 1:
        raise InputError(
            picks.path,
            expected=f"--tomogram, as files of {picks.dialect} do not say which one they are of",
            found=f"a dataset of {len(chosen)} tomograms: "
            + ", ".join(row.tomogram for row in chosen),
            remedy="add --tomogram NAME",
        )
    return chosen, {}, ()


def _meant(name: str, rows: Sequence[SheetRow], path: Path) -> str | None:
    """Which tomogram a name in the file means: by its own name first, without affixes last."""
    stem = file_stem(Path(name.removesuffix(_TOMOSTAR)))
    for forms in ({name}, {stem}, {tilt_series_name(stem)}):
        found = [row.tomogram for row in rows if forms & _known_as(row)]
        if len(found) > 1:
            raise InputError(
                path,
                expected="names that mean one tomogram each",
                found=f"{name}, which means {', '.join(found)}",
                remedy="name the tomogram with --tomogram",
            )
        if found:
            return found[0]
    return None


def _known_as(row: SheetRow) -> set[str]:
    path = Path(row.path)
    return {row.tomogram, row.tilt_series, row.path, path.name, file_stem(path)}


def _check_inside(
    table: pd.DataFrame, geometry: TomogramGeometry, picks: Picks, row: SheetRow
) -> None:
    """A pick far outside says that voxel size, centre or dialect is not what it was taken for."""
    zyx = table[["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float)
    size = np.array(geometry.shape_zyx)
    outside = ~((zyx >= -1) & (zyx <= size)).all(axis=1)  # so is what is no number
    if outside.any():
        n = int(np.flatnonzero(outside)[0])
        raise InputError(
            picks.path,
            expected=f"places inside {row.tomogram} of {geometry.shape_zyx[::-1]} voxels (x, y, z)",
            found=f"{int(outside.sum())} of {len(table)} outside; number {n + 1} is at "
            f"{tuple(np.round(zyx[n, ::-1], 1).tolist())}",
            remedy="check --dialect, and voxel_size_angstrom, tilt_series_pixel_size_angstrom and "
            "axes in the dataset's file",
        )


def _name_as_truth(
    project: Path, sheet: Path, rows: Sequence[SheetRow], files: dict[str, Path]
) -> None:
    changed = []
    for row in rows:
        file = files.get(row.tomogram)
        truth = row.truth if file is None else file.relative_to(project).as_posix()
        changed.append(row.model_copy(update={"truth": truth}))
    write_sheet(sheet, changed)
