"""What a multi-task network says of subtomograms beside masks and densities, in one HDF5 file.

`features` (N, F) float32, `probabilities` (N, C) float32, `candidate_id` (N,); attributes `classes`
(C names, the first background), `model`, `weights_sha256`, `box_vox`, `voxel_size_angstrom`,
`recovered` (whether the network recovered densities). Where the truth of the subtomograms is in
their file: `true` (N,), names of their classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_stream


@dataclass(frozen=True, kw_only=True)
class Features:
    """See the module's text; `true` is empty where it is not known."""

    features: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    candidate_id: NDArray[np.int64]
    classes: list[str]
    model: str
    weights_sha256: str
    box_vox: int
    voxel_size_angstrom: float
    true: list[str]
    recovered: bool = True

    def __len__(self) -> int:
        return len(self.candidate_id)

    @property
    def named(self) -> list[str]:
        """The most probable class of each."""
        return [self.classes[k] for k in self.probabilities.argmax(1)]


_ATTRIBUTES = ("model", "weights_sha256", "box_vox", "voxel_size_angstrom", "recovered")


def write_features(path: str | os.PathLike[str], found: Features) -> None:
    """Write them, atomically."""
    with atomic_stream(path) as stream, h5py.File(stream, "w") as file:
        file.attrs["classes"] = found.classes
        for name in _ATTRIBUTES:
            file.attrs[name] = getattr(found, name)
        for name in ("features", "probabilities", "candidate_id"):
            file.create_dataset(name, data=getattr(found, name), track_times=False)
        if found.true:
            file.create_dataset("true", data=found.true, track_times=False)


def read_features(path: str | os.PathLike[str]) -> Features:
    """Read what `write_features` wrote; InputError if it is something else."""
    try:
        with h5py.File(path, "r") as file:
            return Features(
                features=np.asarray(file["features"][()], np.float32),
                probabilities=np.asarray(file["probabilities"][()], np.float32),
                candidate_id=np.asarray(file["candidate_id"][()], np.int64),
                classes=[str(name) for name in file.attrs["classes"]],
                model=str(file.attrs["model"]),
                weights_sha256=str(file.attrs["weights_sha256"]),
                box_vox=int(file.attrs["box_vox"]),
                voxel_size_angstrom=float(file.attrs["voxel_size_angstrom"]),
                recovered=bool(file.attrs["recovered"]),
                true=[name.decode() for name in file["true"][()]] if "true" in file else [],
            )
    except (OSError, KeyError) as error:
        raise InputError(
            Path(path), expected="features of subtomograms (HDF5)", found=str(error),
            remedy="delete the file and run again",
        ) from error  # fmt: skip
