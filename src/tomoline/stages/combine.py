"""combine: the particle tables of a dataset's finished tomograms -> one set a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd

from tomoline.errors import InputError
from tomoline.export.dialect import check_tilt_series, selected, write_set
from tomoline.export.registry import DIALECTS
from tomoline.log import get_logger
from tomoline.settings import DatasetSettings, ExportSettings, validated
from tomoline.stages.export import load, nothing_left, warn_of_paths

SETTINGS = ExportSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ExportSettings,
    dataset: Mapping[str, Any],
    tilt_series: Sequence[str],
) -> None:
    """Write a dataset's files into the folder of each output that is named by a dialect.

    Inputs `particles` and `transforms`, and for each dialect the tomograms' own files (for the
    import list; optional), are lists in the order of `tilt_series`. RELION knows a tomogram by its
    tilt series, so two of one name are refused.
    """
    names = [tilt_series] if isinstance(tilt_series, str) else list(tilt_series)
    _check_names(names)
    checked = validated(DatasetSettings, dataset, source="dataset")
    tables, transforms = _listed(inputs["particles"]), _listed(inputs["transforms"])
    loaded = [
        load(table, transform, tilt_series=name, dataset=checked)
        for name, table, transform in zip(names, tables, transforms, strict=True)
    ]
    tomograms = [selected(tomogram, settings) for tomogram in loaded]
    count = sum(len(tomogram.particles) for tomogram in tomograms)
    log.info("%d particles of %d tomograms", count, len(names))
    if not count:
        log.warning(nothing_left(pd.concat([one.particles for one in loaded]), settings))
    for dialect in DIALECTS.keys() & outputs.keys():
        stars = _listed(inputs[dialect]) if inputs.get(dialect) else repeat(None, len(names))
        own = [
            replace(tomogram, star_path=Path(star) if star else None)
            for tomogram, star in zip(tomograms, stars, strict=True)
        ]
        folder = Path(outputs[dialect]).parent
        written = write_set(DIALECTS[dialect], own, folder, settings)
        warn_of_paths(DIALECTS[dialect], own)
        log.info("%s: %d files in %s", dialect, len(written), folder)


def _listed(value: Any) -> list[str]:
    """Snakemake gives one file as a string and several as a list."""
    return [str(value)] if isinstance(value, str | Path) else [str(path) for path in value]


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise InputError(
            "tilt_series",
            expected="a tilt series of its own for each tomogram of the dataset",
            found=f"{', '.join(twice)} more than once" if twice else "no tomograms",
            remedy="correct the column tilt_series of the dataset's sheet",
        )
    check_tilt_series(names)
