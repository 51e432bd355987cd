"""A crowded volume of known particles: random places and rotations, no overlaps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoline.simulation.densities import MASK_LEVEL, Density

TRIES = 24


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What a phantom holds."""

    shape_zyx: tuple[int, int, int] = (96, 192, 192)
    particles: int = 300  # wanted; fewer where no room is left
    chain_share: float = 0.5  # share of particles placed against one of the same class
    gap_vox: int = 1  # empty voxels kept between particles
    amplitude_jitter: float = 0.1  # relative SD of a particle's density


@dataclass
class Phantom:
    """Density, class mask and instance ids `(z, y, x)`, and one row a particle."""

    density: NDArray[np.float32]
    class_mask: NDArray[np.uint8]
    occupancy: NDArray[np.uint16]
    classes: list[str] = field(default_factory=list)
    centres_zyx: list[NDArray[np.float64]] = field(default_factory=list)
    rotations: list[Rotation] = field(default_factory=list)


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
    order = np.arange(settings.particles) % len(densities)
    rng.shuffle(order)
    # Large ones first within a third of the list, so that crowding does not starve them.
    sizes = np.array([d.radius_vox for d in densities])
    thirds = np.array_split(order, 3)
    blocked = np.zeros(shape, bool)
    for label in np.concatenate([t[np.argsort(-sizes[t], kind="stable")] for t in thirds]):
        _place(phantom, blocked, densities, int(label), settings, rng)
    return phantom


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
    inside = np.argwhere(turned > MASK_LEVEL) - half
    grown = np.argwhere(ndimage.binary_dilation(turned > MASK_LEVEL)) - half
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
        near = (grown if settings.gap_vox else inside) + place
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
