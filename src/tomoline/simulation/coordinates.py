"""Densities of a user's own structures: atomic models (PDB, mmCIF) and maps (MRC) by their path.

An atom is put on the grid as its atomic number, shared linearly between the eight nearest voxels,
and blurred by a Gaussian of `RESOLUTION_ANGSTROM` (SD half of it, a temperature factor included) or
by half a voxel, whichever is more. As for the shipped maps the scale is that 1 is the inside of a
protein: it is set where the density, averaged over 10 A, has its 99th percentile.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header
from tomoline.simulation.densities import (
    MAP_ANGSTROM,
    Density,
    crop_and_centre,
    load_density,
    made_density,
)

MODELS = (".pdb", ".ent", ".cif", ".mmcif")
MAPS = (".mrc", ".map", ".ccp4")
RESOLUTION_ANGSTROM = 4.0


def is_file_of_structure(name: str) -> bool:
    """Whether a structure is named by a file (PDB, mmCIF or map, plain or gzip)."""
    return Path(name.removesuffix(".gz")).suffix.lower() in (*MODELS, *MAPS)


@lru_cache(maxsize=64)
def load_structure(folder: Path, name: str, voxel_size_angstrom: float) -> Density:
    """Density of a structure: a shipped map by its name, or a file of the user's by its path.

    Raises
    ------
    InputError
        For an unknown name, a file that is not there, cannot be read or holds no atoms, and a map
        without a voxel size or coarser than twice what is asked for.
    """
    if not is_file_of_structure(name):
        return load_density(folder, name, voxel_size_angstrom)
    path = Path(name)
    if not path.is_file():
        raise InputError(
            path, expected="an atomic model (PDB, mmCIF) or a map (MRC)", found="no such file",
            remedy="correct the structure's path, which begins at the project's folder",
        )  # fmt: skip
    stem = path.name.removesuffix(".gz")
    if Path(stem).suffix.lower() in MAPS:
        return made_density(Path(stem).stem, _of_map(path, voxel_size_angstrom))
    values = density_of_atoms(*read_atoms(path), voxel_size_angstrom)
    return made_density(Path(stem).stem, values, _inside(values, voxel_size_angstrom))


def read_atoms(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions `(n, 3)` zyx in angstrom and atomic numbers `(n,)` of a model's first model.

    Waters are left out; an atom counts by its occupancy.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            path, expected="an atomic model in PDB or mmCIF format", found=str(error),
            remedy="download the model again, or give its map as MRC",
        ) from error  # fmt: skip
    structure.remove_waters()
    places, numbers = [], []
    for site in structure[0].all() if len(structure) else []:
        atom = site.atom
        places.append((atom.pos.z, atom.pos.y, atom.pos.x))
        numbers.append(atom.element.atomic_number * atom.occ)
    if not places:
        raise InputError(
            path, expected="atoms", found="none", remedy="give a file that holds coordinates"
        )
    return np.asarray(places), np.asarray(numbers, float)


def density_of_atoms(
    positions_zyx: NDArray[np.float64], weights: NDArray[np.float64], voxel_size_angstrom: float
) -> NDArray[np.float32]:
    """Blurred density `(n, n, n)` of atoms, n odd, their weighted mean in the middle voxel."""
    middle = np.average(positions_zyx, axis=0, weights=weights)
    vox = (positions_zyx - middle) / voxel_size_angstrom
    blur = max(RESOLUTION_ANGSTROM / 2 / voxel_size_angstrom, 0.5)
    half = int(np.ceil(np.linalg.norm(vox, axis=1).max() + 3 * blur)) + 2
    vox = vox + half
    low = np.floor(vox).astype(int)
    share = vox - low
    size = 2 * half + 1
    flat = np.zeros(size**3)
    for corner in product((0, 1), repeat=3):
        part = np.prod(np.where(corner, share, 1 - share), axis=1)
        index = np.ravel_multi_index(tuple((low + corner).T), (size,) * 3)
        flat += np.bincount(index, weights * part, size**3)
    return np.asarray(ndimage.gaussian_filter(flat.reshape((size,) * 3), blur), np.float32)


def _inside(values: NDArray[np.float32], voxel_size_angstrom: float) -> float:
    """Density inside a protein: the 99th percentile of the density averaged over 10 A."""
    wide = ndimage.gaussian_filter(values, MAP_ANGSTROM / voxel_size_angstrom / np.sqrt(12))
    return float(np.percentile(wide[wide > 0.1 * wide.max()], 99))


def _of_map(path: Path, voxel_size_angstrom: float) -> NDArray[np.float32]:
    header = read_header(path)
    size = header.voxel_size_angstrom
    if size is None or size > 2 * voxel_size_angstrom:
        raise InputError(
            path, expected=f"a map with a voxel size of at most {2 * voxel_size_angstrom:g} A",
            found="no voxel size in its header" if size is None else f"{size:g} A",
            remedy="set the map's voxel size, give a finer map or its atomic model, or larger "
            "pixels",
        )  # fmt: skip
    values = np.maximum(np.asarray(open_volume(path, header), np.float32), 0)
    return crop_and_centre(values, scale=voxel_size_angstrom / size)
