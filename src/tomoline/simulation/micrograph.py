"""A micrograph of single particles with its truth: places, and what is contaminated.

Structures lie in random, uniformly distributed views in ice whose thickness t varies over the
image. With `phi = sigma_e V` the phase shift, V the projected potential (V nm) above that of the
ice, an image in electrons a pixel is

    I = N p^2 exp(-t / L_ice) T (1 - 2 F^-1[CTF(k) MTF(f) D(k) F[phi]]) + n,

- particles: V is the projection of their density, 1 being `PROTEIN_V` above the ice;
- amorphous: ice, carbon and dust add white noise to V of SD `g sqrt(t) / p`, p the pixel in nm.
  `g^2 = V_0^2 a S`: V_0 the mean inner potential, a the volume of an independent scatterer, S how
  far the material is from a gas (water 0.06 at low frequency);
- contaminants (`tomoline.simulation.contaminants`): their V, and `T = exp(-t / L)`;
- CTF, MTF and damage D as for tilt series (`tomoline.simulation.projection`), D averaged over the
  exposure of N e/angstrom^2, and for particles only;
- n: shot noise, Gaussian of variance `I`; where an SNR is given, scaled to it.

The SNR is the variance of the particles' image, behind CTF, MTF and damage, over that of n, both
within the circles about the particles. Amorphous noise and contaminants count as neither. Protein
is dark. Defocus does not vary within an image, and the microscope has no astigmatism.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial.transform import Rotation

from tomoline.simulation.contaminants import (
    KINDS,
    MATERIALS,
    ContaminantSettings,
    Contamination,
    contaminate,
)
from tomoline.simulation.densities import Density
from tomoline.simulation.phantom import rotate_density
from tomoline.simulation.projection import (
    TiltSettings,
    contrast_transfer,
    damage,
    detector_transfer,
)

SIGMA_RAD_PER_V_NM = 6.526e-3  # interaction constant at 300 kV
PROTEIN_V = 2.0
ICE_ATTENUATION_NM = 300.0
ICE_GRANULARITY = 0.19  # V nm^1.5: 4.5 V, 0.03 nm^3 a molecule, S = 0.06
LEAST_TRANSMISSION = 0.02  # phases beyond the linear formula do not make negative images
EXPOSURE_PARTS = 8
RIM_NM = 20.0
TRIES = 40
REFERENCE_VIEWS = 12  # that give an image without particles its noise

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MicrographSettings:
    """How one micrograph is made."""

    shape_yx: tuple[int, int] = (1024, 1024)
    pixel_size_angstrom: float = 5.0
    particles: int = 100  # wanted; fewer where no room is left
    gap: float = 0.9  # least distance of two centres in mean diameters
    amplitude_jitter: float = 0.1
    defocus_um: float = 2.0
    dose: float = 40.0  # electrons a square angstrom
    snr: float | None = None  # instead of the dose's
    mtf_sigma_nyquist: float = 0.5
    ice_nm: float = 40.0
    ice_gradient: float = 0.3  # relative change from the middle to a corner, at most
    amorphous: bool = True
    contaminants: ContaminantSettings = field(default_factory=ContaminantSettings)

    @property
    def pixel_nm(self) -> float:
        """Edge of a pixel."""
        return self.pixel_size_angstrom / 10

    @property
    def optics(self) -> TiltSettings:
        """The same microscope in the words of tilt series."""
        return TiltSettings(
            defocus_um=self.defocus_um, voxel_size_angstrom=self.pixel_size_angstrom,
            phase_flipped=False, mtf_sigma_nyquist=self.mtf_sigma_nyquist,
        )  # fmt: skip


@dataclass
class SimulatedMicrograph:
    """An image `(y, x)` in electrons a pixel, and all that is known of it.

    `centres_yx` (pixels, 0-based, an integer is a pixel's centre), `classes` and `diameters_px`
    have a row a particle. `signal` is the particles' image and `noise_sd` that of n, both on the
    image's scale; `ice_nm` the ice's thickness.
    """

    settings: MicrographSettings
    image: Floats
    signal: Floats
    noise_sd: Floats
    ice_nm: Floats
    contamination: Contamination
    snr: float
    centres_yx: list[NDArray[np.float64]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    diameters_px: list[float] = field(default_factory=list)


def simulate_micrograph(
    densities: list[Density], settings: MicrographSettings, *, seed: int
) -> SimulatedMicrograph:
    """Make one micrograph; the densities have the settings' pixel size."""
    # Draws of their own: what varies in one leaves the others as they are.
    places, beside, grain, shot = np.random.default_rng(seed).spawn(4)
    shape = settings.shape_yx
    spoilt = contaminate(shape, settings.pixel_nm, settings.contaminants, beside)
    centres, labels = _place(densities, settings, spoilt.mask > 0, places)
    projected = project_particles(densities, labels, centres, settings, places)
    ice = _ice(settings, beside)
    wide = _with_rim(settings)
    transfer = transfer_function(wide, settings)
    flux = _flux(settings, ice, spoilt)
    contrast = _recorded(_phase(projected), settings, transfer)
    rest = _beside(settings, ice, spoilt, grain)
    contrast_beside = _recorded(rest, settings, transfer_function(wide, settings, damaged=False))
    total = np.maximum(1 + contrast + contrast_beside, LEAST_TRANSMISSION)
    signal, noise_sd = flux * contrast, np.sqrt(flux * total)
    diameters = [2 * densities[k].radius_vox for k in labels]
    within = _circles(shape, centres, diameters)
    reference = signal, within
    if not centres:
        reference = _usual(densities, settings, transfer, float(flux.mean()), places)
    variance = float(reference[0][reference[1]].var())
    snr = variance / float(np.square(noise_sd[within if centres else slice(None)]).mean())
    if settings.snr is not None:
        noise_sd *= np.float32(np.sqrt(snr / settings.snr))
        snr = settings.snr
    image = flux * total + noise_sd * shot.standard_normal(shape, dtype=np.float32)
    return SimulatedMicrograph(
        settings, np.asarray(image, np.float32), signal, np.asarray(noise_sd, np.float32), ice,
        spoilt, snr, centres, [densities[k].name for k in labels], diameters,
    )  # fmt: skip


def project_particles(
    densities: list[Density],
    labels: list[int],
    centres_yx: list[NDArray[np.float64]],
    settings: MicrographSettings,
    rng: np.random.Generator,
) -> Floats:
    """Projected density `(y, x)`, in nm of protein, of structures in uniformly random views."""
    out = np.zeros(settings.shape_yx, np.float32)
    for label, centre in zip(labels, centres_yx, strict=True):
        values = densities[label].values
        place = np.rint(centre).astype(int)
        shift = np.array([0.0, *(centre - place)])
        turned = rotate_density(values, Rotation.random(rng=rng), shift).sum(0)
        gain = np.exp(settings.amplitude_jitter * rng.standard_normal())
        half = values.shape[0] // 2
        low, high = place - half, place + half + 1
        a, b = np.maximum(low, 0), np.minimum(high, out.shape)
        own = tuple(slice(p - q, r - q) for p, q, r in zip(a, low, b, strict=True))
        out[a[0] : b[0], a[1] : b[1]] += np.float32(gain * settings.pixel_nm) * turned[own]
    return out


def transfer_function(
    shape: tuple[int, int], settings: MicrographSettings, *, damaged: bool = True
) -> Floats:
    """CTF, MTF and, for particles, mean damage on the `rfft2` grid of an image `(y, x)`."""
    optics = settings.optics
    transfer = detector_transfer(shape, optics)
    if settings.defocus_um > 0:
        transfer = transfer * contrast_transfer(shape, optics)
    if not damaged:
        return np.asarray(transfer, np.float32)
    doses = settings.dose * (np.arange(EXPOSURE_PARTS) + 0.5) / EXPOSURE_PARTS
    left = np.mean([damage(shape, optics, float(dose)) for dose in doses], axis=0)
    return np.asarray(transfer * left, np.float32)


def _phase(projected_nm: Floats) -> Floats:
    return np.asarray(SIGMA_RAD_PER_V_NM * PROTEIN_V * projected_nm, np.float32)


def _recorded(phase: Floats, settings: MicrographSettings, transfer: Floats) -> Floats:
    """Contrast of a weak phase object: dark where the phase is high and the transfer positive.

    `transfer` belongs to an image with a rim (`_with_rim`), mirrored, so that what leaves the image
    on one side does not enter it on the other.
    """
    rim = [((n - m) // 2, n - m - (n - m) // 2)
           for n, m in zip(_with_rim(settings), phase.shape, strict=True)]  # fmt: skip
    wide = np.pad(phase, rim, mode="symmetric")
    contrast = -2 * fft.irfft2(fft.rfft2(wide) * transfer, s=wide.shape)
    cut = tuple(slice(a, a + n) for (a, _), n in zip(rim, phase.shape, strict=True))
    return np.asarray(contrast[cut], np.float32)


def _with_rim(settings: MicrographSettings) -> tuple[int, int]:
    """Size of an image with room for what the CTF spreads: lambda dz k at 1 / (10 A), and more."""
    rim = min(int(np.ceil(RIM_NM / settings.pixel_nm)), *settings.shape_yx)
    ny, nx = (fft.next_fast_len(n + 2 * rim, real=True) for n in settings.shape_yx)
    return min(ny, 3 * settings.shape_yx[0]), min(nx, 3 * settings.shape_yx[1])


def _place(
    densities: list[Density], settings: MicrographSettings, spoilt: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[list[NDArray[np.float64]], list[int]]:  # fmt: skip
    """Centres within the image, apart from each other, and off what is contaminated."""
    centres: list[NDArray[np.float64]] = []
    labels: list[int] = []
    radii = np.array([d.radius_vox for d in densities])
    last = np.asarray(settings.shape_yx) - 1
    for k in range(settings.particles):
        label = k % len(densities)
        for _ in range(TRIES):
            centre = rng.uniform(0, 1, 2) * last
            y, x = np.rint(centre).astype(int)
            apart = settings.gap * (radii[labels] + radii[label])
            away = np.linalg.norm(np.reshape(centres, (-1, 2)) - centre, axis=1)
            if not spoilt[y, x] and (away >= apart).all():
                centres.append(centre)
                labels.append(label)
                break
    return centres, labels


def _ice(settings: MicrographSettings, rng: np.random.Generator) -> Floats:
    """Thickness in nm: a wedge and a lens, as ice that is thinner in the middle of its hole."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in settings.shape_yx)
    turn, slope, bow = rng.uniform(0, 2 * np.pi), *rng.uniform(0, 1, 2)
    wedge = (np.sin(turn) * y[:, None] + np.cos(turn) * x[None]) / np.sqrt(2)
    lens = (y[:, None] ** 2 + x[None] ** 2) / 2 - 1 / 3
    relative = 1 + settings.ice_gradient * (slope * wedge + bow * lens) / max(slope + bow, 1)
    return np.asarray(settings.ice_nm * np.maximum(relative, 0.1), np.float32)


def _flux(settings: MicrographSettings, ice_nm: Floats, spoilt: Contamination) -> Floats:
    """Electrons a pixel behind ice and contaminants."""
    exponent = ice_nm / ICE_ATTENUATION_NM
    for kind in KINDS:
        exponent = exponent + spoilt.thickness_nm[kind] / MATERIALS[kind].attenuation_nm
    electrons = settings.dose * settings.pixel_size_angstrom**2
    return np.asarray(electrons * np.exp(-exponent), np.float32)


def _beside(
    settings: MicrographSettings, ice_nm: Floats, spoilt: Contamination, rng: np.random.Generator
) -> Floats:
    """Phase of contaminants, and of the grain of ice and amorphous contaminants."""
    potential = np.zeros(settings.shape_yx, np.float32)
    variance = ICE_GRANULARITY**2 * ice_nm
    for kind in KINDS:
        material, thickness = MATERIALS[kind], spoilt.thickness_nm[kind]
        potential += np.float32(material.potential_v) * thickness
        variance = variance + material.granularity**2 * thickness
    noise = rng.standard_normal(settings.shape_yx, dtype=np.float32)
    if settings.amorphous:
        potential += noise * np.sqrt(variance) / np.float32(settings.pixel_nm)
    return np.asarray(SIGMA_RAD_PER_V_NM * potential, np.float32)


def _circles(
    shape: tuple[int, int], centres_yx: list[NDArray[np.float64]], diameters_px: list[float]
) -> NDArray[np.bool_]:
    """Pixels within half a diameter of a centre."""
    inside = np.zeros(shape, bool)
    for (cy, cx), diameter in zip(centres_yx, diameters_px, strict=True):
        half = int(np.ceil(diameter / 2))
        y = np.arange(max(int(cy) - half, 0), min(int(cy) + half + 2, shape[0]))[:, None]
        x = np.arange(max(int(cx) - half, 0), min(int(cx) + half + 2, shape[1]))[None]
        inside[y, x] |= np.hypot(y - cy, x - cx) <= diameter / 2
    return inside


def _usual(
    densities: list[Density], settings: MicrographSettings, transfer: Floats, flux: float,
    rng: np.random.Generator,
) -> tuple[Floats, NDArray[np.bool_]]:  # fmt: skip
    """Signal and circles of the usual particles, for an image that holds none."""
    labels = [k % len(densities) for k in range(REFERENCE_VIEWS)]
    centres = list(rng.uniform(0.1, 0.9, (REFERENCE_VIEWS, 2)) * settings.shape_yx)
    projected = project_particles(densities, labels, centres, settings, rng)
    diameters = [2 * densities[k].radius_vox for k in labels]
    within = _circles(settings.shape_yx, centres, diameters)
    return np.float32(flux) * _recorded(_phase(projected), settings, transfer), within
