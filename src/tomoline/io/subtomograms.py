"""HDF5 files of the extract and the classify stage, written and read one particle at a time.

subtomograms.h5: `subtomograms` (N, b, b, b) float32, `candidate_id` (N,), `centre_zyx` (N, 3)
sub-voxel in the box; attributes `voxel_size_angstrom`, `box_vox`.
classes.h5: `labels` (N, b, b, b) uint8, `probabilities` (N, C, b, b, b) uint8 = round(255 p),
`candidate_id`, `centre_zyx`; attribute `classes`, whose index is the label (0 background). From a
network that names whole subtomograms: `views` (N, V, C) float32, the class probabilities of each
of V views of a subtomogram, in place of the first two, and the attribute `box_vox`.
Simulated ones (`write_simulated`) are as subtomograms.h5, `candidate_id` running through the file,
and have `label` (N,), `mask` (N, b, b, b) uint8, `clean` (N, b, b, b) float32, `tomogram` (N,),
`particle_id` (N,) in that tomogram's table and `split` (N,), the place in the attribute `splits`;
and `provenance`, the JSON of each tomogram's; attribute `classes` as above.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.io.atomic import atomic_stream

# Data sets of a simulated subtomogram with a box each, and the fields they come from.
_SIMULATED = (
    ("subtomograms", np.float32, "values"), ("clean", np.float32, "clean"),
    ("mask", np.uint8, "mask"),
)  # fmt: skip
_PACKED = ("clean", "mask")  # without noise
VIEW_AXES = 3
_COLUMNS = ("label", "particle_id", "tomogram", "split")


@dataclass(frozen=True, kw_only=True)
class Subtomograms:
    """An open file of the extract stage; `boxes[k]` reads one particle."""

    boxes: Any  # (N, b, b, b) float32
    candidate_id: NDArray[np.int64]
    centre_zyx: NDArray[np.float64]
    voxel_size_angstrom: float
    box_vox: int

    def __len__(self) -> int:
        return len(self.candidate_id)


@dataclass(frozen=True, kw_only=True)
class LabelledBoxes:
    """An open file of the classify stage; `labels[k]` and `probabilities[k]` read one particle."""

    labels: Any  # (N, b, b, b) uint8
    probabilities: Any  # (N, C, b, b, b) uint8
    candidate_id: NDArray[np.int64]
    centre_zyx: NDArray[np.float64]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.candidate_id)


@dataclass(frozen=True, kw_only=True)
class NamedBoxes:
    """What a network made of whole subtomograms: class probabilities of each view, and the box."""

    views: NDArray[np.float32]  # (N, V, C)
    candidate_id: NDArray[np.int64]
    centre_zyx: NDArray[np.float64]
    classes: list[str]
    box_vox: int

    def __len__(self) -> int:
        return len(self.candidate_id)


@dataclass(frozen=True)
class SimulatedBox:
    """A simulated subtomogram and its truth; arrays `(b, b, b)`, `centre_zyx` (3,) in the box."""

    values: NDArray[np.float32]
    clean: NDArray[np.float32]
    mask: NDArray[np.uint8]
    label: int
    particle_id: int
    centre_zyx: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SimulatedHeader:
    """What all tomograms of a simulated data set have in common; `classes` without background."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    box_vox: int
    voxel_size_angstrom: float


@dataclass(frozen=True, kw_only=True)
class SimulatedBoxes:
    """An open file of `write_simulated`; `values[k]`, `clean[k]` and `mask[k]` read one particle.

    `label` (N,) is its class's place in `classes`, of which the first is background; `split` (N,)
    names what its `tomogram` (N,) is for.
    """

    values: Any  # (N, b, b, b) float32
    clean: Any  # (N, b, b, b) float32
    mask: Any  # (N, b, b, b) uint8
    label: NDArray[np.int64]
    tomogram: NDArray[np.int64]
    particle_id: NDArray[np.int64]
    split: NDArray[np.str_]
    classes: list[str]
    box_vox: int
    voxel_size_angstrom: float

    def __len__(self) -> int:
        return len(self.label)


def write_subtomograms(
    path: str | os.PathLike[str],
    boxes: Iterable[NDArray[np.float32]],
    *,
    candidate_id: NDArray[Any],
    centre_zyx: NDArray[Any],
    box_vox: int,
    voxel_size_angstrom: float,
) -> None:
    """Write the boxes `(b, b, b)` in the order of `candidate_id`, atomically; none is legal."""
    count, shape = len(candidate_id), (box_vox,) * 3
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.attrs["voxel_size_angstrom"] = float(voxel_size_angstrom)
        file.attrs["box_vox"] = int(box_vox)
        _write_places(file, candidate_id, centre_zyx)
        data = _create(file, "subtomograms", (count, *shape), np.float32)
        for k, values in _counted(boxes, count):
            data[k] = values
            stream.check()


def write_classes(
    path: str | os.PathLike[str],
    results: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    candidate_id: NDArray[Any],
    centre_zyx: NDArray[Any],
    box_vox: int,
    classes: Sequence[str],
) -> None:
    """Write pairs of labels `(b, b, b)` and probabilities `(C, b, b, b)`, atomically."""
    count, shape = len(candidate_id), (box_vox,) * 3
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.attrs["classes"] = list(classes)
        _write_places(file, candidate_id, centre_zyx)
        labels = _create(file, "labels", (count, *shape), np.uint8, packed=True)
        stored = _create(file, "probabilities", (count, len(classes), *shape), np.uint8)
        for k, (label, probability) in _counted(results, count):
            labels[k], stored[k] = label, probability
            stream.check()


def write_views(
    path: str | os.PathLike[str],
    results: Iterable[NDArray[np.float32]],
    *,
    candidate_id: NDArray[Any],
    centre_zyx: NDArray[Any],
    box_vox: int,
    views: int,
    classes: Sequence[str],
) -> None:
    """Write the class probabilities `(V, C)` of each subtomogram's views, atomically."""
    count = len(candidate_id)
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.attrs["classes"] = list(classes)
        file.attrs["box_vox"] = int(box_vox)
        _write_places(file, candidate_id, centre_zyx)
        stored = np.zeros((count, views, len(classes)), np.float32)
        for k, result in _counted(results, count):
            stored[k] = result
        file.create_dataset("views", data=stored, track_times=False)


def write_activation(
    path: str | os.PathLike[str],
    particle_id: NDArray[np.int64],
    networks: Mapping[str, tuple[NDArray[np.float32], Sequence[str], NDArray[np.float64]]],
) -> None:
    """Write class activation maps, atomically: `particle_id (N,)`, and of each network by its name
    `maps (N, b, b, b)`, the class `named` and its `probability (N,)`."""
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.create_dataset("particle_id", data=particle_id, track_times=False)
        for name, (maps, named, probability) in networks.items():
            group = file.create_group(name)
            data = _create(group, "maps", maps.shape, np.float32)
            for k, values in enumerate(maps):
                data[k] = values
                stream.check()
            kind = h5py.string_dtype()
            group.create_dataset("named", data=list(named), dtype=kind, track_times=False)
            group.create_dataset("probability", data=probability, track_times=False)


def write_simulated(
    path: str | os.PathLike[str],
    boxes: Sequence[SimulatedBox],
    header: SimulatedHeader,
    *,
    tomogram: int,
    split: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write the subtomograms of one simulated tomogram, atomically; none is legal."""
    count, shape = len(boxes), (header.box_vox,) * 3
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.attrs["voxel_size_angstrom"] = float(header.voxel_size_angstrom)
        file.attrs["box_vox"] = int(header.box_vox)
        file.attrs["classes"] = [BACKGROUND, *header.classes]
        file.attrs["splits"] = list(header.splits)
        # A data set, because an attribute holds 64 KiB only.
        text = json.dumps({str(tomogram): dict(provenance)}, sort_keys=True)
        file.create_dataset("provenance", data=text, track_times=False)
        _write_places(file, np.arange(1, count + 1), np.array([b.centre_zyx for b in boxes]))
        columns = {
            "label": [b.label for b in boxes], "particle_id": [b.particle_id for b in boxes],
            "tomogram": [tomogram] * count, "split": [header.splits.index(split)] * count,
        }  # fmt: skip
        for name, values in columns.items():
            file.create_dataset(name, data=np.asarray(values, np.int64), track_times=False)
        for name, dtype, field in _SIMULATED:
            data = _create(file, name, (count, *shape), dtype, packed=name in _PACKED)
            for k, box in enumerate(boxes):
                data[k] = getattr(box, field)
                stream.check()


def join_simulated(parts: Sequence[Path], path: str | os.PathLike[str]) -> int:
    """Join files of `write_simulated` into one, atomically; how many subtomograms it holds.

    Raises InputError where a part is something else, or of other classes or box than the first.
    """
    counts: list[int] = []
    attributes: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    for part in parts:
        with _opened(part, tuple(name for name, _, _ in _SIMULATED)) as file:
            own = {name: file.attrs[name] for name in ("box_vox", "voxel_size_angstrom")}
            own |= {name: list(file.attrs[name]) for name in ("classes", "splits")}
            if attributes and own != attributes:
                raise _fault(part, f"{attributes}, as in {parts[0]}", f"{own}")
            attributes = own
            provenance |= json.loads(file["provenance"][()])
            counts.append(len(file["label"]))
    total, shape = sum(counts), (int(attributes["box_vox"]),) * 3
    with atomic_stream(path) as stream, h5py.File(stream, "w") as out:
        for name, value in attributes.items():
            out.attrs[name] = value
        text = json.dumps(provenance, sort_keys=True)
        out.create_dataset("provenance", data=text, track_times=False)
        columns: dict[str, list[Any]] = {n: [] for n in (*_COLUMNS, "centre_zyx")}
        targets = {
            name: _create(out, name, (total, *shape), kind, packed=name in _PACKED)
            for name, kind, _ in _SIMULATED
        }
        start = 0
        for part, count in zip(parts, counts, strict=True):
            with h5py.File(part, "r") as file:
                for name, found in columns.items():
                    found.append(file[name][()])
                for name, target in targets.items():
                    for k in range(count):
                        target[start + k] = file[name][k]
                        stream.check()
            start += count
        _write_places(out, np.arange(1, total + 1), np.concatenate(columns.pop("centre_zyx")))
        for name, found in columns.items():
            out.create_dataset(name, data=np.concatenate(found), track_times=False)
    return total


@contextmanager
def open_subtomograms(path: str | os.PathLike[str]) -> Iterator[Subtomograms]:
    """Open what `write_subtomograms` wrote; InputError if it is something else."""
    with _opened(path, ("subtomograms",)) as file:
        boxes = file["subtomograms"]
        ids, centres = _read_places(path, file, len(boxes))
        for name in ("voxel_size_angstrom", "box_vox"):
            if name not in file.attrs:
                raise _fault(path, f"the attribute {name}", "none")
        edge = int(file.attrs["box_vox"])
        if boxes.shape[1:] != (edge,) * 3:
            raise _fault(path, f"boxes of {edge} voxels, as box_vox says", str(boxes.shape))
        yield Subtomograms(
            boxes=boxes, candidate_id=ids, centre_zyx=centres, box_vox=edge,
            voxel_size_angstrom=float(file.attrs["voxel_size_angstrom"]),
        )  # fmt: skip


def true_classes(path: str | os.PathLike[str]) -> list[str]:
    """Names of the true classes of the subtomograms of a file; empty where it has none."""
    with _opened(path, ("subtomograms",)) as file:
        if "label" not in file or "classes" not in file.attrs:
            return []
        classes = [str(name) for name in file.attrs["classes"]]
        return [classes[k] for k in file["label"][()]]


@contextmanager
def open_simulated(path: str | os.PathLike[str]) -> Iterator[SimulatedBoxes]:
    """Open what `write_simulated` or `join_simulated` wrote; InputError if it is something else."""
    with _opened(path, (*(name for name, _, _ in _SIMULATED), *_COLUMNS)) as file:
        classes, splits = ([str(n) for n in file.attrs.get(k, [])] for k in ("classes", "splits"))
        columns = {name: np.asarray(file[name][()], np.int64) for name in _COLUMNS}
        shape = file["subtomograms"].shape
        same = all(file[name].shape == shape for name, _, _ in _SIMULATED)
        if not same or any(len(column) != shape[0] for column in columns.values()):
            raise _fault(path, f"{shape[0]} subtomograms with their truth", "other numbers of it")
        labels, split = columns["label"], columns["split"]
        known = (labels >= 0) & (labels < len(classes)) & (split >= 0) & (split < len(splits))
        if not known.all() or classes[:1] != [BACKGROUND]:
            raise _fault(
                path, f"labels of its classes, beginning with {BACKGROUND}, and splits of its "
                "own", f"classes {classes}, splits {splits}",
            )  # fmt: skip
        yield SimulatedBoxes(
            values=file["subtomograms"], clean=file["clean"], mask=file["mask"], label=labels,
            tomogram=columns["tomogram"], particle_id=columns["particle_id"],
            split=np.array(splits, str)[split] if len(split) else np.empty(0, str),
            classes=classes, box_vox=int(file.attrs["box_vox"]),
            voxel_size_angstrom=float(file.attrs["voxel_size_angstrom"]),
        )  # fmt: skip


@contextmanager
def open_classes(path: str | os.PathLike[str]) -> Iterator[LabelledBoxes | NamedBoxes]:
    """Open what the classify stage wrote; InputError if it is something else."""
    with _opened(path, ("labels", "probabilities"), ("views",)) as file:
        if "views" in file:
            yield _named_boxes(path, file)
            return
        labels, probabilities = file["labels"], file["probabilities"]
        classes = [str(name) for name in file.attrs.get("classes", [])]
        wanted = (labels.shape[0], len(classes), *labels.shape[1:])
        if len(classes) < 2 or classes[0] != BACKGROUND or probabilities.shape != wanted:
            raise _fault(
                path, f"the attribute classes, beginning with {BACKGROUND}, and probabilities of "
                "(particles, classes, box)", f"classes {classes}, probabilities "
                f"{probabilities.shape}, labels {labels.shape}",
            )  # fmt: skip
        ids, centres = _read_places(path, file, len(labels))
        yield LabelledBoxes(
            labels=labels, probabilities=probabilities, candidate_id=ids, centre_zyx=centres,
            classes=classes,
        )  # fmt: skip


def _named_boxes(path: str | os.PathLike[str], file: Any) -> NamedBoxes:
    views = np.asarray(file["views"][()], np.float32)
    classes = [str(name) for name in file.attrs.get("classes", [])]
    right = views.ndim == VIEW_AXES and views.shape[2] == len(classes) and "box_vox" in file.attrs
    if not right or len(classes) < 2 or classes[0] != BACKGROUND:
        raise _fault(
            path, f"views of (particles, views, classes), the attribute box_vox and classes, "
            f"beginning with {BACKGROUND}", f"classes {classes}, views {views.shape}",
        )  # fmt: skip
    ids, centres = _read_places(path, file, len(views))
    return NamedBoxes(
        views=views, candidate_id=ids, centre_zyx=centres, classes=classes,
        box_vox=int(file.attrs["box_vox"]),
    )  # fmt: skip


def _create(
    file: Any, name: str, shape: tuple[int, ...], dtype: type, *, packed: bool = False
) -> Any:
    """One chunk a particle.

    Grey values are noise. Probabilities would shrink to a half, at a twelfth of the speed, which on
    a GPU is three times what computing them takes.
    """
    options: dict[str, Any] = {"chunks": (1, *shape[1:])} if shape[0] else {}
    if shape[0] and packed:
        options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return file.create_dataset(name, shape, dtype, track_times=False, **options)


def _write_places(file: Any, ids: NDArray[Any], centres: NDArray[Any]) -> None:
    file.create_dataset("candidate_id", data=np.asarray(ids, np.int64), track_times=False)
    places = np.asarray(centres, np.float64).reshape(-1, 3)
    if len(places) != len(ids):
        raise ValueError(f"{len(ids)} candidates but {len(places)} centres")
    file.create_dataset("centre_zyx", data=places, track_times=False)


def _read_places(
    path: str | os.PathLike[str], file: Any, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids = np.asarray(file["candidate_id"][()], np.int64)
    centres = np.asarray(file["centre_zyx"][()], np.float64)
    if ids.shape != (count,) or centres.shape != (count, 3):
        raise _fault(
            path, f"{count} candidate_id and centre_zyx", f"shapes {ids.shape}, {centres.shape}"
        )
    return ids, centres


def _counted(items: Iterable[Any], count: int) -> Iterator[tuple[int, Any]]:
    """Number the items; ValueError unless there are `count`."""
    k = -1
    for k, item in enumerate(items):
        if k >= count:
            break
        yield k, item
    if k + 1 != count:
        raise ValueError(f"{count} candidates but another number of boxes")


@contextmanager
def _opened(path: str | os.PathLike[str], *kinds: tuple[str, ...]) -> Iterator[Any]:
    """Open a file that has the data sets of one of these kinds."""
    if not Path(path).is_file():
        raise _fault(path, "an HDF5 file", "no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _fault(path, "an HDF5 file", str(error)) from error
    with file:
        lacking = [
            [name for name in (*names, "candidate_id", "centre_zyx") if name not in file]
            for names in kinds
        ]
        if all(lacking):
            wanted = ", or ".join(", ".join(names) for names in kinds)
            raise _fault(path, f"the data sets {wanted}", f"no {', '.join(lacking[0])}")
        yield file


def _fault(path: str | os.PathLike[str], expected: str, found: str) -> InputError:
    return InputError(
        Path(path), expected=expected, found=found, remedy="delete the file and run again"
    )
