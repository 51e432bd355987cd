"""What exporters and importers are given, what they promise, and which particles are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    `opens_tomogram`: the program reads the tomogram's own file, so it has to be turned first.
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


def selected(tomogram: TomogramParticles, settings: ExportSettings) -> TomogramParticles:
    """Keep accepted particles of the wanted classes and scores, ordered by `particle_id`.

    Raises InputError for a wanted class that the table's model does not know.
    """
    table = tomogram.particles
    if any(str(column).startswith(PROBABILITY_PREFIX) for column in table.columns):
        check_classes(settings.classes, tomogram.classes)
    keep = (table["status"] == "accepted") & (table["score"].astype(float) >= settings.min_score)
    if settings.min_expected_precision > 0:
        keep &= _expected_precision(table) >= settings.min_expected_precision
    if settings.classes:
        keep &= table["class"].isin(settings.classes)
    table = table[keep].sort_values("particle_id", kind="stable").reset_index(drop=True)
    return replace(tomogram, particles=table)


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


def wanted_classes(
    tomograms: Sequence[TomogramParticles], settings: ExportSettings
) -> tuple[list[str], list[str]]:
    """Classes that get a file of their own, and those that must not have one left over."""
    classes = listed_classes(tomograms)
    wanted = [name for name in classes if not settings.classes or name in settings.classes]
    return wanted, [name for name in classes if name not in wanted]


def class_file_name(name: str, suffix: str = ".star") -> str:
    """File name for one class's particles; never one of the other files' names."""
    safe = safe_file_name(name)
    reserved = {"particles", "import", "micrographs", "classes", "index"}
    return f"class_{safe}{suffix}" if safe in reserved else f"{safe}{suffix}"


def safe_file_name(name: str) -> str:
    """A name as it can be a file's."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def write_class_list(path: Path, classes: Sequence[str]) -> None:
    """Write which class the numbers 1, 2, ... of a file beside it mean."""
    rows = [f"{number},{name}" for number, name in enumerate(classes, 1)]
    write_text(path, "\n".join(["number,class", *rows]) + "\n")


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
