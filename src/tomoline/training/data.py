"""Training volumes, simulated afresh for every epoch.

Axes are (z, y, x). Every random choice follows from (seed, epoch), so that a resumed training sees
what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.ops.normalise import normalise
from tomoline.simulation.densities import Density, load_density
from tomoline.simulation.tomogram import SimulatedTomogram, random_conditions, simulate_tomogram
from tomoline.training.augment import random_spectrum

VALIDATION_SEED = 1_000_000_007
SEEDS_A_TRAINING = 1_000_000


@dataclass(frozen=True)
class TrainingVolume:
    """A normalised tomogram and its truth.

    `volume` float32, `core` uint8 (1 in the ball about each centre), `classes` uint8 (0 is
    background), all `(z, y, x)`; `centres_zyx (n, 3)` and `labels (n,)` of the particles;
    `instances` their ids.
    """

    volume: NDArray[np.float32]
    core: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    centres_zyx: NDArray[np.float64]
    labels: NDArray[np.int64]


def core_radius(radius_vox: float) -> float:
    """Radius of the ball that the localizer learns to mark: about half the particle's."""
    return float(np.clip(0.45 * radius_vox, 2.2, 3.5))


def core_mask(
    shape: tuple[int, ...], centres_zyx: NDArray[np.float64], radii: Sequence[float]
) -> NDArray[np.uint8]:
    """Balls of the given radii about sub-voxel centres."""
    mask = np.zeros(shape, np.uint8)
    for centre, radius in zip(centres_zyx, radii, strict=True):
        low = np.maximum(np.floor(centre - radius).astype(int), 0)
        high = np.minimum(np.ceil(centre + radius).astype(int) + 1, shape)
        if (high <= low).any():  # a ball that lies outside
            continue
        grids = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        distance = sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True))
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= distance <= radius**2
    return mask


class SimulatedSource:
    """Fresh tomograms from the simulator for every epoch."""

    def __init__(
        self, densities: Path, classes: Sequence[str], *, shape_zyx: tuple[int, int, int],
        seed: int, spectrum_jitter: float = 0.0, **conditions: Any,
    ) -> None:  # fmt: skip
        """`conditions` are those of `random_conditions`."""
        self.densities: list[Density] = [load_density(densities, name) for name in classes]
        self.shape_zyx, self.seed = shape_zyx, seed
        self.spectrum_jitter, self.conditions = spectrum_jitter, conditions
        self._pool: dict[int, TrainingVolume] = {}

    def volumes(self, epoch: int, count: int, pool: int = 0) -> list[TrainingVolume]:
        """`count` new tomograms and those of the epochs before, `pool` in all.

        A pool of many conditions keeps a network from following the last few tomograms.
        """
        first = self.seed * SEEDS_A_TRAINING + epoch * count
        if (epoch + 1) * count > SEEDS_A_TRAINING:
            raise InputError(
                "train", expected=f"at most {SEEDS_A_TRAINING:,} tomograms in a training",
                found=f"more in part {epoch}", remedy="begin another one (init_from) with another "
                "train.seed",
            )  # fmt: skip
        wanted = range(first + count - max(pool, count), first + count)
        self._pool = {k: self._pool[k] if k in self._pool else self._make(k) for k in wanted}
        return list(self._pool.values())

    def validation(self, count: int) -> list[TrainingVolume]:
        """Held-out tomograms, always the same ones, none of them without particles."""
        held_out: list[TrainingVolume] = []
        seed = VALIDATION_SEED
        while len(held_out) < count:
            volume = self._make(seed)
            held_out += [volume] if len(volume.labels) else []
            seed += 1
        return held_out

    def tomogram(self, seed: int) -> TrainingVolume:
        """The tomogram of a seed, for those who keep seeds apart themselves."""
        return self._make(seed)

    def _make(self, seed: int) -> TrainingVolume:
        phantom, tilt, radial = random_conditions(seed, self.shape_zyx, **self.conditions)
        made = simulate_tomogram(self.densities, phantom, tilt, filter_settings=radial, seed=seed)
        volume = made.reconstruction
        if self.spectrum_jitter:
            rng = np.random.default_rng([seed, 8])
            volume = random_spectrum(rng, volume, self.spectrum_jitter)
        return self._truth(made, volume)

    def _truth(self, made: SimulatedTomogram, volume: NDArray[np.float32]) -> TrainingVolume:
        names = [d.name for d in self.densities]
        labels = np.array([names.index(c) + 1 for c in made.phantom.classes], np.int64)
        centres = np.asarray(made.phantom.centres_zyx, float).reshape(-1, 3)
        radii = [core_radius(self.densities[k - 1].radius_vox) for k in labels]
        return TrainingVolume(
            normalise(volume), core_mask(volume.shape, centres, radii),
            made.phantom.class_mask, made.phantom.occupancy, centres, labels,
        )  # fmt: skip
