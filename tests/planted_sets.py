"""Simulated sets whose truth can be calculated: balls, cubes and shells in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoline.io.subtomograms import SimulatedBox, SimulatedHeader, join_simulated, write_simulated

EDGE = 16
CLASSES = ("ball", "cube", "shell")
SPLITS = ("train", "validation", "test")


def density(name: str, edge: int = EDGE, radius: float = 4.0) -> NDArray[np.float32]:
    """A structure about voxel `edge // 2`, 1 inside."""
    grid = np.indices((edge,) * 3) - edge // 2
    distance = np.sqrt((grid**2).sum(0))
    inside = {
        "ball": distance <= radius,
        "cube": np.abs(grid).max(0) <= 5,
        "shell": (distance <= radius + 1) & (distance >= radius - 1),
    }[name]
    return inside.astype(np.float32)


def boxes_of(rng: np.random.Generator, *, count: int, edge: int = EDGE) -> list[SimulatedBox]:
    """Dark structures of all classes in turn, with noise."""
    found = []
    for k in range(count):
        label = k % len(CLASSES) + 1
        clean = density(CLASSES[label - 1], edge)
        values = rng.normal(0, 0.3, clean.shape) - 2 * clean
        found.append(
            SimulatedBox(
                values.astype(np.float32), clean, (clean > 0.5).astype(np.uint8), label, k + 1,
                np.full(3, edge / 2),
            )
        )  # fmt: skip
    return found


def write_set(path: Path, *, seed: int = 0, edge: int = EDGE, each: int = 42) -> Path:
    """Write tomograms of `each` subtomograms, five to learn from, two of them held out, two to
    test; returns `path`."""
    rng = np.random.default_rng(seed)
    header = SimulatedHeader(
        classes=CLASSES, splits=SPLITS, box_vox=edge, voxel_size_angstrom=10.0
    )  # fmt: skip
    parts = []
    for number, split in enumerate(["train"] * 5 + ["validation"] * 2 + ["test"] * 2, 1):
        parts.append(path.with_name(f"{path.stem}_{number}.part.h5"))
        write_simulated(
            parts[-1], boxes_of(rng, count=each, edge=edge), header, tomogram=number, split=split,
            provenance={"seed": seed},
        )  # fmt: skip
    join_simulated(parts, path)
    return path
