"""The particle densities that are shipped, normalised and centred on their centre of mass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoline.errors import InputError

# The twelve structures of SHREC'20 and '21 (4d8q's place is taken by 4v94, 4b4t's by 4cr2),
# in the order of falling mass; label of a class = its place in this list, from 1.
SHREC_CLASSES = (
    "4v94", "4cr2", "1qvr", "1bxn", "3cf3", "1u6g", "3d2f", "2cg9", "3h84", "3gl1", "3qm1",
    "1s3x",
)  # fmt: skip
EXTRA_CLASSES = ("5mrc", "3j9i", "6utj", "4v4r")
MAP_ANGSTROM = 10.0  # voxel size of the maps
MASK_LEVEL = 0.15  # of the density's 99th percentile inside; the class mask's threshold


@dataclass(frozen=True)
class Density:
    """One structure: `values` (n, n, n), n odd, 1 inside, 0 outside, mass centre in the middle."""

    name: str
    values: NDArray[np.float32]
    radius_vox: float
    effective_radius_vox: float


def effective_radius(mask: NDArray[np.bool_]) -> float:
    """Effective radius `3 V / A` of a mask in voxels (VP-Detector, section 3.2 and table 4).

    The surface is that of the marching-cubes-like estimate from the mask's gradient: the sum of
    gradient magnitudes of the mask smoothed by one voxel, unbiased in direction, where counting
    voxel faces would overestimate a slanted surface by up to 1.7.
    """
    padded = np.pad(mask.astype(np.float32), 4)
    smooth = ndimage.gaussian_filter(padded, 1.0)
    area = float(np.sqrt(sum(g**2 for g in np.gradient(smooth))).sum())
    return 3.0 * float(mask.sum()) / area


def crop_and_centre(
    values: NDArray[np.float32], margin: int = 2, scale: float = 1.0
) -> NDArray[np.float32]:
    """Shift the mass centre to the middle of the smallest odd cube that holds the structure.

    `scale` is the size of a new voxel in old ones; larger voxels are averages.
    """
    mask = values > 0.1 * values.max()
    centre = np.asarray(ndimage.center_of_mass(values * mask))
    radius = np.linalg.norm(np.argwhere(mask) - centre, axis=1).max()
    half = int(np.ceil(radius / scale)) + margin
    rim = int(np.ceil(half * scale))
    if scale > 1:
        values = ndimage.gaussian_filter(values, np.sqrt((scale**2 - 1) / 12))
    grid = scale * np.stack(np.meshgrid(*[np.arange(-half, half + 1.0)] * 3, indexing="ij"))
    moved = ndimage.map_coordinates(
        np.pad(values, rim), grid + (centre + rim)[:, None, None, None], order=3
    )
    return np.asarray(np.maximum(moved, 0), np.float32)


def known_densities(folder: Path) -> tuple[str, ...]:
    """Return the names of the maps in a folder, sorted."""
    return tuple(sorted(p.name.removesuffix(".mrc.gz") for p in Path(folder).glob("*.mrc.gz")))


@lru_cache(maxsize=64)
def load_density(folder: Path, name: str, voxel_size_angstrom: float = MAP_ANGSTROM) -> Density:
    """Read `<folder>/<name>.mrc.gz`, resampled to the voxel size that is asked for.

    Smaller voxels than the map's give no finer structure.

    Raises
    ------
    InputError
        If there is no such density; the known ones are listed.
    """
    path = Path(folder) / f"{name}.mrc.gz"
    if not path.exists():
        known = known_densities(folder)
        raise InputError(
            path, expected=f"one of {', '.join(known) or 'no densities here'}", found=name,
            remedy="use a known structure, or add its density map (10 A a voxel) to this folder",
        )  # fmt: skip
    with mrcfile.open(path, permissive=False) as mrc:
        values = crop_and_centre(
            np.array(mrc.data, np.float32), scale=voxel_size_angstrom / MAP_ANGSTROM
        )
    return made_density(name, values)


def made_density(name: str, values: NDArray[np.float32], inside: float | None = None) -> Density:
    """A structure of its density cube about the mass centre, put on the scale where 1 is inside.

    `inside` is the density there; without it the 99th percentile of what is not empty.
    """
    if inside is None:
        inside = float(np.percentile(values[values > 0.1 * values.max()], 99))
    values = values / np.float32(inside)
    mask = values > MASK_LEVEL
    middle = np.asarray(values.shape) // 2
    radius = float(np.linalg.norm(np.argwhere(mask) - middle, axis=1).max())
    return Density(name, values, radius, effective_radius(mask))
