"""Reads what a run has left behind into plain values, tolerant of what is not there.

The report must be made of a failed run too, so a missing file is an empty value here, never an
error; a file that is there but broken is an `InputError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tomoline.contracts import EXPECTED_PRECISION, STAGES
from tomoline.errors import InputError

PROGRAMS = (
    "tomoline", "snakemake", "torch", "numpy", "scipy", "pandas", "scikit-learn", "mrcfile",
    "connected-components-3d", "h5py", "safetensors", "starfile", "altair",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one stage of one tomogram cost, its shards together.

    `seconds` and `cpu_seconds` add up over the shards, `memory_mb` is the largest; NaN where
    Snakemake could not measure (a job shorter than its first look).
    """

    stage: str
    jobs: int
    seconds: float
    cpu_seconds: float
    memory_mb: float
    threads: int


def read_timings(files: Iterable[Path]) -> list[Timing]:
    """Return the cost of each stage from Snakemake's benchmark files (JSON lines or tables).

    A file `segment_1-of-2.jsonl` is a shard of `segment`. A repeated job leaves several lines:
    the last one counts.
    """
    shards: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(files):
        record = _last_record(path)
        if record is not None:
            shards.setdefault(_stage_of(path.stem), []).append(record)
    return [_timing(stage, shards[stage]) for stage in sorted(shards, key=stage_order)]


def stage_order(stage: str) -> tuple[int, str]:
    """Sort key: the stages in the order they run, then the others by name."""
    place = STAGES.index(stage) if stage in STAGES else len(STAGES)
    return place, stage


def _stage_of(stem: str) -> str:
    stem = re.sub(r"[._-]\d+-of-\d+$", "", stem)
    known = sorted((s for s in STAGES if stem == s or stem.startswith(f"{s}_")), key=len)
    return known[-1] if known else stem


def _last_record(path: Path) -> Mapping[str, Any] | None:
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        return None
    lines = text.splitlines()
    if text.startswith("{"):
        try:
            record = json.loads(lines[-1])
        except json.JSONDecodeError as error:
            raise _broken(path, "one JSON object a line", error) from error
        return record if isinstance(record, dict) else None
    if len(lines) < 2:
        return None
    return dict(zip(lines[0].split("\t"), lines[-1].split("\t"), strict=False))


def _timing(stage: str, records: Sequence[Mapping[str, Any]]) -> Timing:
    def values(key: str) -> list[float]:
        found = [as_float(record.get(key)) for record in records]
        return [value for value in found if math.isfinite(value)]

    cpu, memory, threads = values("cpu_time"), values("max_rss"), values("threads")
    return Timing(
        stage=stage,
        jobs=len(records),
        seconds=sum(values("s")),
        cpu_seconds=sum(cpu) if cpu else math.nan,
        memory_mb=max(memory) if memory else math.nan,
        threads=int(max(threads)) if threads else 0,
    )


def as_float(value: Any) -> float:
    """Return a number, or NaN for anything that is none ("NA", None, text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def read_json(path: Path | None) -> dict[str, Any]:
    """Return a JSON object; empty when there is no such file."""
    if path is None or not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise _broken(path, "a JSON object", error) from error
    return value if isinstance(value, dict) else {}


def read_table(path: Path | None) -> pd.DataFrame:
    """Return a CSV table with empty texts kept as such; no rows when there is no such file."""
    if path is None or not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame()
    return pd.read_csv(path, keep_default_na=False, na_values=["NA", "nan", "NaN"])


def read_outcome(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return status, class and score of every row of particles.csv, and the table's class names.

    So too the expected precision, where the table has it.

    The strict reader (`tomoline.io.tables`) has passed the table when its own page was made; a
    data set of hundreds needs these columns only, which is much faster.
    """
    wanted: dict[str, type] = {"status": str, "class": str, "score": float}
    try:
        header = pd.read_csv(path, nrows=0)
        if EXPECTED_PRECISION in header:
            wanted[EXPECTED_PRECISION] = float
        table = pd.read_csv(path, usecols=list(wanted), dtype=wanted, keep_default_na=False)
    except ValueError as error:
        raise _broken(path, "the particle table, with status, class and score", error) from error
    names = (str(column) for column in header.columns)
    return table, tuple(name[2:] for name in names if name.startswith("p_") and len(name) > 2)


def read_jsonl(path: Path | None) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; a last line cut off by a kill is left out."""
    if path is None or not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for n, line in enumerate(lines):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if n == len(lines) - 1:
                break
            raise _broken(path, "one JSON object a line", error) from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML mapping; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise _broken(path, "a YAML mapping", error) from error
    return value if isinstance(value, dict) else {}


def plain_reason(reason: str) -> str:
    """Return a reason with its numbers taken out, so that like reasons count together."""
    return re.sub(r"\d+(?:\.\d+)?(?:e-?\d+)?", "…", reason).strip() or "no reason given"


def count_reasons(table: pd.DataFrame) -> dict[str, int]:
    """Return how many candidates were rejected for each reason, the commonest first.

    Where all of a kind have the same words, those are kept, numbers and all.
    """
    rejected = table.loc[table["status"] == "rejected", "reason"].astype(str)
    groups: dict[str, list[str]] = {}
    for reason in rejected:
        groups.setdefault(plain_reason(reason), []).append(reason)
    named = {
        (found[0] if len(set(found)) == 1 and found[0] else kind): len(found)
        for kind, found in groups.items()
    }
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))


def versions() -> dict[str, str]:
    """Return the version of Python and of each program that matters and is installed."""
    found = {"Python": python_version()}
    for name in PROGRAMS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def finite(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column's numbers as an array, NaN where there is none."""
    return np.asarray(pd.to_numeric(values, errors="coerce"), float)


def _broken(path: Path, expected: str, error: Exception) -> InputError:
    return InputError(
        path,
        expected=expected,
        found=f"text that cannot be read as such ({error})",
        remedy="delete the file and run the workflow again",
    )
