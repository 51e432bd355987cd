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
    return TomogramParticles(
        tilt_series=tilt_series,
        particles=read_particles(particles),
        geometry=TomogramGeometry.of(VolumeTransform.load(transform), dataset),
        dataset=dataset,
        star_path=None if star_path is None else Path(star_path),
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
    for name, path in outputs.items():
        dialect_of(name).write(chosen, Path(path), settings)
    get_logger(__name__).info(
        "%s: wrote %d of %d rows as %s",
        tilt_series, len(chosen.particles), len(tomogram.particles), ", ".join(outputs),
    )  # fmt: skip
