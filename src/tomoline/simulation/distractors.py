"""What a tomogram holds beside its particles, and what a picker must leave alone.

Densities are in units of a protein's own (its 99th percentile is 1), relative to vitreous ice.
Shapes are given by distances in nanometres and sampled at voxel centres, softened over one voxel,
so that they are right at any voxel size.

- Membrane: two leaflets of Gaussian profile at a distance `d` from the bilayer's middle,
  `A [exp(-(d-h)^2 / 2 s^2) + exp(-(d+h)^2 / 2 s^2)]`, `h = (thickness - 1 nm) / 2`, `s` = 0.5 nm
  broadened by the voxel's own width (`s^2 + v^2 / 12`, the integral kept). Vesicles are ellipsoids
  (`d` to first order: `(q - 1) q / |M p|`, with `q = |p|` in units of the semi-axes), sheets are
  planes with a wave in them, ending within the ice.
- Gold: balls of 5 to 10 nm and ten times the density: the mean inner potential of gold is some
  25 V above that of ice, protein's some 2 V.
- Contamination: crystals with plane faces, half in the ice's upper or lower surface.
- Filaments: a tube of 25 nm with 13 protofilaments, or a helical rod of two strands and 7 nm,
  slightly bent, from one side of the volume to the other.
- Solvent: Gaussian noise with a correlation length of `SOLVENT_LENGTH_NM`, in the ice where
  nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

Kind = Literal["vesicle", "sheet", "fiducial", "contamination", "filament"]
# Numbers in `Scenery.kinds`.
KINDS: tuple[Kind, ...] = ("vesicle", "sheet", "fiducial", "contamination", "filament")

SOLID = 0.15  # density from which a voxel is taken, as for particles
LEAFLET_SD_NM = 0.5
HEAD_GROUPS_NM = 1.0
SOLVENT_LENGTH_NM = 0.8
TRIES = 6
_CHUNK_VOXELS = 2_000_000

Floats = NDArray[np.float32]
# Density at offsets (z, y, x) in nm from the object's centre; the arrays broadcast.
Shape = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class DistractorSettings:
    """How many of each are wanted (fewer where no room is left), and their sizes."""

    vesicles: int = 0
    vesicle_radius_nm: tuple[float, float] = (12.0, 40.0)
    sheets: int = 0
    membrane_thickness_nm: tuple[float, float] = (4.0, 5.0)
    membrane_density: float = 0.8
    gold_beads: int = 0
    gold_diameter_nm: tuple[float, float] = (5.0, 10.0)
    gold_density: float = 10.0
    contaminants: int = 0
    contaminant_radius_nm: tuple[float, float] = (8.0, 25.0)
    contaminant_density: float = 1.2
    filaments: int = 0
    filament_density: float = 0.9
    solvent_rms: float = 0.0  # of the ice's own density, one of SOLVENT_LENGTH_NM's scale

    @property
    def any_objects(self) -> bool:
        """Whether anything but solvent is wanted."""
        return any((self.vesicles, self.sheets, self.gold_beads, self.contaminants, self.filaments))


@dataclass(frozen=True)
class Ice:
    """The slab that holds everything: thickness and tilt about the volume's middle.

    `height(y, x)` is the middle's z. A thickness of 0 stands for the whole depth.
    """

    shape_zyx: tuple[int, int, int]
    thickness_vox: float = 0.0
    slope_y: float = 0.0
    slope_x: float = 0.0

    @property
    def bounded(self) -> bool:
        """Whether there is empty volume above or below."""
        return 0 < self.thickness_vox < self.shape_zyx[0] or bool(self.slope_y or self.slope_x)

    @property
    def depth_vox(self) -> float:
        """Thickness, or the volume's depth."""
        return self.thickness_vox or float(self.shape_zyx[0])

    def height(self, y: Any, x: Any) -> NDArray[np.float64]:
        """Z of the slab's middle (voxels) at columns y, x."""
        nz, ny, nx = self.shape_zyx
        tilted = self.slope_y * (y - (ny - 1) / 2) + self.slope_x * (x - (nx - 1) / 2)
        return np.asarray((nz - 1) / 2 + tilted)

    def inside(self) -> NDArray[np.bool_]:
        """Voxels (z, y, x) of the slab."""
        nz, ny, nx = self.shape_zyx
        middle = self.height(np.arange(ny)[:, None], np.arange(nx)[None])
        low = np.ceil(middle - self.depth_vox / 2).astype(np.int32)
        high = np.floor(middle + self.depth_vox / 2).astype(np.int32)
        z = np.arange(nz, dtype=np.int32)[:, None, None]
        return np.asarray((z >= low) & (z <= high))


@dataclass(frozen=True)
class Placed:
    """One distractor: what, where (voxels, z y x), and its number in `Scenery.numbers`."""

    kind: Kind
    centre_zyx: NDArray[np.float64]
    number: int


@dataclass
class Scenery:
    """Density and, from 1, kinds and numbers of all distractors `(z, y, x)`; one row for each."""

    density: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    numbers: NDArray[np.uint16]
    placed: list[Placed] = field(default_factory=list)


def make_scenery(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> Scenery:
    """Place distractors in the ice; they do not overlap each other, later ones give way."""
    shape = ice.shape_zyx
    scenery = Scenery(
        np.zeros(shape, np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    )
    makers: list[tuple[int, Callable[..., tuple[Kind, NDArray[np.float64], float, Shape]]]] = [
        (settings.sheets, _sheet),
        (settings.filaments, _filament),
        (settings.vesicles, _vesicle),
        (settings.contaminants, _crystal),
        (settings.gold_beads, _bead),
    ]
    for count, make in makers:
        for _ in range(count):
            for _ in range(TRIES):
                if _stamp(scenery, *make(settings, ice, voxel_nm, rng), ice, voxel_nm):
                    break
    return scenery


def solvent(rms: float, ice: Ice, voxel_nm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Correlated noise of the given RMS in the ice, 0 outside, `(z, y, x)`."""
    noise = rng.standard_normal(ice.shape_zyx, dtype=np.float32)
    ndimage.gaussian_filter(noise, SOLVENT_LENGTH_NM / voxel_nm, output=noise, truncate=2.5)
    noise *= np.float32(rms) / noise.std()
    if ice.bounded:
        noise *= ice.inside()
    return noise


def bilayer_profile(
    distance_nm: Floats, thickness_nm: float, density: float, voxel_nm: float
) -> Floats:
    """Density across a bilayer, from the signed distance to its middle (module's docstring)."""
    half = (thickness_nm - HEAD_GROUPS_NM) / 2
    sd = float(np.hypot(LEAFLET_SD_NM, voxel_nm / np.sqrt(12)))
    height = density * LEAFLET_SD_NM / sd
    # Fine voxels resolve the leaflets; coarse ones see them run together.
    leaflets = np.exp(-0.5 * ((distance_nm - half) / sd) ** 2)
    leaflets += np.exp(-0.5 * ((distance_nm + half) / sd) ** 2)
    return np.asarray(height * leaflets, np.float32)


def _somewhere(
    ice: Ice, rng: np.random.Generator, share: float = 1.0, margin: float = 0.0
) -> NDArray[np.float64]:
    """A place (z, y, x voxels): anywhere across, in the given share of the ice's thickness."""
    _, ny, nx = ice.shape_zyx
    y, x = rng.uniform(-margin, ny - 1 + margin), rng.uniform(-margin, nx - 1 + margin)
    z = float(ice.height(y, x))
    return np.array([z + rng.uniform(-0.5, 0.5) * share * ice.depth_vox, y, x])


def _vesicle(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> tuple[Kind, NDArray[np.float64], float, Shape]:
    largest = 0.45 * ice.depth_vox * voxel_nm
    low, high = (min(r, largest) for r in settings.vesicle_radius_nm)
    axes = rng.uniform(low, high) * rng.uniform(0.8, 1.2, 3)
    matrix = (Rotation.random(rng=rng).as_matrix() / axes[:, None]).astype(np.float32)
    thickness = rng.uniform(*settings.membrane_thickness_nm)
    reach = float(axes.max()) + thickness
    share = max(0.0, 1 - 2 * reach / (ice.depth_vox * voxel_nm))
    centre = _somewhere(ice, rng, share)

    def shape(z: Floats, y: Floats, x: Floats) -> Floats:
        rows = [a * x + b * y + c * z for a, b, c in matrix]
        square = rows[0] ** 2 + rows[1] ** 2 + rows[2] ** 2
        q = np.sqrt(square) + np.float32(1e-6)
        gradient = np.sqrt(sum(
            (matrix[0, k] * rows[0] + matrix[1, k] * rows[1] + matrix[2, k] * rows[2]) ** 2
            for k in range(3)
        )) + np.float32(1e-6)  # fmt: skip
        distance = (q - 1) * q / gradient
        # First order fails deep inside, where the true distance is large anyway.
        distance = np.where(q < 0.3, np.float32(-1e3), distance)
        return bilayer_profile(distance, thickness, settings.membrane_density, voxel_nm)

    return "vesicle", centre, reach / voxel_nm, shape


def _sheet(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> tuple[Kind, NDArray[np.float64], float, Shape]:
    turn, lean = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-25, 25))
    normal = np.array([np.sin(lean), np.cos(lean) * np.cos(turn), np.cos(lean) * np.sin(turn)])
    along = np.array([0.0, -np.sin(turn), np.cos(turn)])
    height, length = rng.uniform(2, 8), rng.uniform(60, 140)
    thickness = rng.uniform(*settings.membrane_thickness_nm)
    half = 0.5 * rng.uniform(0.5, 1.2) * max(ice.shape_zyx[1:]) * voxel_nm
    n, t = normal.astype(np.float32), along.astype(np.float32)

    def shape(z: Floats, y: Floats, x: Floats) -> Floats:
        run = t[1] * y + t[2] * x
        wave = np.float32(height) * np.sin(run * np.float32(2 * np.pi / length))
        distance = n[0] * z + n[1] * y + n[2] * x - wave
        ends = np.clip((half - np.abs(run)) / voxel_nm + 0.5, 0, 1)
        profile = bilayer_profile(distance, thickness, settings.membrane_density, voxel_nm)
        return np.asarray(ends * profile, np.float32)

    return "sheet", _somewhere(ice, rng, 0.3), float("inf"), shape


def _bead(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> tuple[Kind, NDArray[np.float64], float, Shape]:
    radius = 0.5 * rng.uniform(*settings.gold_diameter_nm)

    def shape(z: Floats, y: Floats, x: Floats) -> Floats:
        distance = np.sqrt(z**2 + y**2 + x**2)
        inside = np.clip((radius - distance) / voxel_nm + 0.5, 0, 1)
        return np.asarray(settings.gold_density * inside, np.float32)

    share = max(0.0, 1 - 2 * radius / (ice.depth_vox * voxel_nm))
    return "fiducial", _somewhere(ice, rng, share), radius / voxel_nm + 1, shape


def _crystal(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> tuple[Kind, NDArray[np.float64], float, Shape]:
    radius = rng.uniform(*settings.contaminant_radius_nm)
    radius = min(radius, 0.35 * ice.depth_vox * voxel_nm)  # the ice is not filled by one
    normals = rng.standard_normal((10, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    faces = radius * rng.uniform(0.6, 1.0, len(normals))
    centre = _somewhere(ice, rng, 0.0)
    centre[0] += rng.choice([-0.5, 0.5]) * ice.depth_vox

    def shape(z: Floats, y: Floats, x: Floats) -> Floats:
        depth = radius - np.sqrt(z**2 + y**2 + x**2)
        for (a, b, c), face in zip(normals.astype(np.float32), faces, strict=True):
            depth = np.minimum(depth, np.float32(face) - (a * z + b * y + c * x))
        inside = np.clip(depth / voxel_nm + 0.5, 0, 1)
        return np.asarray(settings.contaminant_density * inside, np.float32)

    return "contamination", centre, radius / voxel_nm + 1, shape


def _filament(
    settings: DistractorSettings, ice: Ice, voxel_nm: float, rng: np.random.Generator
) -> tuple[Kind, NDArray[np.float64], float, Shape]:
    turn, rise = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-4, 4))
    axis = np.array([np.sin(rise), np.cos(rise) * np.sin(turn), np.cos(rise) * np.cos(turn)])
    side = np.array([0.0, np.cos(turn), -np.sin(turn)])
    up = np.cross(axis, side)
    e, n, b = (v.astype(np.float32) for v in (axis, side, up))
    bend = np.float32(rng.uniform(-1, 1) / 1500)  # curvature, 1 / nm
    tube = ice.depth_vox * voxel_nm > 35 and rng.random() < 0.5
    outer = 12.5 if tube else 3.6

    def shape(z: Floats, y: Floats, x: Floats) -> Floats:
        s = e[0] * z + e[1] * y + e[2] * x
        u = n[0] * z + n[1] * y + n[2] * x - bend / 2 * s**2
        v = b[0] * z + b[1] * y + b[2] * x
        near = np.hypot(u, v)
        out = np.zeros(near.shape, np.float32)
        at = near < outer + 2 * voxel_nm  # the rest is nothing, and most of the volume
        u, v, s, near = u[at], v[at], np.broadcast_to(s, near.shape)[at], near[at]
        if tube:
            wall = np.clip(np.minimum(outer - near, near - (outer - 4.5)) / voxel_nm + 0.5, 0, 1)
            strands = np.cos(13 * np.arctan2(v, u)) * np.cos(2 * np.pi * s / 4.0)
            out[at] = wall * (0.8 + 0.2 * strands)
        else:
            phase = 2 * np.pi * s / 72.0
            cu, cv = 1.6 * np.cos(phase), 1.6 * np.sin(phase)
            beads = 0.85 + 0.15 * np.cos(2 * np.pi * s / 5.5)
            width = 2 * (1.5**2 + voxel_nm**2 / 12)
            out[at] = beads * sum(
                np.exp(-((u - k * cu) ** 2 + (v - k * cv) ** 2) / width) for k in (-1, 1)
            )
        return np.float32(settings.filament_density) * out

    share = max(0.0, 1 - 2 * outer / (ice.depth_vox * voxel_nm))
    return "filament", _somewhere(ice, rng, share, -0.2 * min(ice.shape_zyx[1:])), np.inf, shape


def _stamp(
    scenery: Scenery, kind: Kind, centre: NDArray[np.float64], reach_vox: float, shape: Shape,
    ice: Ice, voxel_nm: float,
) -> bool:  # fmt: skip
    """Add one object unless it meets another or lies outside; whether it was added."""
    whole = scenery.density.shape
    low = np.maximum(np.floor(np.maximum(centre - reach_vox, 0)), 0).astype(int)
    high = np.minimum(np.ceil(np.minimum(centre + reach_vox, whole)) + 1, whole).astype(int)
    if (low >= high).any():
        return False
    parts = []
    count = 0
    for slab in _slabs(low, high):
        grids = [
            ((np.arange(p.start, p.stop) - c) * voxel_nm).astype(np.float32)
            for p, c in zip(slab, centre, strict=True)
        ]
        z, y, x = np.ix_(*grids)
        values = shape(z, y, x)
        if ice.bounded and kind in {"sheet", "filament", "vesicle"}:
            values = values * _ice_of(ice, slab)
        solid = values > SOLID
        if (scenery.kinds[slab].astype(bool) & solid).any():
            return False
        count += int(solid.sum())
        parts.append((slab, values, solid))
    if not count:
        return False
    number = len(scenery.placed) + 1
    for slab, values, solid in parts:
        scenery.density[slab] += values
        scenery.kinds[slab][solid] = KINDS.index(kind) + 1
        scenery.numbers[slab][solid] = number
    scenery.placed.append(Placed(kind, centre, number))
    return True


def _ice_of(ice: Ice, slab: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    z, y, x = np.ogrid[slab]
    return np.asarray(np.abs(z - ice.height(y, x)) <= ice.depth_vox / 2)


def _slabs(low: NDArray[np.int64], high: NDArray[np.int64]) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a box into slabs along z, so that a large volume needs no arrays of its own size."""
    area = int(np.prod(high[1:] - low[1:]))
    step = max(1, _CHUNK_VOXELS // area)
    for start in range(low[0], high[0], step):
        yield (
            slice(start, min(start + step, high[0])), slice(low[1], high[1]),
            slice(low[2], high[2]),
        )  # fmt: skip
