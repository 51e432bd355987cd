"""What RELION-4 and RELION-5 files share: optics, names, classes, scores and the order of blocks.

The `particles` block comes first and `optics` second. RELION finds both by name, except
`relion_tomo_import_coordinates`, which reads the first block of each listed file, whatever its
name: with the optics first it would find no coordinates.

Beyond what RELION needs: `rlnClassNumber` (1-based, the model's order; RELION's subset selection
knows it), `rlnAutopickFigureOfMerit` (our score, 0..1), `tomolineClassName` and, where all
tables have it, `tomolineExpectedPrecision`: labels that RELION does not know and therefore keeps
untouched, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from tomoline.contracts import EXPECTED_PRECISION
from tomoline.export.dialect import TomogramParticles, class_order
from tomoline.io.star import write_star
from tomoline.settings import ExportSettings

CLASS_NAME = "tomolineClassName"
PRECISION = "tomolineExpectedPrecision"
UNCLASSIFIED = "unclassified"
Coordinates = Callable[[TomogramParticles, ExportSettings], pd.DataFrame]


def write_relion(
    tomograms: Sequence[TomogramParticles],
    path: Path,
    settings: ExportSettings,
    *,
    coordinates: Coordinates,
    version: int,
    only_class: str | None = None,
) -> None:
    """Write the particles of one or more tomograms as one STAR file.

    `coordinates` gives the dialect's coordinate columns, one row a particle; `version` is RELION's
    table version (30001 or 50001), without which it takes the file for an older one.
    """
    groups = _optics_groups(tomograms)
    classes = class_order(tomograms)
    tables = []
    for tomogram in tomograms:
        group = groups[tomogram.geometry.pixel_size_angstrom]
        table = _particle_table(tomogram, coordinates(tomogram, settings), group, classes)
        if only_class is not None:
            table = table[table[CLASS_NAME] == only_class]
        tables.append(table)
    filled = [table for table in tables if len(table)] or tables[:1]
    if not all(PRECISION in table for table in filled):
        filled = [table.drop(columns=PRECISION, errors="ignore") for table in filled]
    blocks = {"particles": pd.concat(filled, ignore_index=True), "optics": _optics(tomograms)}
    write_star(path, blocks, comment=f"version {version}")


def class_file_name(name: str) -> str:
    """File name for one class's particles; never one of the other files' names."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"class_{safe}.star" if safe in {"particles", "import"} else f"{safe}.star"


def _particle_table(
    tomogram: TomogramParticles, coordinates: pd.DataFrame, group: int, classes: Sequence[str]
) -> pd.DataFrame:
    particles = tomogram.particles
    names = [
        UNCLASSIFIED if pd.isna(name) or name == "" else str(name) for name in particles["class"]
    ]
    number = {name: n for n, name in enumerate(classes, 1)}
    table = pd.DataFrame({"rlnTomoName": [tomogram.tilt_series] * len(particles)})
    table = pd.concat([table, coordinates.reset_index(drop=True)], axis=1)
    ids = particles["particle_id"].astype(int)
    table["rlnTomoParticleName"] = [f"{tomogram.tilt_series}/{n}" for n in ids]
    table["rlnOpticsGroup"] = group
    table["rlnClassNumber"] = [number.get(name, 0) for name in names]
    table["rlnAutopickFigureOfMerit"] = particles["score"].astype(float).to_numpy()
    table[CLASS_NAME] = names
    if EXPECTED_PRECISION in particles:
        table[PRECISION] = particles[EXPECTED_PRECISION].astype(float).to_numpy()
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
