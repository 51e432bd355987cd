"""What the STAR dialects share: optics, names, classes, scores, the order of blocks, and reading.

RELION-4 and -5: the `particles` block comes first and `optics` second. RELION finds both by name,
except `relion_tomo_import_coordinates`, which reads the first block of each listed file, whatever
its name: with the optics first it would find no coordinates. RELION-3 and Warp get one block
without a name.

Beyond what the programs need: `rlnClassNumber` (1-based, the model's order; RELION's subset
selection knows it), `rlnAutopickFigureOfMerit` (our score, 0..1) and labels of our own, which
RELION and Warp do not know and therefore keep untouched, RELION with a warning:
`tomolineClassName`, `tomolineVoteShare`, `tomolineMargin`, `tomolineProbability_<class>` and, where
all tables have it, `tomolineExpectedPrecision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.errors import InputError
from tomoline.export.dialect import (
    PROBABILITY_PREFIX,
    Place,
    TomogramParticles,
    class_files,
    class_order,
    distinct,
    safe_file_name,
)
from tomoline.io.annotations import annotation_table
from tomoline.io.star import read_star, write_star
from tomoline.log import get_logger
from tomoline.settings import ExportSettings

CLASS_NAME = "tomolineClassName"
PRECISION = "tomolineExpectedPrecision"
SCORE = "rlnAutopickFigureOfMerit"
NAME_COLUMNS = ("rlnTomoName", "rlnMicrographName")
Coordinates = Callable[[TomogramParticles, ExportSettings], pd.DataFrame]
WriteClass = Callable[[Path, str], None]

# What names the tomogram, and holds the places, in a STAR file of any of the programs.
_TEXT_COLUMNS = (*NAME_COLUMNS, CLASS_NAME)
CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "ZYX")
ORIGIN_ANGSTROM = tuple(f"rlnOrigin{axis}Angst" for axis in "ZYX")
_FRAME = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
_log = get_logger(__name__)
CORNER = tuple(f"rlnCoordinate{axis}" for axis in "ZYX")


def write_relion(
    tomograms: Sequence[TomogramParticles],
    path: Path,
    settings: ExportSettings,
    *,
    coordinates: Coordinates,
    version: int,
    only_class: str | None = None,
) -> None:
    """Write the particles of one or more tomograms as one STAR file of RELION-4 or -5.

    `coordinates` gives the dialect's coordinate columns, one row a particle; `version` is RELION's
    table version (30001 or 50001), without which it takes the file for an older one.
    """
    groups = _optics_groups(tomograms)

    def columns(tomogram: TomogramParticles) -> pd.DataFrame:
        series, ids = tomogram.tilt_series, tomogram.particles["particle_id"].astype(int)
        table = pd.DataFrame({"rlnTomoName": [series] * len(ids)})
        places = coordinates(tomogram, settings).reset_index(drop=True)
        table = pd.concat([table, places], axis=1)
        table["rlnTomoParticleName"] = [f"{series}/{n}" for n in ids]
        table["rlnOpticsGroup"] = groups[tomogram.geometry.pixel_size_angstrom]
        return table

    particles = particle_table(tomograms, columns, only_class=only_class)
    blocks = {"particles": particles, "optics": _optics(tomograms)}
    write_star(path, blocks, comment=f"version {version}")


def write_plain(
    tomograms: Sequence[TomogramParticles],
    path: Path,
    columns: Callable[[TomogramParticles], pd.DataFrame],
    *,
    only_class: str | None = None,
    comment: str = "",
) -> None:
    """Write one block without a name, as RELION-3 and Warp read it."""
    table = particle_table(tomograms, columns, only_class=only_class)
    write_star(path, {"": table}, comment=comment)


def particle_table(
    tomograms: Sequence[TomogramParticles],
    columns: Callable[[TomogramParticles], pd.DataFrame],
    *,
    only_class: str | None = None,
) -> pd.DataFrame:
    """Join a dialect's own columns with the class and the scores, one row a particle."""
    classes = class_order(tomograms)
    tables = []
    for tomogram in tomograms:
        table = pd.concat([columns(tomogram), _judgement(tomogram, classes)], axis=1)
        tables.append(table if only_class is None else table[table[CLASS_NAME] == only_class])
    filled = [table for table in tables if len(table)] or tables[:1]
    if not all(PRECISION in table for table in filled):  # of runs with different cards
        filled = [table.drop(columns=PRECISION, errors="ignore") for table in filled]
    return pd.concat(filled, ignore_index=True)


def write_class_files(
    tomograms: Sequence[TomogramParticles],
    folder: Path,
    settings: ExportSettings,
    write: WriteClass,
    *,
    suffix: str = ".star",
) -> list[Path]:
    """Call `write(path, class)` for each wanted class; return the paths."""
    written = []
    for name, file in class_files(tomograms, settings).items():
        path = folder / f"{file}{suffix}"
        write(path, name)
        written.append(path)
    return written


def read_names(path: Path) -> list[str]:
    """Return the tomograms that a STAR file of particles names, first come first."""
    raw = _particles(path)
    column = next((name for name in NAME_COLUMNS if name in raw), None)
    return [] if column is None else list(dict.fromkeys(raw[column].astype(str)))


def read_rows(
    path: Path, place: Place, columns: Sequence[str]
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return a tomogram's rows and their coordinates (n, 3), zyx, of the named columns (z, y, x).

    Raises InputError for a missing column or a coordinate that is not a number.
    """
    raw = _particles(path)
    name = next((column for column in NAME_COLUMNS if column in raw), None)
    if name is not None:
        keep = np.array([place.is_named(str(own)) for own in raw[name]], dtype=bool)
        raw = raw[keep].reset_index(drop=True)
    missing = [column for column in columns if column not in raw]
    if missing:
        raise InputError(
            path,
            expected=f"columns {', '.join(reversed(columns))}",
            found=f"columns {', '.join(map(str, raw.columns))}",
            remedy="give the file of particles itself, or name its dialect with --dialect",
        )
    values = raw[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InputError(
            path,
            expected=f"numbers in {', '.join(reversed(columns))}",
            found=f"{list(raw[list(columns)].iloc[row])[::-1]} in row {row + 1}",
            remedy="correct the row",
        )
    return raw, values


def read_origins(raw: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    """Return what RELION-4 and -5 take off a particle's place, (n, 3) zyx in angstrom.

    Their C++ (ParticleSet::getPosition) turns rlnOrigin*Angst by rlnTomoSubtomogram*'s angles and
    subtracts it. Without those angles, as refinements leave it, nothing is turned. Origins of
    turned particles are not applied, and the log says so.
    """
    if not set(ORIGIN_ANGSTROM) <= set(raw.columns):
        return np.zeros((len(raw), 3))
    origins = raw[list(ORIGIN_ANGSTROM)].to_numpy(dtype=float)
    angles = [name for name in _FRAME if name in raw]
    turned = (raw[angles].to_numpy(dtype=float) != 0).any(axis=1)
    left = turned & (origins != 0).any(axis=1)
    if left.any():
        _log.warning(
            "%s: rlnOrigin*Angst of %d particles are not applied, as rlnTomoSubtomogram* turn them",
            path, int(left.sum()),
        )  # fmt: skip
    return np.where(turned[:, None], 0.0, origins)


def read_judged(raw: pd.DataFrame, zyx_vox: NDArray[np.float64], place: Place) -> pd.DataFrame:
    """Return annotations of STAR rows: our class name, else the class number, and the score."""
    if CLASS_NAME in raw:
        classes = [str(name) for name in raw[CLASS_NAME]]
    elif "rlnClassNumber" in raw:
        known = dict(enumerate(place.class_names, 1))
        numbers = raw["rlnClassNumber"].astype(int)
        classes = [known.get(number, str(number) if number else "") for number in numbers]
    else:
        classes = [""] * len(raw)
    scores = raw[SCORE].to_numpy(dtype=float) if SCORE in raw else None
    return annotation_table(zyx_vox, classes, scores=scores)


def _particles(path: Path) -> pd.DataFrame:
    blocks = read_star(path, text_columns=_TEXT_COLUMNS)
    return blocks.get("particles", next(iter(blocks.values())))


def _judgement(tomogram: TomogramParticles, classes: Sequence[str]) -> pd.DataFrame:
    """Columns of class and scores; 0 for a probability that the table does not have."""
    particles, names = tomogram.particles, tomogram.class_names()
    number = {name: n for n, name in enumerate(classes, 1)}
    table = pd.DataFrame({"rlnClassNumber": [number.get(name, 0) for name in names]})
    table[SCORE] = tomogram.scores()
    table[CLASS_NAME] = names
    table["tomolineVoteShare"] = particles["vote_share"].to_numpy(dtype=float)
    table["tomolineMargin"] = particles["margin"].to_numpy(dtype=float)
    if EXPECTED_PRECISION in particles:
        table[PRECISION] = particles[EXPECTED_PRECISION].to_numpy(dtype=float)
    labels = distinct(f"tomolineProbability_{safe_file_name(name)}" for name in classes)
    for name, label in zip(classes, labels, strict=True):
        column = PROBABILITY_PREFIX + name
        table[label] = particles[column].to_numpy(dtype=float) if column in particles else 0.0
    return table


def _optics_groups(tomograms: Sequence[TomogramParticles]) -> dict[float, int]:
    """Number an optics group for each pixel size, in order of first appearance."""
    sizes = dict.fromkeys(tomogram.geometry.pixel_size_angstrom for tomogram in tomograms)
    return {size: n for n, size in enumerate(sizes, 1)}


def _optics(tomograms: Sequence[TomogramParticles]) -> pd.DataFrame:
    groups = _optics_groups(tomograms)
    dataset = tomograms[0].dataset
    return pd.DataFrame(
        [
            {
                "rlnOpticsGroup": number,
                "rlnOpticsGroupName": f"opticsGroup{number}",
                "rlnVoltage": float(dataset.voltage_kv),
                "rlnSphericalAberration": float(dataset.spherical_aberration_mm),
                "rlnAmplitudeContrast": float(dataset.amplitude_contrast),
                "rlnTomoTiltSeriesPixelSize": float(size),
            }
            for size, number in groups.items()
        ]
    )
