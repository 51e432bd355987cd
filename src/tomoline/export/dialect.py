"""What exporters and importers are given, what they promise, and which particles are written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.errors import InputError
from tomoline.export.geometry import RelionCentre, TomogramGeometry
from tomoline.io.atomic import write_text
from tomoline.settings import DatasetSettings, ExportSettings

PROBABILITY_PREFIX = "p_"
UNCLASSIFIED = "unclassified"
LISTING = "written.list"  # in a data set's folder: what the last set consisted of
_TAKEN = {"particles", "import", "micrographs", "classes", "index"}
_TILT_SERIES = re.compile(r"""[^\x00-\x1f\x7f/\\"']+""")


@dataclass(frozen=True, kw_only=True)
class TomogramParticles:
    """One tomogram's particle table with what is needed to place it.

    `particles` has PARTICLE_COLUMNS and one `p_<class>` column a class; `tilt_series` is the name
    that RELION and Warp know; `star_path` is where this tomogram's own RELION-5 file lies, for the
    import list. `source` is the tomogram's file, for programs that open it themselves; with
    `is_turned` it is still in `tilt`'s axis order, while the particles are in the turned one.
    """

    tilt_series: str
    particles: pd.DataFrame
    geometry: TomogramGeometry
    dataset: DatasetSettings
    star_path: Path | None = None
    source: Path | None = None
    is_turned: bool = False

    @property
    def classes(self) -> list[str]:
        """Class names in the model's order; what the table holds where it has no p_ columns."""
        named = [
            str(column).removeprefix(PROBABILITY_PREFIX)
            for column in self.particles.columns
            if str(column).startswith(PROBABILITY_PREFIX)
        ]
        if named:
            return named
        return sorted({str(name) for name in self.particles["class"].dropna()} - {""})

    def zyx_vox(self) -> NDArray[np.float64]:
        """Coordinates (n, 3) in voxels of the given tomogram."""
        return self.particles[["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float)

    def class_names(self) -> list[str]:
        """The class of each particle; UNCLASSIFIED where it has none."""
        names = self.particles["class"]
        return [UNCLASSIFIED if pd.isna(name) or name == "" else str(name) for name in names]

    def scores(self) -> NDArray[np.float64]:
        """Scores (n,), 0 to 1."""
        return self.particles["score"].to_numpy(dtype=float)

    def of_class(self, name: str) -> TomogramParticles:
        """The particles of one class only."""
        keep = np.array([own == name for own in self.class_names()], dtype=bool)
        return replace(self, particles=self.particles[keep].reset_index(drop=True))

    @property
    def file_path(self) -> str:
        """The tomogram's file as an absolute path; the tilt series' name where it is not known."""
        return str(self.source.resolve()) if self.source is not None else self.tilt_series


@dataclass(frozen=True, kw_only=True)
class Place:
    """The tomogram that picks are read for.

    `is_named` says whether a name in the file means this tomogram; it is asked only where the file
    has names. `class_names` are the classes of the numbers 1, 2, ... in a file that holds only
    numbers and has no list of classes beside it.
    """

    geometry: TomogramGeometry
    is_named: Callable[[str], bool] = lambda name: True
    relion_centre: RelionCentre = "picker"
    class_names: tuple[str, ...] = ()


WriteOne = Callable[[TomogramParticles, Path, ExportSettings], None]
WriteAll = Callable[[Sequence[TomogramParticles], Path, ExportSettings], list[Path]]
Read = Callable[[Path, Place], pd.DataFrame]
Names = Callable[[Path], list[str]]


def no_names(path: Path) -> list[str]:
    """For dialects whose files do not say which tomogram they are of."""
    return []


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One file format for one other program.

    `write` writes one tomogram's file (and what belongs beside it); `write_combined` writes a
    dataset's files into a folder and returns them. Both are given tables that `selected` has been
    through. `read` gives what a file, ours or the other program's, holds for one tomogram as a
    table of `io.annotations` in voxels of the given tomogram; `names` lists the tomograms that a
    file names. `keeps` says what of a particle beside its place comes back from a file.
    `opens_tomogram`: the program reads the tomogram's own file, so it has to be turned first;
    `names_path`: the file has that one's path in it.
    """

    name: str
    file_name: str
    combined_name: str
    description: str
    write: WriteOne
    write_combined: WriteAll
    read: Read
    names: Names = no_names
    keeps: frozenset[str] = frozenset({"class", "score"})
    opens_tomogram: bool = False
    names_path: bool = False


def write_set(
    dialect: Dialect, tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write a dataset's files into `folder` and return them; those of an earlier set that are not
    among them go, so that no class or tomogram that was left out, or that another model knew, is
    taken for a result of this run. What others put into the folder stays.
    """
    listing = folder / LISTING
    before = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    written = dialect.write_combined(tomograms, folder, settings)
    now = [path.relative_to(folder).as_posix() for path in written]
    for name in set(before) - set(now):
        old = folder / name
        if old.resolve().is_relative_to(folder.resolve()):
            old.unlink(missing_ok=True)
    write_text(listing, "".join(f"{name}\n" for name in sorted(now)))
    return written


def selected(tomogram: TomogramParticles, settings: ExportSettings) -> TomogramParticles:
    """Keep accepted particles of the wanted classes and scores, ordered by `particle_id`.

    Raises InputError for a wanted class that the table's model does not know.
    """
    table = tomogram.particles
    if any(str(column).startswith(PROBABILITY_PREFIX) for column in table.columns):
        check_classes(settings.classes, tomogram.classes)
    keep = is_selected(table, settings)
    table = table[keep].sort_values("particle_id", kind="stable").reset_index(drop=True)
    return replace(tomogram, particles=table)


def is_selected(table: pd.DataFrame, settings: ExportSettings) -> pd.Series[bool]:
    """Say of each row of a particle table whether it is exported."""
    keep = (table["status"] == "accepted") & (table["score"].astype(float) >= settings.min_score)
    if settings.min_expected_precision > 0:
        keep &= _expected_precision(table) >= settings.min_expected_precision
    if settings.classes:
        keep &= table["class"].isin(settings.classes)
    return keep


def what_was_asked(settings: ExportSettings) -> str:
    """Name the settings that leave particles out; empty where none does."""
    asked = {
        "min_score": settings.min_score,
        "min_expected_precision": settings.min_expected_precision,
        "classes": ", ".join(settings.classes),
    }
    return ", ".join(f"export.{key} = {value}" for key, value in asked.items() if value)


def _expected_precision(table: pd.DataFrame) -> pd.Series[float]:
    if EXPECTED_PRECISION not in table.columns:
        raise InputError(
            "export.min_expected_precision",
            expected=f"particles with the column {EXPECTED_PRECISION}",
            found="none: the models' cards have no precision curve",
            remedy="run `tomoline calibrate` on the models, or set export.min_score instead",
        )
    return table[EXPECTED_PRECISION].astype(float)


def check_classes(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError for a class that is not known, listing those that are."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            "export.classes",
            expected=f"names among {', '.join(known)}",
            found=", ".join(unknown),
            remedy="correct the names in config.yaml, or leave `classes` empty for all",
        )


def class_order(tomograms: Sequence[TomogramParticles]) -> list[str]:
    """Every class of every table, first come first, so that numbers agree between tables."""
    return list(dict.fromkeys(name for tomogram in tomograms for name in tomogram.classes))


def listed_classes(tomograms: Sequence[TomogramParticles]) -> list[str]:
    """`class_order`, with UNCLASSIFIED behind it where a particle has no class."""
    classes = class_order(tomograms)
    bare = any(UNCLASSIFIED in tomogram.class_names() for tomogram in tomograms)
    return [*classes, UNCLASSIFIED] if bare and UNCLASSIFIED not in classes else classes


def class_files(tomograms: Sequence[TomogramParticles], settings: ExportSettings) -> dict[str, str]:
    """Return the classes that get a file of their own, each with that file's name, no suffix."""
    files = file_names(listed_classes(tomograms))
    return {n: file for n, file in files.items() if not settings.classes or n in settings.classes}


def file_names(classes: Sequence[str]) -> dict[str, str]:
    """Return a file's name, without suffix, for each class: safe on every disk, no two the same,
    never one of the other files' names."""
    names = (safe_file_name(name) for name in classes)
    safe = [
        name if re.match("[A-Za-z0-9]", name) and name.lower() not in _TAKEN else f"class_{name}"
        for name in names
    ]
    return dict(zip(classes, distinct(safe), strict=True))


def distinct(names: Iterable[str], *, mark: str = "_") -> list[str]:
    """Return the names with _2, _3, ... behind those that stood before, capitals or not."""
    found: dict[str, str] = {}
    for name in names:
        own, number = name, 1
        while own.casefold() in found:
            number += 1
            own = f"{name}{mark}{number}"
        found[own.casefold()] = own
    return list(found.values())


def safe_file_name(name: str) -> str:
    """A name as it can be part of a file's or a column's: other characters become `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def check_tilt_series(names: Sequence[str], *, source: str = "tilt_series") -> None:
    """Raise InputError where tilt series cannot be told apart, or be named, in a dialect's files.

    Their names are folders and files there, and the names by which other programs know them.
    """
    seen: dict[str, str] = {}
    for name in names:
        fault = f"{name!r}" if not _TILT_SERIES.fullmatch(name) or set(name) <= {"."} else ""
        other = seen.setdefault(safe_file_name(name).casefold(), name)
        if not fault and other != name:
            fault = f"{other!r} and {name!r}, whose files would have one name"
        if fault:
            raise InputError(
                source,
                expected="names of tilt series without quotes, slashes and control characters, "
                "that differ in more than capitals and signs",
                found=fault,
                remedy="correct the column tilt_series of the dataset's sheet",
            )


def write_list(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table of names as CSV, quoted where a name needs it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_class_list(path: Path, classes: Sequence[str]) -> None:
    """Write which class the numbers 1, 2, ... of a file beside it mean."""
    write_list(path, ("number", "class"), enumerate(classes, 1))


def class_of_number(path: Path, place: Place) -> Callable[[int], str]:
    """How a file's class numbers are to be understood.

    By the list that an exporter wrote to `path`, else by `place.class_names`, else as they are
    (0: no class).
    """
    if place.class_names:
        known = dict(enumerate(place.class_names, 1))
    elif path.is_file():
        table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False)
        known = dict(zip(table["number"].astype(int), table["class"], strict=True))
    else:
        known = {}
    return lambda number: known.get(number, str(number) if number else "")
