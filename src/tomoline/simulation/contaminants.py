"""What spoils a micrograph: carbon, crystals of ice, dust and gold, each with its true mask.

Every kind is a thickness map (nm) over the image and a material. With `t` the thickness, V the
mean inner potential above that of the ice it displaces, and L the length after which 1/e of the
electrons is left in the image (the others were scattered inelastically or stopped by the objective
aperture), it shifts the phase by `sigma_e V t` and leaves `exp(-t / L)` of the electrons.

- Carbon: the film about a hole of 1 to 2.6 um (diameter), whose edge is a circle; amorphous.
- Ice crystals: polyhedra, their projected thickness the least of a few planes; Bragg scattering
  stops much of the beam, differently in each.
- Dust: irregular patches, such as frozen ethane or condensed contamination, where a smooth random
  field about a middle lies above a level; amorphous.
- Gold: balls of 5 to 15 nm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Kind = Literal["carbon", "ice", "dust", "gold"]
# Grey value of a kind in the masks; 0 is clean.
KINDS: tuple[Kind, ...] = ("carbon", "ice", "dust", "gold")
LEAST_NM = 1.0  # thinner than this is not masked
TRIES = 12

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Electron optics of a material at 300 kV (module's docstring)."""

    potential_v: float
    attenuation_nm: float
    granularity: float = 0.0  # V nm^1.5; see `tomoline.simulation.micrograph`


# Potentials less the ice's 4.5 V; carbon of 2 g/cm3 has some 100 atoms a nm^3.
MATERIALS: dict[Kind, Material] = {
    "carbon": Material(potential_v=5.0, attenuation_nm=120.0, granularity=0.7),
    "ice": Material(potential_v=0.5, attenuation_nm=150.0),
    "dust": Material(potential_v=2.0, attenuation_nm=160.0, granularity=0.4),
    "gold": Material(potential_v=25.0, attenuation_nm=25.0),
}


@dataclass(frozen=True, kw_only=True)
class ContaminantSettings:
    """How many of each are wanted in an image; carbon lies in this share of them."""

    carbon_share: float = 0.0
    ice_crystals: int = 0
    dust: int = 0
    gold: int = 0
    hole_diameter_nm: tuple[float, float] = (1000.0, 2600.0)
    film_nm: tuple[float, float] = (10.0, 25.0)
    crystal_radius_nm: tuple[float, float] = (12.0, 60.0)
    dust_radius_nm: tuple[float, float] = (10.0, 50.0)
    gold_diameter_nm: tuple[float, float] = (5.0, 15.0)


@dataclass
class Contamination:
    """Thickness (nm) and, by kind, number of objects; `mask` holds the kind, from 1."""

    thickness_nm: dict[Kind, Floats]
    mask: NDArray[np.uint8]
    numbers: dict[Kind, int]


def contaminate(
    shape: tuple[int, int], pixel_nm: float, settings: ContaminantSettings,
    rng: np.random.Generator,
) -> Contamination:  # fmt: skip
    """Draw contaminants for an image `(y, x)`; none of an image's objects meets another's kind."""
    found = Contamination(
        {k: np.zeros(shape, np.float32) for k in KINDS}, np.zeros(shape, np.uint8),
        dict.fromkeys(KINDS, 0),
    )  # fmt: skip
    if rng.random() < settings.carbon_share:
        _add(found, "carbon", _film(shape, pixel_nm, settings, rng))
    makers: list[tuple[Kind, int, Callable[..., Floats]]] = [
        ("ice", settings.ice_crystals, _crystal), ("dust", settings.dust, _patch),
        ("gold", settings.gold, _ball),
    ]  # fmt: skip
    for kind, count, make in makers:
        for _ in range(count):
            for _ in range(TRIES):
                if _add(found, kind, make(shape, pixel_nm, settings, rng)):
                    break
    return found


def _add(found: Contamination, kind: Kind, thickness: Floats) -> bool:
    """Add an object unless it is not to be seen or lies on one of another kind."""
    there = thickness > LEAST_NM
    own = KINDS.index(kind) + 1
    others = (found.mask > 0) & (found.mask != own)
    if not there.any() or (others & there).any():
        return False
    found.thickness_nm[kind] = np.maximum(found.thickness_nm[kind], thickness)
    found.mask[there] = own
    found.numbers[kind] += 1
    return True


def _offsets(
    shape: tuple[int, int], pixel_nm: float, centre_yx: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Distance in nm from a place, along y `(ny, 1)` and x `(1, nx)`."""
    y, x = ((np.arange(n) - c) * pixel_nm for n, c in zip(shape, centre_yx, strict=True))
    return y.astype(np.float32)[:, None], x.astype(np.float32)[None]


def _somewhere(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(rng.uniform(0, 1, 2) * (np.asarray(shape) - 1))


def _film(
    shape: tuple[int, int], pixel_nm: float, settings: ContaminantSettings,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    """Film about a hole whose edge crosses the image, 3 to 60 per cent of it under carbon."""
    film = rng.uniform(*settings.film_nm)
    for _ in range(4 * TRIES):
        radius = 0.5 * rng.uniform(*settings.hole_diameter_nm)
        turn = rng.uniform(0, 2 * np.pi)
        away = (radius + rng.uniform(-0.5, 0.5) * min(shape) * pixel_nm) / pixel_nm
        middle = (np.asarray(shape) - 1) / 2 + away * np.array([np.sin(turn), np.cos(turn)])
        y, x = _offsets(shape, pixel_nm, middle)
        # The edge is rough and rounded over some nanometres.
        rough = radius * (1 + 0.004 * np.sin(9 * np.arctan2(y, x) + turn))
        share = np.clip((np.hypot(y, x) - rough) / 4.0 + 0.5, 0, 1)
        if 0.03 < share.mean() < 0.6:
            return np.asarray(film * share, np.float32)
    return np.zeros(shape, np.float32)


def _crystal(
    shape: tuple[int, int], pixel_nm: float, settings: ContaminantSettings,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    radius = rng.uniform(*settings.crystal_radius_nm)
    y, x = _offsets(shape, pixel_nm, _somewhere(shape, rng))
    thick = np.full(shape, np.float32(rng.uniform(0.6, 1.2) * radius))
    turns = rng.uniform(0, 2 * np.pi) + np.arange(6) * np.pi / 3 + rng.normal(0, 0.15, 6)
    for turn in turns:
        face, slope = radius * rng.uniform(0.75, 1.0), rng.uniform(0.8, 4.0)
        depth = face - (np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y)
        thick = np.minimum(thick, np.float32(slope) * depth.astype(np.float32))
    return np.asarray(np.maximum(thick, 0), np.float32)


def _patch(
    shape: tuple[int, int], pixel_nm: float, settings: ContaminantSettings,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    radius = rng.uniform(*settings.dust_radius_nm)
    centre = _somewhere(shape, rng)
    half = int(np.ceil(2.2 * radius / pixel_nm))
    edge = 2 * half + 1
    field = ndimage.gaussian_filter(rng.standard_normal((edge, edge)), 0.35 * radius / pixel_nm)
    y, x = _offsets((edge, edge), pixel_nm, np.array([half, half], float))
    level = 1 - (np.hypot(y, x) / radius) ** 2 + 0.9 * field / field.std()
    patch = np.clip(level, 0, 1.5) * (np.hypot(y, x) < 2.1 * radius)
    out = np.zeros(shape, np.float32)
    low = np.rint(centre).astype(int) - half
    a, b = np.maximum(low, 0), np.minimum(low + edge, shape)
    cut = tuple(slice(p - q, r - q) for p, q, r in zip(a, low, b, strict=True))
    out[a[0] : b[0], a[1] : b[1]] = rng.uniform(0.4, 1.0) * radius * patch[cut]
    return out


def _ball(
    shape: tuple[int, int], pixel_nm: float, settings: ContaminantSettings,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    radius = 0.5 * rng.uniform(*settings.gold_diameter_nm)
    y, x = _offsets(shape, pixel_nm, _somewhere(shape, rng))
    return np.asarray(2 * np.sqrt(np.maximum(radius**2 - y**2 - x**2, 0)), np.float32)
