"""From a phantom to a noisy tilt series.

The tilt axis is y, so every (z, x) plane is projected by the same sparse matrix: pixel
`u = (x - cx) cos(t) + (z - cz) sin(t) + cx`, shared linearly between its two neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse

RELATIVISTIC_WAVELENGTH_ANGSTROM = {300: 0.0196875, 200: 0.0250793}


@dataclass(frozen=True, kw_only=True)
class TiltSettings:
    """Microscope and tilt scheme."""

    tilt_min_deg: float = -60.0
    tilt_max_deg: float = 60.0
    tilt_step_deg: float = 3.0
    snr: float = 0.05  # variance of the signal over variance of the noise, in the projections
    defocus_um: float = 0.0  # 0: no contrast transfer function
    phase_flipped: bool = True  # the CTF's sign was corrected before reconstruction
    voxel_size_angstrom: float = 10.0
    mtf_sigma_nyquist: float = 0.0  # detector blur of signal: exp(-(f/f_nyq)^2 * this)
    shift_sd_vox: float = 0.0  # alignment error of each image, SD per axis
    dose_exponent: float = 0.5  # noise SD grows as (1 / cos tilt) ** this

    @property
    def tilts_deg(self) -> NDArray[np.float64]:
        """Tilt angles, both ends included where the step divides the range."""
        count = int((self.tilt_max_deg - self.tilt_min_deg) / self.tilt_step_deg + 1e-6)
        return np.asarray(self.tilt_min_deg + self.tilt_step_deg * np.arange(count + 1), float)


def projection_matrix(nz: int, nx: int, tilts_deg: NDArray[np.float64]) -> sparse.csr_matrix:
    """Matrix `(n_tilts * nx, nz * nx)` that projects a flattened (z, x) plane at every tilt."""
    z, x = np.meshgrid(np.arange(nz) - (nz - 1) / 2, np.arange(nx) - (nx - 1) / 2, indexing="ij")
    rows, columns, weights = [], [], []
    cells = np.arange(nz * nx)
    for k, tilt in enumerate(np.deg2rad(tilts_deg)):
        u = (x * np.cos(tilt) + z * np.sin(tilt)).ravel() + (nx - 1) / 2
        low = np.floor(u).astype(np.int64)
        for pixel, weight in ((low, low + 1 - u), (low + 1, u - low)):
            seen = (pixel >= 0) & (pixel < nx)
            rows.append(pixel[seen] + k * nx)
            columns.append(cells[seen])
            weights.append(weight[seen].astype(np.float32))
    return sparse.csr_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(tilts_deg) * nx, nz * nx),
    )


def project(matrix: sparse.csr_matrix, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Projections `(n_tilts, nx, ny)` of a volume `(z, y, x)`."""
    nz, ny, nx = volume.shape
    flat = np.ascontiguousarray(volume.transpose(0, 2, 1)).reshape(nz * nx, ny)
    return np.asarray(matrix @ flat, np.float32).reshape(-1, nx, ny)


def contrast_transfer(
    shape: tuple[int, int], settings: TiltSettings, amplitude_contrast: float = 0.07
) -> NDArray[np.float32]:
    """CTF on the `rfft2` grid of an image `(nx, ny)`: 1 at low frequency means dark protein."""
    fx = fft.fftfreq(shape[0])[:, None] / settings.voxel_size_angstrom
    fy = fft.rfftfreq(shape[1])[None] / settings.voxel_size_angstrom
    k2 = fx**2 + fy**2
    wavelength = RELATIVISTIC_WAVELENGTH_ANGSTROM[300]
    chi = np.pi * wavelength * settings.defocus_um * 1e4 * k2
    chi -= 0.5 * np.pi * 2.7e7 * wavelength**3 * k2**2
    ctf = np.sin(chi + np.arcsin(amplitude_contrast))
    return np.asarray(np.abs(ctf) if settings.phase_flipped else ctf, np.float32)


def tilt_series(
    projections: NDArray[np.float32], settings: TiltSettings, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Contrast transfer, alignment error, detector blur and noise on projections (t, x, y).

    Particles come out dark (negative). The noise of the untilted image has the variance of the
    signal of that image over `settings.snr`.
    """
    n, nx, ny = projections.shape
    fx, fy = fft.fftfreq(nx)[:, None], fft.rfftfreq(ny)[None]
    transfer = np.exp(-settings.mtf_sigma_nyquist * 4 * (fx**2 + fy**2))
    if settings.defocus_um > 0:
        transfer = transfer * contrast_transfer((nx, ny), settings)
    middle = projections[n // 2]
    noise_sd = float(middle.std()) / np.sqrt(settings.snr)
    images = np.empty_like(projections)
    for k, tilt in enumerate(np.deg2rad(settings.tilts_deg)):
        dx, dy = settings.shift_sd_vox * rng.standard_normal(2)
        phase = np.exp(-2j * np.pi * (fx * dx + fy * dy))
        signal = fft.irfft2(fft.rfft2(projections[k]) * transfer * phase, s=(nx, ny))
        sd = noise_sd * (1 / np.cos(tilt)) ** settings.dose_exponent
        images[k] = -signal + sd * rng.standard_normal((nx, ny))
    return images
