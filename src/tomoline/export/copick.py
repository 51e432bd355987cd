"""copick: a project with a picks file a tomogram and class, for ChimeraX, napari, copick's tools.

`copick_config.json` beside `ExperimentRuns/<tilt series>/Picks/tomoline_0_<class>.json`, as
copick's models and file system have it. A location is in angstrom: voxel times voxel size, so that
0 is the centre of the first voxel. Session 0 is copick's mark for picks made by a tool. The project
holds no tomograms; copick's `add tomogram` puts them in. Names there know neither `_` nor blanks:
`-` instead; an object's metadata have the class's own name.
"""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tomoline.errors import InputError
from tomoline.export.dialect import (
    Dialect,
    Place,
    TomogramParticles,
    check_tilt_series,
    distinct,
    listed_classes,
)
from tomoline.io.annotations import annotation_table
from tomoline.io.atomic import write_json
from tomoline.log import get_logger
from tomoline.settings import ExportSettings

CONFIG = "copick_config.json"
USER, SESSION = "tomoline", "0"
REVIEW_USER, REVIEW_SESSION = "tomoline-review", "1"  # picks that people are asked about
DECIMALS = 4
_CLASS = "class"  # in an object's metadata: what we call it
_IDENTITY = np.eye(4).tolist()
_log = get_logger(__name__)


def write(tomogram: TomogramParticles, path: Path, settings: ExportSettings) -> None:
    """Write one tomogram's project, its configuration to `path`."""
    _write([tomogram], path)


def write_combined(
    tomograms: Sequence[TomogramParticles], folder: Path, settings: ExportSettings
) -> list[Path]:
    """Write a project with all tomograms as runs."""
    return _write(tomograms, folder / CONFIG)


def write_review(tomograms: Sequence[TomogramParticles], folder: Path) -> list[Path]:
    """Write a project with picks under review, whatever their status, as a user of their own."""
    return _write(tomograms, folder / CONFIG, user=REVIEW_USER, session=REVIEW_SESSION)


def read(path: Path, place: Place) -> pd.DataFrame:
    """Read a run's picks from a project (its configuration or folder) or a single picks file.

    Where people have picked beside us, only theirs are read. A point's place is its location and
    the shift of its transformation, as copick has it. Radii are those of the project's objects;
    orientations are dropped.
    """
    picks = [raw for raw in _wanted(path) if place.is_named(str(raw.get("run_name") or ""))]
    objects, voxel = _objects(path), place.geometry.voxel_size_angstrom
    xyz, classes, scores, radii = [], [], [], []
    for raw in picks:
        name = str(raw["pickable_object_name"])
        entry = objects.get(name, {})
        for point in raw.get("points") or []:
            xyz.append(_place(point))
            classes.append(str((entry.get("metadata") or {}).get(_CLASS, name)))
            scores.append(float(1.0 if point.get("score") is None else point["score"]))
            radii.append(float(entry.get("radius") or np.nan) / voxel)
    zyx = np.array(xyz, dtype=float).reshape(-1, 3)[:, ::-1] / voxel
    known = bool(radii) and bool(np.isfinite(radii).all())
    return annotation_table(zyx, classes, scores=scores, radius_vox=radii if known else None)


def names(path: Path) -> list[str]:
    """The runs with picks."""
    found = [str(raw.get("run_name") or "") for raw in _wanted(path)]
    return [name for name in dict.fromkeys(found) if name]


def object_names(classes: Sequence[str]) -> dict[str, str]:
    """Return each class's name as copick allows it, no two the same."""
    names = [
        re.sub(r'[<>:"/\\|?*\x00-\x1F\x7F\s_]', "-", name).strip("-.") or "particle"
        for name in classes
    ]
    return dict(zip(classes, distinct(names, mark="-"), strict=True))


def _write(
    tomograms: Sequence[TomogramParticles], config: Path, *, user: str = USER,
    session: str = SESSION,
) -> list[Path]:  # fmt: skip
    objects = object_names(listed_classes(tomograms))
    written = [config]
    check_tilt_series([tomogram.tilt_series for tomogram in tomograms])
    for tomogram in tomograms:
        folder = config.parent / "ExperimentRuns" / tomogram.tilt_series / "Picks"
        for name, own_name in objects.items():
            own = tomogram.of_class(name)
            if len(own.particles):
                path = folder / f"{user}_{session}_{own_name}.json"
                write_json(path, _picks(own, own_name, user=user, session=session))
                written.append(path)
    for path in config.parent.glob(f"ExperimentRuns/*/Picks/{user}_{session}_*.json"):
        if path not in written:  # of an earlier run: other settings, tomograms or model
            path.unlink()
    write_json(config, _config(config.parent, tomograms, objects))
    return written


def _picks(tomogram: TomogramParticles, name: str, *, user: str, session: str) -> dict[str, Any]:
    voxel = tomogram.geometry.voxel_size_angstrom
    xyz = tomogram.zyx_vox()[:, ::-1] * voxel
    ids = tomogram.particles["particle_id"].astype(int)
    points = [
        {
            "location": dict(zip("xyz", (round(float(v), DECIMALS) for v in place), strict=True)),
            "transformation_": _IDENTITY,
            "instance_id": int(number),
            "score": round(float(score), 6),
        }
        for place, number, score in zip(xyz, ids, tomogram.scores(), strict=True)
    ]
    return {
        "pickable_object_name": name,
        "user_id": user,
        "session_id": session,
        "run_name": tomogram.tilt_series,
        "voxel_spacing": round(voxel, 3),
        "unit": "angstrom",
        "trust_orientation": False,
        "points": points,
    }


def _config(
    folder: Path, tomograms: Sequence[TomogramParticles], names: Mapping[str, str]
) -> dict[str, Any]:
    objects = [
        {
            "name": own,
            "is_particle": True,
            "label": number,
            "color": _colour(number, len(names)),
            "radius": None,
            "metadata": {_CLASS: name},
        }
        for number, (name, own) in enumerate(names.items(), 1)
    ]
    return {
        "config_type": "filesystem",
        "name": tomograms[0].dataset.name,
        "description": "Particles found by Tomoline",
        "version": "0.5.0",
        "pickable_objects": objects,
        # copick resolves it from where it is started, so only an absolute path is safe
        "overlay_root": f"local://{folder.resolve()}",
        "overlay_fs_args": {"auto_mkdir": True},
        "static_root": None,
        "static_fs_args": {},
    }


def _colour(number: int, count: int) -> list[int]:
    red, green, blue = colorsys.hsv_to_rgb((number - 1) / max(count, 1), 0.75, 0.95)
    return [round(255 * red), round(255 * green), round(255 * blue), 255]


def _wanted(path: Path) -> list[dict[str, Any]]:
    """Picks files of a project without ours, where there are others', or the one file."""
    picks = list(_picks_files(path))
    theirs = [raw for raw in picks if raw.get("user_id") not in (USER, REVIEW_USER)]
    if theirs and len(theirs) < len(picks):
        _log.info("%s: Tomoline's own picks are left out, those of people are read", path)
    return theirs or picks


def _picks_files(path: Path) -> Iterator[dict[str, Any]]:
    raw = {} if path.is_dir() else _json(path)
    if "points" in raw or "pickable_object_name" in raw:
        yield _checked(path, raw)
        return
    for root in _roots(path, raw):
        for file in sorted(root.glob("ExperimentRuns/*/Picks/*.json")):
            picks = _checked(file, _json(file))
            yield {**picks, "run_name": file.parents[1].name}


def _roots(path: Path, config: dict[str, Any]) -> list[Path]:
    """Folders of a project: those of its configuration, else the one it lies in."""
    texts = [str(config.get(key) or "") for key in ("static_root", "overlay_root")]
    named = [Path(re.sub(r"^(local|file)://", "", text)) for text in texts if text]
    found = [root for root in dict.fromkeys(named) if (root / "ExperimentRuns").is_dir()]
    own = path if path.is_dir() else path.parent  # a project may have been moved
    found = found or [root for root in [own] if (root / "ExperimentRuns").is_dir()]
    empty = "pickable_objects" in config and any(root.is_dir() for root in named)
    if not found and not empty:
        raise InputError(
            path,
            expected="a copick project on this machine's disks, or a picks file",
            found=f"no folder ExperimentRuns in {', '.join(map(str, [*named, own]))}",
            remedy="give copick_config.json, or a file of ExperimentRuns/<run>/Picks",
        )
    return found


def _place(point: Mapping[str, Any]) -> list[float]:
    """A point's place in angstrom, x, y, z: copick adds the transformation's shift to it."""
    rows = point.get("transformation_") or _IDENTITY
    return [float(point["location"][axis]) + float(rows[n][3]) for n, axis in enumerate("xyz")]


def _objects(path: Path) -> dict[str, dict[str, Any]]:
    """The objects of a project's configuration by their names."""
    config = path / CONFIG if path.is_dir() else path
    raw = _json(config) if config.is_file() else {}
    return {str(known.get("name")): known for known in raw.get("pickable_objects") or []}


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _fault(path, str(error)) from error
    if not isinstance(raw, dict):
        raise _fault(path, "other JSON")
    return raw


def _checked(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is not a picks file in angstrom."""
    points = raw.get("points") or []
    whole = "pickable_object_name" in raw and raw.get("unit", "angstrom") == "angstrom"
    try:
        numbers = bool(np.isfinite([_place(point) for point in points]).all())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        numbers = False
    if not whole or not numbers:
        raise _fault(path, "a file without pickable_object_name, or with another unit or points")
    return raw


def _fault(path: Path, found: str) -> InputError:
    return InputError(
        path, expected="a copick project or picks file (JSON), in angstrom", found=found,
        remedy="give copick_config.json, or a file of ExperimentRuns/<run>/Picks",
    )  # fmt: skip


DIALECT = Dialect(
    name="copick",
    file_name=f"copick/{CONFIG}",
    combined_name=CONFIG,
    description="copick project: angstrom from the centre of the first voxel, a file a class",
    write=write,
    write_combined=write_combined,
    read=read,
    names=names,
)
