"""From a phantom to a noisy tilt series.

The tilt axis is y, so every (z, x) plane is projected by the same sparse matrix: pixel
`u = (x - cx) cos(t) + (z - cz) sin(t) + cx`, shared linearly between its two neighbours.

With `f` the frequency (cycles a pixel; `k = f / voxel` in 1/angstrom) and `t` the tilt, an image is

    I_t = -F^-1[ CTF_t(k) MTF(f) D_t(k) e^(-2 pi i f.d_t) F[R_t P_t] ] + sd_t n,

`P_t` the projection at the true tilt (nominal plus an error of `tilt_error_sd_deg`), `n` white
noise of variance 1, and

- contrast transfer: `CTF(k) = sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + asin(A))`, A = 0.07,
  Cs = 2.7 mm, 300 kV; its absolute value where phases were flipped. The defocus `dz` varies from
  tilt to tilt by `defocus_sd_um`, and with `defocus_ramp` across a tilted image as
  `dz - u tan(t)`, u the distance from the tilt axis;
- detector: `MTF(f) = exp(-mtf_sigma_nyquist (f / f_Nyquist)^2)`, on the signal only;
- radiation damage: `D(k) = exp(-N / (2 N_e(k)))`, N the dose so far in e/angstrom^2 (tilts in the
  order of their absolute value), `N_e = 0.245 k^-1.665 + 2.81` (Grant and Grigorieff, 2015, at
  300 kV). With `dose_weighted` the finished image is multiplied by D(k) once more, as programs do;
- alignment: R_t turns by `rotation_sd_deg` about the image's middle; `d_t` is random
  (`shift_sd_vox`) plus a slow drift of amplitude `drift_vox`, a sine of random phase over the
  series, less its mean;
- noise: `sd_t = sd_0 (1 / cos t)^dose_exponent exp(T (1 / cos t - 1) / (2 L))`: at a fixed dose a
  tilt the path through a slab of thickness T is longer and fewer electrons arrive, L the
  `mean_free_path_nm`; images are on the scale of their mean, so the signal stays and the noise
  grows. `sd_0^2 = var / snr`: the SNR is the variance of the particles' untilted image as it is
  recorded, behind CTF and MTF and undamaged, over that of its noise. Neither gold nor membranes
  nor solvent count as signal. (Without CTF and MTF that is the projection's own variance. A
  defocused image keeps a small part of it, and noise set by the whole would hide everything.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse

RELATIVISTIC_WAVELENGTH_ANGSTROM = {300: 0.0196875, 200: 0.0250793}
SPHERICAL_ABERRATION_ANGSTROM = 2.7e7
RAMP_LEVELS = 7

Complexes = NDArray[np.complexfloating]


@dataclass(frozen=True, kw_only=True)
class TiltSettings:
    """Microscope and tilt scheme; 0 leaves an effect out."""

    tilt_min_deg: float = -60.0
    tilt_max_deg: float = 60.0
    tilt_step_deg: float = 3.0
    missing_tilts: tuple[int, ...] = ()  # places in the series that were lost
    snr: float = 0.05  # variance of the signal over variance of the noise, in the projections
    defocus_um: float = 0.0  # 0: no contrast transfer function
    defocus_sd_um: float = 0.0
    defocus_ramp: bool = False
    phase_flipped: bool = True  # the CTF's sign was corrected before reconstruction
    voxel_size_angstrom: float = 10.0
    mtf_sigma_nyquist: float = 0.0  # detector blur of signal: exp(-(f/f_nyq)^2 * this)
    shift_sd_vox: float = 0.0  # alignment error of each image, SD per axis
    rotation_sd_deg: float = 0.0
    tilt_error_sd_deg: float = 0.0
    drift_vox: float = 0.0
    dose_exponent: float = 0.5  # noise SD grows as (1 / cos tilt) ** this
    mean_free_path_nm: float = 0.0
    dose_per_tilt: float = 0.0  # electrons a square angstrom
    dose_weighted: bool = False
    inverted: bool = False  # particles bright

    @property
    def tilts_deg(self) -> NDArray[np.float64]:
        """Tilt angles, both ends included where the step divides the range."""
        count = int((self.tilt_max_deg - self.tilt_min_deg) / self.tilt_step_deg + 1e-6)
        every = np.asarray(self.tilt_min_deg + self.tilt_step_deg * np.arange(count + 1), float)
        return np.delete(every, [k for k in self.missing_tilts if k < len(every)])

    @property
    def dose_before(self) -> NDArray[np.float64]:
        """Dose (e/angstrom^2) when each image is half recorded, by the tilts' absolute values."""
        order = np.argsort(np.abs(self.tilts_deg), kind="stable")
        dose = np.empty(len(order))
        dose[order] = self.dose_per_tilt * (np.arange(len(order)) + 0.5)
        return dose


def projection_matrix(nz: int, nx: int, tilts_deg: NDArray[np.float64]) -> sparse.csc_matrix:
    """Matrix `(n_tilts * nx, nz * nx)` that projects a flattened (z, x) plane at every tilt."""
    z, x = np.meshgrid(np.arange(nz) - (nz - 1) / 2, np.arange(nx) - (nx - 1) / 2, indexing="ij")
    tilts = np.deg2rad(tilts_deg)
    u = np.outer(x, np.cos(tilts)) + np.outer(z, np.sin(tilts)) + (nx - 1) / 2  # (cells, tilts)
    low = np.floor(u)
    share = (u - low).astype(np.float32)
    low = low.astype(np.int32)
    pixel = np.stack([low, low + 1], axis=-1)
    weight = np.stack([1 - share, share], axis=-1)
    weight[(pixel < 0) | (pixel >= nx)] = 0
    # Every cell has two entries a tilt, in the order of rows: the columns need no sorting.
    rows = np.clip(pixel, 0, nx - 1) + (np.arange(len(tilts), dtype=np.int32) * nx)[:, None]
    starts = np.arange(nz * nx + 1, dtype=np.int64) * (2 * len(tilts))
    return sparse.csc_matrix(
        (weight.ravel(), rows.ravel(), starts), shape=(len(tilts) * nx, nz * nx)
    )


def project(matrix: sparse.csc_matrix, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Projections `(n_tilts, nx, ny)` of a volume `(z, y, x)`."""
    nz, ny, nx = volume.shape
    flat = np.ascontiguousarray(volume.transpose(0, 2, 1)).reshape(nz * nx, ny)
    return np.asarray(matrix @ flat, np.float32).reshape(-1, nx, ny)


def true_tilts_deg(settings: TiltSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the tilts at which images were taken, those of the settings with their errors."""
    nominal = settings.tilts_deg
    if not settings.tilt_error_sd_deg:
        return nominal
    return nominal + settings.tilt_error_sd_deg * rng.standard_normal(len(nominal))


def squared_frequencies(
    shape: tuple[int, int], voxel_size_angstrom: float = 1.0
) -> NDArray[np.float64]:
    """Squared frequency on the `rfft2` grid of an image `(nx, ny)`: 1/angstrom^2, or 1/pixel^2."""
    fx = fft.fftfreq(shape[0])[:, None] / voxel_size_angstrom
    fy = fft.rfftfreq(shape[1])[None] / voxel_size_angstrom
    return np.asarray(fx**2 + fy**2)


def contrast_transfer(
    shape: tuple[int, int], settings: TiltSettings, amplitude_contrast: float = 0.07,
    defocus_um: float | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """CTF on the `rfft2` grid of an image `(nx, ny)`: 1 at low frequency means dark protein.

    `defocus_um` stands in for the settings' own.
    """
    k2 = squared_frequencies(shape, settings.voxel_size_angstrom)
    wavelength = RELATIVISTIC_WAVELENGTH_ANGSTROM[300]
    defocus = settings.defocus_um if defocus_um is None else defocus_um
    chi = np.pi * wavelength * defocus * 1e4 * k2
    chi -= 0.5 * np.pi * SPHERICAL_ABERRATION_ANGSTROM * wavelength**3 * k2**2
    ctf = np.sin(chi + np.arcsin(amplitude_contrast))
    return np.asarray(np.abs(ctf) if settings.phase_flipped else ctf, np.float32)


def detector_transfer(shape: tuple[int, int], settings: TiltSettings) -> NDArray[np.float64]:
    """MTF on the `rfft2` grid of an image `(nx, ny)`."""
    return np.asarray(np.exp(-settings.mtf_sigma_nyquist * 4 * squared_frequencies(shape)))


def damage(shape: tuple[int, int], settings: TiltSettings, dose: float) -> NDArray[np.float64]:
    """What is left of the signal after a dose in e/angstrom^2, on the `rfft2` grid."""
    k = np.sqrt(squared_frequencies(shape, settings.voxel_size_angstrom))
    k[0, 0] = np.inf  # the mean is not damaged
    critical = 0.245 * k**-1.665 + 2.81
    critical[0, 0] = np.inf
    return np.asarray(np.exp(-dose / (2 * critical)))


def noise_growth(settings: TiltSettings, thickness_nm: float = 0.0) -> NDArray[np.float64]:
    """SD of each image's noise relative to an untilted one's (module's docstring)."""
    path = 1 / np.cos(np.deg2rad(settings.tilts_deg))
    growth = path**settings.dose_exponent
    if settings.mean_free_path_nm:
        growth = growth * np.exp(thickness_nm * (path - 1) / (2 * settings.mean_free_path_nm))
    return np.asarray(growth)


def recorded_sd(image: NDArray[np.float32], settings: TiltSettings) -> float:
    """SD of a projection (x, y) behind the settings' CTF and MTF, without noise."""
    if settings.defocus_um <= 0 and settings.mtf_sigma_nyquist <= 0:
        return float(image.std())
    spectrum = fft.rfft2(image) * detector_transfer(image.shape, settings)
    shown = _defocused(spectrum, image.shape, settings, settings.defocus_um, 0.0)
    return float(shown.std())


def tilt_series(
    projections: NDArray[np.float32],
    settings: TiltSettings,
    rng: np.random.Generator,
    *,
    signal: NDArray[np.float32] | None = None,
    thickness_nm: float = 0.0,
) -> NDArray[np.float32]:
    """Contrast transfer, damage, alignment error, detector and noise on projections (t, x, y).

    Particles come out dark (negative), or bright where `inverted`. `signal` (x, y) is the
    projection that the SNR refers to; without it, the one in the middle. `thickness_nm` is that
    of the ice.
    """
    n, nx, ny = projections.shape
    fx, fy = fft.fftfreq(nx)[:, None], fft.rfftfreq(ny)[None]
    slow = rng.spawn(1)[0]  # draws of its own: the noise stays whatever else varies
    drift = _drift(n, settings, slow)
    turns = np.asarray(settings.rotation_sd_deg * slow.standard_normal(n))
    defoci = np.asarray(settings.defocus_um + settings.defocus_sd_um * slow.standard_normal(n))
    detector = detector_transfer((nx, ny), settings)
    reference = projections[n // 2] if signal is None else signal
    sd = recorded_sd(reference, settings) / np.sqrt(settings.snr)
    sds = sd * noise_growth(settings, thickness_nm)
    sign = 1 if settings.inverted else -1
    images = np.empty_like(projections)
    for k, tilt in enumerate(settings.tilts_deg):
        dx, dy = settings.shift_sd_vox * rng.standard_normal(2) + drift[k]
        left = np.ones(1)
        if settings.dose_per_tilt:
            left = damage((nx, ny), settings, float(settings.dose_before[k]))
        phase = np.exp(-2j * np.pi * (fx * dx + fy * dy))
        spectrum = fft.rfft2(_turned(projections[k], turns[k])) * (detector * left * phase)
        signal = _defocused(spectrum, (nx, ny), settings, defoci[k], tilt)
        image = sign * signal + sds[k] * rng.standard_normal((nx, ny))
        if settings.dose_per_tilt and settings.dose_weighted:
            image = fft.irfft2(fft.rfft2(image) * left, s=(nx, ny))
        images[k] = image
    return images


def _drift(n: int, settings: TiltSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """Slow shift of each image `(n, 2)`, without mean, so that the truth stays in its place."""
    if not settings.drift_vox:
        return np.zeros((n, 2))
    phase = rng.uniform(0, 2 * np.pi, 2)
    curve = settings.drift_vox * np.sin(2 * np.pi * np.arange(n)[:, None] / n + phase)
    return np.asarray(curve - curve.mean(0))


def _turned(image: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Turn an image about its middle."""
    if not degrees:
        return image
    turned = ndimage.rotate(image, degrees, reshape=False, order=3, mode="nearest")
    return np.asarray(turned, np.float32)


def _defocused(
    spectrum: Complexes, shape: tuple[int, int], settings: TiltSettings, defocus_um: float,
    tilt_deg: float,
) -> NDArray[np.floating]:  # fmt: skip
    """Image of a spectrum behind the objective lens."""
    if settings.defocus_um <= 0:
        return np.asarray(fft.irfft2(spectrum, s=shape))
    if not settings.defocus_ramp:
        ctf = contrast_transfer(shape, settings, defocus_um=defocus_um)
        return np.asarray(fft.irfft2(spectrum * ctf, s=shape))
    # A few images of different defocus, of which each row of pixels takes its two nearest.
    u = np.arange(shape[0]) - (shape[0] - 1) / 2
    heights = -u * np.tan(np.deg2rad(tilt_deg)) * settings.voxel_size_angstrom / 1e4
    levels = np.linspace(heights.min(), heights.max(), RAMP_LEVELS)
    place = np.interp(heights, levels, np.arange(RAMP_LEVELS))
    if heights.min() == heights.max():
        place[:] = 0
    out = np.zeros(shape)
    for k, level in enumerate(levels):
        share = np.clip(1 - np.abs(place - k), 0, 1)
        if share.any():
            ctf = contrast_transfer(shape, settings, defocus_um=defocus_um + level)
            out += share[:, None] * fft.irfft2(spectrum * ctf, s=shape)
    return out
