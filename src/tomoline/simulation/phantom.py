"""A crowded volume of known particles: random places and rotations, no overlaps.

Particles lie in a slab of ice (`PhantomSettings.ice`) with empty volume above and below, and not in
what is there beside them (`distractors`), which they may touch. The truth - class mask, occupancy,
table - knows particles only. The reference for signal-to-noise ratios, `Phantom.signal`, is the
untilted projection of the particles, whatever else is in the specimen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoline.simulation.densities import MASK_LEVEL, Density
from tomoline.simulation.distractors import (
    DistractorSettings,
    Ice,
    Scenery,
    make_scenery,
    solvent,
)

TRIES = 24
# Crowding of the specimen that gives a tomogram without particles its noise.
REFERENCE_VOXELS_PER_PARTICLE = 2e4


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What a phantom holds."""

    shape_zyx: tuple[int, int, int] = (96, 192, 192)
    particles: int = 300  # wanted; fewer where no room is left
    chain_share: float = 0.5  # share of particles placed against one of the same class
    gap_vox: int = 1  # empty voxels kept between particles
    amplitude_jitter: float = 0.1  # relative SD of a particle's density
    voxel_size_angstrom: float = 10.0  # that of the densities given
    ice_thickness_nm: float = 0.0  # 0: the whole depth
    ice_tilt_deg: tuple[float, float] = (0.0, 0.0)  # rise of the ice along y and x
    distractors: DistractorSettings = field(default_factory=DistractorSettings)

    @property
    def ice(self) -> Ice:
        """The slab that holds everything."""
        slopes = np.tan(np.deg2rad(self.ice_tilt_deg))
        thickness = 10 * self.ice_thickness_nm / self.voxel_size_angstrom
        return Ice(self.shape_zyx, thickness, float(slopes[0]), float(slopes[1]))

    @property
    def thickness_nm(self) -> float:
        """Thickness of the ice."""
        return self.ice.depth_vox * self.voxel_size_angstrom / 10


@dataclass
class Phantom:
    """Density, class mask and instance ids `(z, y, x)`, and one row a particle.

    `density` holds particles and distractors, `solvent` (or None) the ice's own noise, `scenery`
    (or None) the distractors alone; `signal` (x, y): see the module's docstring.
    """

    density: NDArray[np.float32]
    class_mask: NDArray[np.uint8]
    occupancy: NDArray[np.uint16]
    classes: list[str] = field(default_factory=list)
    centres_zyx: list[NDArray[np.float64]] = field(default_factory=list)
    rotations: list[Rotation] = field(default_factory=list)
    scenery: Scenery | None = None
    solvent: NDArray[np.float32] | None = None
    signal: NDArray[np.float32] | None = None

    @property
    def specimen(self) -> NDArray[np.float32]:
        """Everything the beam meets `(z, y, x)`."""
        return self.density if self.solvent is None else self.density + self.solvent


def rotate_density(
    values: NDArray[np.float32], rotation: Rotation, shift_zyx: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Turn a cube about its middle voxel by `rotation` (acting on x, y, z), then shift it."""
    matrix = rotation.as_matrix()[::-1, ::-1]  # xyz -> zyx
    middle = (np.asarray(values.shape) - 1) / 2
    inverse = matrix.T
    offset = middle - inverse @ (middle + shift_zyx)
    turned = ndimage.affine_transform(values, inverse, offset, order=1, prefilter=False)
    return np.asarray(turned, np.float32)


def make_phantom(
    densities: list[Density], settings: PhantomSettings, rng: np.random.Generator
) -> Phantom:
    """Place particles, the same number of each class, until no room is left.

    `class_mask` holds the place of the class in `densities`, from 1; `occupancy` the particle's
    number, from 1, as in SHREC.
    """
    shape = settings.shape_zyx
    phantom = Phantom(
        np.zeros(shape, np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    )
    ice, voxel_nm = settings.ice, settings.voxel_size_angstrom / 10
    # Draws of their own, so that what is beside the particles does not move them.
    beside = rng.spawn(1)[0]
    blocked = ~ice.inside() if ice.bounded else np.zeros(shape, bool)
    if settings.distractors.any_objects:
        phantom.scenery = make_scenery(settings.distractors, ice, voxel_nm, beside)
        blocked |= phantom.scenery.kinds > 0
    order = np.arange(settings.particles) % len(densities)
    rng.shuffle(order)
    # Large ones first within a third of the list, so that crowding does not starve them.
    sizes = np.array([d.radius_vox for d in densities])
    thirds = np.array_split(order, 3)
    for label in np.concatenate([t[np.argsort(-sizes[t], kind="stable")] for t in thirds]):
        _place(phantom, blocked, densities, int(label), settings, rng)
    phantom.signal = (
        phantom.density.sum(0).T if phantom.classes else _usual_signal(densities, ice, beside)
    )
    if phantom.scenery is not None:
        phantom.density += phantom.scenery.density
    if settings.distractors.solvent_rms > 0:
        phantom.solvent = solvent(settings.distractors.solvent_rms, ice, voxel_nm, beside)
        phantom.solvent[phantom.density > MASK_LEVEL] = 0  # the ice has given way
    return phantom


def _usual_signal(
    densities: list[Density], ice: Ice, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Projection (x, y) of a specimen of usual crowding, for one that has no particles."""
    _, ny, nx = ice.shape_zyx
    count = max(1, round(ice.depth_vox * ny * nx / REFERENCE_VOXELS_PER_PARTICLE))
    image = np.zeros((nx, ny), np.float32)
    for k in range(count):
        projected = densities[k % len(densities)].values.sum(0)
        half = projected.shape[0] // 2
        at = [(rng.integers(n) + np.arange(projected.shape[0]) - half) % n for n in (nx, ny)]
        np.add.at(image, np.ix_(*at), projected)
    return image


def _place(
    phantom: Phantom,
    blocked: NDArray[np.bool_],
    densities: list[Density],
    label: int,
    settings: PhantomSettings,
    rng: np.random.Generator,
) -> None:
    density = densities[label]
    rotation = Rotation.random(rng=rng)
    shift = rng.uniform(-0.5, 0.5, 3)
    turned = rotate_density(density.values, rotation, shift)
    half = turned.shape[0] // 2
    solid = turned > MASK_LEVEL
    inside = np.argwhere(solid) - half
    low, high = -inside.min(0), np.asarray(blocked.shape) - 1 - inside.max(0)
    if (low > high).any():
        return
    for place in _proposals(phantom, densities, label, settings, rng):
        if (place < low).any() or (place > high).any():
            continue
        at = tuple((inside + place).T)
        if blocked[at].any():
            continue
        _stamp(phantom, turned * (1 + settings.amplitude_jitter * rng.standard_normal()), place)
        phantom.classes.append(density.name)
        phantom.centres_zyx.append(place + shift)
        phantom.rotations.append(rotation)
        phantom.class_mask[at] = label + 1
        phantom.occupancy[at] = len(phantom.classes)
        near = inside
        if settings.gap_vox:
            near = np.argwhere(ndimage.binary_dilation(solid)) - half
        near = near + place
        near = near[((near >= 0) & (near < blocked.shape)).all(1)]
        blocked[tuple(near.T)] = True
        return


def _proposals(
    phantom: Phantom,
    densities: list[Density],
    label: int,
    settings: PhantomSettings,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Integer places to try, `(TRIES, 3)`: against a particle of the same class, or anywhere."""
    shape = np.asarray(phantom.density.shape)
    places = rng.integers(0, shape, (TRIES, 3))
    ice = settings.ice
    if ice.bounded:
        share = places[:, 0] / max(1, shape[0] - 1) - 0.5
        middle = ice.height(places[:, 1], places[:, 2])
        places[:, 0] = np.rint(middle + share * ice.depth_vox)
    same = [c for c, n in zip(phantom.centres_zyx, phantom.classes, strict=True)
            if n == densities[label].name]  # fmt: skip
    if same and rng.random() < settings.chain_share:
        around = np.asarray(same)[rng.integers(0, len(same), TRIES // 2)]
        direction = rng.standard_normal((len(around), 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        distance = densities[label].radius_vox * rng.uniform(1.2, 2.2, (len(around), 1))
        places[: len(around)] = np.rint(around + direction * distance)
    return places


def _stamp(phantom: Phantom, values: NDArray[np.float32], place: NDArray[np.int64]) -> None:
    half = np.asarray(values.shape) // 2
    start, stop = place - half, place - half + values.shape
    low, high = np.maximum(start, 0), np.minimum(stop, phantom.density.shape)
    target = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    source = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    phantom.density[target] += values[source]
