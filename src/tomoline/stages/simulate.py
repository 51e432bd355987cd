"""Simulated tomograms with truth: data sets to train on, and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tomoline.io.mrc import write_compressed_volume, write_volume
from tomoline.log import get_logger
from tomoline.settings import SimulateSettings
from tomoline.simulation.densities import SHREC_CLASSES, load_density
from tomoline.simulation.phantom import PhantomSettings
from tomoline.simulation.projection import TiltSettings
from tomoline.simulation.shrec import write_locations, write_shrec
from tomoline.simulation.tomogram import (
    FilterSettings,
    SimulatedTomogram,
    random_conditions,
    simulate_tomogram,
)

SETTINGS = SimulateSettings
log = get_logger(__name__)

DEMO_SEED = 2_000_000_001  # far from the seeds that training and validation use
DEMO_SHAPE = (96, 192, 192)
DEMO_PARTICLES = 150
DEMO_CONDITIONS = {
    "demo_01": TiltSettings(snr=1.5, shift_sd_vox=0.5),
    "demo_02": TiltSettings(snr=0.4, tilt_min_deg=-54, tilt_max_deg=54, shift_sd_vox=0.8),
}


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: SimulateSettings,
    number: int = 1,
) -> None:
    """Write tomogram `number` (from 1) of the data set in SHREC'21's layout.

    Input `densities` (folder); output `locations`, the `particle_locations.txt` that is written
    last into the tomogram's folder.
    """
    classes = tuple(settings.classes) or SHREC_CLASSES
    densities = [load_density(Path(inputs["densities"]), name) for name in classes]
    seed = settings.seed * 1_000_000 + number
    phantom, tilt, radial = _conditions(settings, seed)
    made = simulate_tomogram(densities, phantom, tilt, filter_settings=radial, seed=seed)
    log.info("%d of %d particles placed, SNR %.3g, tilts %.0f to %.0f degrees",
             len(made.phantom.classes), phantom.particles, tilt.snr, tilt.tilt_min_deg,
             tilt.tilt_max_deg)  # fmt: skip
    write_shrec(Path(outputs["locations"]).parent, made)


def _conditions(
    settings: SimulateSettings, seed: int
) -> tuple[PhantomSettings, TiltSettings, FilterSettings]:
    if settings.conditions == "random":
        return random_conditions(seed, settings.shape_zyx)
    tilt = TiltSettings(
        tilt_min_deg=settings.tilt_min_deg, tilt_max_deg=settings.tilt_max_deg,
        tilt_step_deg=settings.tilt_step_deg, snr=settings.snr, defocus_um=settings.defocus_um,
        shift_sd_vox=settings.shift_sd_vox,
    )  # fmt: skip
    phantom = PhantomSettings(shape_zyx=settings.shape_zyx, particles=settings.particles)
    return phantom, tilt, FilterSettings()


def make_demo(densities_folder: Path, name: str) -> SimulatedTomogram:
    """One of the two demo tomograms; no training ever sees their seeds."""
    densities = [load_density(densities_folder, c) for c in SHREC_CLASSES]
    phantom = PhantomSettings(shape_zyx=DEMO_SHAPE, particles=DEMO_PARTICLES)
    seed = DEMO_SEED + list(DEMO_CONDITIONS).index(name)
    return simulate_tomogram(densities, phantom, DEMO_CONDITIONS[name], seed=seed)


def write_demo(folder: Path, name: str, made: SimulatedTomogram) -> None:
    """Write `<name>.mrc` as signed bytes (as a facility would store it), truth and occupancy."""
    volume = made.reconstruction
    low, high = np.percentile(volume, (0.01, 99.99))
    grey = np.clip((volume - low) / (high - low) * 255 - 128, -128, 127)
    voxel = made.tilt_settings.voxel_size_angstrom
    write_volume(folder / f"{name}.mrc", np.rint(grey).astype(np.int8), voxel)
    write_compressed_volume(folder / f"{name}_occupancy.mrc.gz", made.phantom.occupancy, voxel)
    write_locations(folder / f"{name}_particle_locations.txt", made.phantom)
