"""Stage report_tomogram: one page and one picture that show what was found in a tomogram."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tomoline.contracts import VolumeTransform
from tomoline.io.atomic import atomic_path, write_text
from tomoline.io.mrc import open_volume
from tomoline.io.tables import read_particles
from tomoline.log import get_logger
from tomoline.report import densities, slices
from tomoline.report.sources import read_json, read_table, read_timings
from tomoline.report.tomogram import TomogramResult, picks_of, tomogram_page
from tomoline.settings import ReportSettings

SETTINGS = ReportSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ReportSettings,
    tomogram: str,
    dataset: Mapping[str, Any] | str,
    benchmarks: str | Path | None = None,
    min_score: float = 0.0,
) -> None:
    """Write the page of one tomogram.

    Parameters
    ----------
    inputs:
        `particles` (particles.csv), `transform` (prepared.json), `volume` (prepared.mrc); where
        there is a truth `evaluation` (JSON), `evaluation_classes` and `confusion` (CSV);
        optionally `domain` (domain.json of the cluster stage) and `benchmarks`, as below.
    outputs:
        `page` (one HTML file that needs nothing else) and `slices` (PNG).
    dataset:
        Its name, or its settings as a mapping.
    benchmarks:
        The folder with the benchmark files of this tomogram's stages, or nothing.
    min_score:
        Particles below it are not exported.

    Raises
    ------
    InputError
        A file is there but cannot be read.
    """
    transform = VolumeTransform.load(inputs["transform"])
    result = TomogramResult(
        tomogram=tomogram,
        dataset=dataset if isinstance(dataset, str) else str(dataset.get("name", "")),
        particles=read_particles(Path(inputs["particles"])),
        transform=transform,
        evaluation=read_json(_optional(inputs, "evaluation")),
        evaluation_classes=read_table(_optional(inputs, "evaluation_classes")),
        confusion=read_table(_optional(inputs, "confusion")),
        timings=read_timings(benchmark_files(benchmarks or inputs.get("benchmarks"))),
        domain=read_json(_optional(inputs, "domain")),
        min_score=min_score,
    )
    picks = picks_of(result)
    volume, voxel = open_volume(inputs["volume"]), transform.prepared_voxel_size_angstrom
    shown = slices.planes(volume, picks, n_slices=settings.slices, voxel_size_angstrom=voxel)
    whole = slices.projections(volume, picks)
    looks = densities.densities(volume, picks, voxel_size_angstrom=voxel)
    with atomic_path(outputs["slices"]) as path:
        slices.write_png(path, shown, picks, result.class_styles, title=tomogram)
    write_text(outputs["page"], tomogram_page(result, [*shown, *whole], picks, looks))
    log.info("%s: %d particles on the page", tomogram, len(result.accepted))


def benchmark_files(place: Any) -> list[Path]:
    """Return the benchmark files of a folder, a file or a list of files; reports' own excepted."""
    if place is None:
        return []
    given = [place] if isinstance(place, str | Path) else list(place)
    return [path for path in _expand(map(Path, given)) if not path.stem.startswith("report")]


def _expand(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [*path.glob("*.jsonl"), *path.glob("*.tsv")]
        elif path.is_file():
            files.append(path)
    return sorted(files)


def _optional(inputs: Mapping[str, Any], key: str) -> Path | None:
    """Return the path of an input that may be absent, or given as an empty list by Snakemake."""
    value = inputs.get(key)
    if not value:
        return None
    return Path(value if isinstance(value, str | Path) else value[0])
