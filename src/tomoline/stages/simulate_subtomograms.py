"""Simulated subtomograms with their truth, in the manner of DSM-Net's data (section 3.1).

One tomogram gives the subtomograms of all its particles that lie wholly within it, each with its
crowded surroundings. Training, validation and test are divided by tomogram, so that no neighbour
of a test particle has been seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from tomoline.io.subtomograms import (
    SimulatedBox,
    SimulatedHeader,
    join_simulated,
    write_simulated,
)
from tomoline.log import get_logger
from tomoline.ops.normalise import normalise
from tomoline.ops.patches import centred_in
from tomoline.settings import SimulateSettings
from tomoline.simulation.densities import MASK_LEVEL, Density
from tomoline.simulation.phantom import rotate_density
from tomoline.simulation.tomogram import SimulatedTomogram
from tomoline.stages.simulate import load_classes, make_numbered, provenance

SETTINGS = SimulateSettings
SPLITS = ("train", "validation", "test")
APART_VOX = 4.5  # as `train.candidates.hit_vox`: nearer to a particle is a hit
PLACES_TRIED = 8  # for each background box
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: SimulateSettings,
    number: int | None = None,
) -> None:
    """Write the subtomograms of tomogram `number`, or without a number join those of `parts`.

    Inputs `densities` (folder) or `parts` (files); output `subtomograms` (HDF5).
    """
    if number is None:
        count = join_simulated([Path(p) for p in inputs["parts"]], outputs["subtomograms"])
        log.info("%d subtomograms", count)
        return
    folder = Path(inputs["densities"])
    densities = load_classes(folder, settings)
    made = make_numbered(densities, settings, number)
    boxes = list(cut_boxes(made, densities, settings.box_vox))
    role = split_of(settings, number)
    log.info("%d of %d particles lie wholly within; for %s", len(boxes),
             len(made.phantom.classes), role)  # fmt: skip
    if settings.background_share:
        rng = np.random.default_rng([settings.seed, number, 29])
        wanted = round(settings.background_share * max(len(boxes), 1))
        boxes += background_boxes(made, settings.box_vox, wanted, rng)
    header = SimulatedHeader(
        classes=tuple(d.name for d in densities), splits=SPLITS, box_vox=settings.box_vox,
        voxel_size_angstrom=settings.voxel_size_angstrom,
    )  # fmt: skip
    more = {**provenance(folder, settings, number), "snr": made.tilt_settings.snr}
    write_simulated(
        outputs["subtomograms"], boxes, header, tomogram=number, split=role, provenance=more
    )


def split_of(settings: SimulateSettings, number: int) -> str:
    """Return what a tomogram is for: as the settings say, else of every ten, by seed, 8, 1 and 1.

    Ten tomograms in a row hold each share exactly.
    """
    for role, numbers in settings.split.items():
        if number in numbers:
            return role
    decade, place = divmod(number - settings.first, 10)
    order = np.random.default_rng([settings.seed, decade, 8]).permutation(10)
    return SPLITS[max(0, int(order[place]) - 7)]


def cut_boxes(
    made: SimulatedTomogram, densities: list[Density], box_vox: int
) -> Iterator[SimulatedBox]:
    """Cut the particles out whose boxes lie within the volume.

    A box's voxel `box_vox // 2` holds the particle's centre. Target and mask are of this particle
    alone: its density without noise and wedge, and where it is.
    """
    volume = normalise(made.reconstruction)
    shape, half = np.asarray(volume.shape), box_vox // 2
    by_name = {d.name: (k, d) for k, d in enumerate(densities, 1)}
    phantom = made.phantom
    for k, (name, centre, rotation) in enumerate(
        zip(phantom.classes, phantom.centres_zyx, phantom.rotations, strict=True), 1
    ):
        place = np.rint(centre).astype(int)
        low = place - half
        if (low < 0).any() or (low + box_vox > shape).any():
            continue
        cut = tuple(slice(a, a + box_vox) for a in low)
        label, density = by_name[name]
        clean = centred_in(rotate_density(density.values, rotation, centre - place), box_vox)
        mask = (phantom.occupancy[cut] == k) & (clean > MASK_LEVEL)
        yield SimulatedBox(volume[cut], clean, mask.astype(np.uint8), label, k, centre - low)


def background_boxes(
    made: SimulatedTomogram, box_vox: int, wanted: int, rng: np.random.Generator
) -> list[SimulatedBox]:
    """Boxes with no particle's centre near their middle; nothing is to be found in them.

    They are labelled 0 and have the particle number 0. Fewer come back where there is no room.
    """
    volume = normalise(made.reconstruction)
    lowest, highest = box_vox // 2, np.array(volume.shape) - (box_vox - box_vox // 2)
    if (highest < lowest).any():
        return []
    places = rng.integers(lowest, highest + 1, (PLACES_TRIED * wanted, 3))
    centres = made.phantom.centres_zyx
    if len(centres):
        apart, _ = cKDTree(np.asarray(centres)).query(places)
        places = places[apart > APART_VOX]
    nothing, empty = (np.zeros((box_vox,) * 3, kind) for kind in (np.float32, np.uint8))
    found = []
    for place in places[:wanted]:
        cut = tuple(slice(a, a + box_vox) for a in place - box_vox // 2)
        middle = np.full(3, box_vox // 2, float)
        found.append(SimulatedBox(volume[cut], nothing, empty, 0, 0, middle))
    return found
