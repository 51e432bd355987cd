"""export: one tomogram's particle table -> a file for each other program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoline.contracts import VolumeTransform
from tomoline.export.dialect import TomogramParticles, selected
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import dialect as dialect_of
from tomoline.io.tables import read_particles
from tomoline.log import get_logger
from tomoline.settings import DatasetSettings, ExportSettings, validated

SETTINGS = ExportSettings


def load(
    particles: str | Path,
    transform: str | Path,
    *,
    tilt_series: str,
    dataset: DatasetSettings,
    star_path: str | Path | None = None,
) -> TomogramParticles:
    """Join a tomogram's particle table with its geometry."""
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
