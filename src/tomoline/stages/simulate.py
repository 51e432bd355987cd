"""Simulated tomograms with truth: data sets to train on, and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tomoline.io.mrc import write_compressed_volume, write_volume
from tomoline.log import get_logger
from tomoline.settings import SimulateSettings
from tomoline.simulation.densities import (
    SHREC_CLASSES,
    Density,
    known_densities,
    load_density,
)
from tomoline.simulation.distractors import DistractorSettings
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
    """Write tomogram `number` of the data set in SHREC'21's layout.

    Input `densities` (folder); output `locations`, the `particle_locations.txt` that is written
    last into the tomogram's folder.
    """
    folder = Path(inputs["densities"])
    densities = load_classes(folder, settings)
    made = make_numbered(densities, settings, number)
    tilt = made.tilt_settings
    log.info("%d of %d particles placed, SNR %.3g, tilts %.0f to %.0f degrees",
             len(made.phantom.classes), made.phantom_settings.particles, tilt.snr,
             tilt.tilts_deg[0], tilt.tilts_deg[-1])  # fmt: skip
    write_shrec(
        Path(outputs["locations"]).parent, made, classes=[d.name for d in densities],
        list_distractors=settings.specimen.list_distractors,
        more=provenance(folder, settings, number),
    )  # fmt: skip


def load_classes(folder: Path, settings: SimulateSettings) -> list[Density]:
    """Densities of the settings' classes, at their voxel size."""
    names = tuple(settings.classes) or SHREC_CLASSES
    if names == ("all",):
        names = known_densities(folder)
    return [load_density(folder, name, settings.voxel_size_angstrom) for name in names]


def make_numbered(
    densities: list[Density], settings: SimulateSettings, number: int
) -> SimulatedTomogram:
    """Tomogram `number` of a data set; its seed follows from the data set's and the number."""
    seed = settings.seed * 1_000_000 + number
    phantom, tilt, radial = conditions(settings, seed)
    return simulate_tomogram(densities, phantom, tilt, filter_settings=radial, seed=seed)


def provenance(folder: Path, settings: SimulateSettings, number: int) -> dict[str, Any]:
    """What `conditions.json` says beside a tomogram's own conditions."""
    roles = [role for role, numbers in settings.split.items() if number in numbers]
    names = sorted({d.name for d in load_classes(folder, settings)})
    sums = {name: sha256((folder / f"{name}.mrc.gz").read_bytes()).hexdigest() for name in names}
    return {
        "number": number,
        "split": roles[0] if roles else "",
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
        "densities_sha256": sums,
    }


def conditions(
    settings: SimulateSettings, seed: int
) -> tuple[PhantomSettings, TiltSettings, FilterSettings]:
    """Return what a tomogram is made with."""
    voxel = settings.voxel_size_angstrom
    if settings.conditions == "random":
        phantom, tilt, radial = random_conditions(seed, settings.shape_zyx)
        return (
            replace(phantom, voxel_size_angstrom=voxel),
            replace(tilt, voxel_size_angstrom=voxel), radial,
        )  # fmt: skip
    given, scope = settings.specimen, settings.microscope
    tilt = TiltSettings(
        tilt_min_deg=settings.tilt_min_deg, tilt_max_deg=settings.tilt_max_deg,
        tilt_step_deg=settings.tilt_step_deg, snr=settings.snr, defocus_um=settings.defocus_um,
        shift_sd_vox=settings.shift_sd_vox, voxel_size_angstrom=voxel,
        inverted=scope.contrast == "bright",
        **scope.model_dump(exclude={"missing_tilts", "cutoff", "falloff", "contrast"}),
    )  # fmt: skip
    if scope.missing_tilts:
        rng = np.random.default_rng([seed, 7])
        count = len(tilt.tilts_deg)
        lost = rng.choice(count, min(scope.missing_tilts, count - 1), replace=False)
        tilt = replace(tilt, missing_tilts=tuple(sorted(int(k) for k in lost)))
    phantom = PhantomSettings(
        shape_zyx=settings.shape_zyx, particles=settings.particles, voxel_size_angstrom=voxel,
        ice_thickness_nm=given.thickness_nm, ice_tilt_deg=given.ice_tilt_deg,
        distractors=DistractorSettings(
            vesicles=given.vesicles, sheets=given.membrane_sheets, gold_beads=given.gold_beads,
            filaments=given.filaments, contaminants=given.contaminants,
            solvent_rms=given.solvent_rms,
        ),
    )  # fmt: skip
    return phantom, tilt, FilterSettings(cutoff=scope.cutoff, falloff=scope.falloff)


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
