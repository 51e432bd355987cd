"""combine: the particle tables of a dataset's finished tomograms -> one set for one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from tomoline.errors import InputError
from tomoline.export.dialect import selected
from tomoline.export.registry import dialect as dialect_of
from tomoline.log import get_logger
from tomoline.settings import DatasetSettings, ExportSettings, validated
from tomoline.stages.export import load

SETTINGS = ExportSettings


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ExportSettings,
    dialect: str,
    dataset: Mapping[str, Any],
    tilt_series: Sequence[str],
) -> None:
    """Write a dataset's files into the folder of output `combined`.

    Inputs `particles`, `transforms` and `exported` (each tomogram's own file, for the import list;
    optional) are lists in the order of `tilt_series`. RELION knows a tomogram by its tilt series,
    so two of one name are refused.
    """
    entry = dialect_of(dialect)
    names = [tilt_series] if isinstance(tilt_series, str) else list(tilt_series)
    _check_names(names)
    checked = validated(DatasetSettings, dataset, source="dataset")
    tables, transforms = _listed(inputs["particles"]), _listed(inputs["transforms"])
    stars = _listed(inputs["exported"]) if inputs.get("exported") else repeat(None, len(names))
    tomograms = [
        selected(
            load(table, transform, tilt_series=name, dataset=checked, star_path=star), settings
        )
        for name, table, transform, star in zip(names, tables, transforms, stars, strict=True)
    ]
    folder = Path(outputs["combined"]).parent
    written = entry.write_combined(tomograms, folder, settings)
    get_logger(__name__).info(
        "%d particles of %d tomograms as %s: %s",
        sum(len(tomogram.particles) for tomogram in tomograms),
        len(tomograms), dialect, ", ".join(path.name for path in written),
    )  # fmt: skip


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
