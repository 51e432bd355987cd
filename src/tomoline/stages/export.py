"""export: one tomogram's particle table -> a file for each other program."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.contracts import VolumeTransform
from tomoline.export.dialect import (
    Dialect,
    TomogramParticles,
    check_tilt_series,
    selected,
    what_was_asked,
)
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import dialect as dialect_of
from tomoline.io.tables import ACCEPTED, read_particles
from tomoline.log import get_logger
from tomoline.settings import DatasetSettings, ExportSettings, validated

SETTINGS = ExportSettings
_NOT_BARE = re.compile(r"""[\s"'#$&;()\\`*?]""")


def load(
    particles: str | Path,
    transform: str | Path,
    *,
    tilt_series: str,
    dataset: DatasetSettings,
    star_path: str | Path | None = None,
) -> TomogramParticles:
    """Join a tomogram's particle table with its geometry.

    Raises InputError where no file can have the tilt series' name.
    """
    check_tilt_series([tilt_series])
    given = VolumeTransform.load(transform)
    return TomogramParticles(
        tilt_series=tilt_series,
        particles=read_particles(particles),
        geometry=TomogramGeometry.of(given, dataset),
        dataset=dataset,
        star_path=None if star_path is None else Path(star_path),
        source=Path(given.source),
        is_turned=given.axes == "xzy",
    )


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ExportSettings,
    dataset: Mapping[str, Any],
    tilt_series: str,
) -> None:
    """Write the accepted particles of inputs `particles` and `transform`.

    Each output is named by its dialect.
    """
    tomogram = load(
        inputs["particles"],
        inputs["transform"],
        tilt_series=tilt_series,
        dataset=validated(DatasetSettings, dataset, source="dataset"),
    )
    chosen = selected(tomogram, settings)
    log = get_logger(__name__)
    for name, path in outputs.items():
        dialect = dialect_of(name)
        dialect.write(chosen, Path(path), settings)
        warn_of_paths(dialect, [chosen])
        if dialect.opens_tomogram and chosen.is_turned:
            log.warning(
                "%s: particles are in the axes of the tomogram turned by `trimvol -rx`; %s is not "
                "turned, so give the other program a turned copy",
                name, chosen.source,
            )  # fmt: skip
    log.info(
        "%s: wrote %d of %d rows as %s",
        tilt_series, len(chosen.particles), len(tomogram.particles), ", ".join(outputs),
    )  # fmt: skip
    if chosen.particles.empty:
        log.warning(nothing_left(tomogram.particles, settings))


def nothing_left(particles: pd.DataFrame, settings: ExportSettings) -> str:
    """Say why there is nothing to export: nothing was found, or the settings leave all out."""
    kept = int((particles["status"] == ACCEPTED).sum())
    if not kept:
        return "no particles were found: the files are valid and hold none"
    return (
        f"none of the {kept} accepted particles meets {what_was_asked(settings)}: the files are "
        "valid and hold none"
    )


def warn_of_paths(dialect: Dialect, tomograms: Iterable[TomogramParticles]) -> None:
    """Warn where a program would stumble over the tomogram's path: it reads or hands it on bare."""
    for tomogram in tomograms:
        if dialect.names_path and _NOT_BARE.search(tomogram.file_path):
            get_logger(__name__).warning(
                "%s: the path %r has blanks, quotes or other signs that the program cannot take; "
                "give it a link without them",
                dialect.name, tomogram.file_path,
            )  # fmt: skip
