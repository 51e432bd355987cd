"""One simulated tomogram: phantom, tilt series, reconstruction, over a range of conditions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoline.simulation.densities import Density
from tomoline.simulation.phantom import Phantom, PhantomSettings, make_phantom
from tomoline.simulation.projection import TiltSettings, project, projection_matrix, tilt_series
from tomoline.simulation.reconstruction import back_project


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Radial filter of the back-projection, in cycles a pixel."""

    cutoff: float = 0.35
    falloff: float = 0.05


@dataclass(frozen=True, kw_only=True)
class SimulatedTomogram:
    """A reconstruction with its truth and everything it was made with."""

    reconstruction: NDArray[np.float32]
    phantom: Phantom
    phantom_settings: PhantomSettings
    tilt_settings: TiltSettings
    filter_settings: FilterSettings
    seed: int


def simulate_tomogram(
    densities: list[Density],
    phantom_settings: PhantomSettings,
    tilt_settings: TiltSettings,
    *,
    filter_settings: FilterSettings = FilterSettings(),
    seed: int,
) -> SimulatedTomogram:
    """One tomogram `(z, y, x)`, particles dark, with truth; the same seed gives the same one."""
    rng = np.random.default_rng(seed)
    phantom = make_phantom(densities, phantom_settings, rng)
    return image_phantom(
        phantom, phantom_settings, tilt_settings, filter_settings=filter_settings, seed=seed
    )


def image_phantom(
    phantom: Phantom,
    phantom_settings: PhantomSettings,
    tilt_settings: TiltSettings,
    *,
    filter_settings: FilterSettings,
    seed: int,
) -> SimulatedTomogram:
    """Record and reconstruct a phantom."""
    rng = np.random.default_rng([seed, 1])
    nz, _, nx = phantom.density.shape
    matrix = projection_matrix(nz, nx, tilt_settings.tilts_deg)
    images = tilt_series(project(matrix, phantom.density), tilt_settings, rng)
    volume = back_project(
        matrix, images, nz, cutoff=filter_settings.cutoff, falloff=filter_settings.falloff
    )
    return SimulatedTomogram(
        reconstruction=volume, phantom=phantom, phantom_settings=phantom_settings,
        tilt_settings=tilt_settings, filter_settings=filter_settings, seed=seed,
    )  # fmt: skip


def random_conditions(
    seed: int,
    shape_zyx: tuple[int, int, int],
    *,
    snr_range: tuple[float, float] = (0.05, 3.0),
    voxels_per_particle: tuple[float, float] = (7e3, 2.6e4),
) -> tuple[PhantomSettings, TiltSettings, FilterSettings]:
    """Imaging conditions drawn from the range that the shipped weights are trained over.

    The SNR is log-uniform; tilt range, step, thickness, crowding, defocus, alignment error and
    reconstruction filter vary, so that other people's tomograms lie inside the range.
    """
    rng = np.random.default_rng([seed, 2])
    nz = int(rng.integers(int(shape_zyx[0] * 0.7), shape_zyx[0] + 1))
    volume = nz * shape_zyx[1] * shape_zyx[2]
    phantom = PhantomSettings(
        shape_zyx=(nz, *shape_zyx[1:]),
        particles=int(volume / rng.uniform(*voxels_per_particle)),
        chain_share=float(rng.uniform(0.1, 0.8)),
        amplitude_jitter=float(rng.uniform(0.0, 0.1)),
    )
    limit = float(rng.uniform(46, 66))
    with_ctf = rng.random() < 0.25
    tilt = TiltSettings(
        tilt_min_deg=-limit + float(rng.uniform(-6, 6)),
        tilt_max_deg=limit,
        tilt_step_deg=float(rng.choice([2.0, 3.0, 3.0, 3.0])),
        snr=float(np.exp(rng.uniform(*np.log(snr_range)))),
        defocus_um=float(rng.uniform(1.5, 5.0)) if with_ctf else 0.0,
        phase_flipped=True,
        mtf_sigma_nyquist=float(rng.choice([0.0, 0.0, rng.uniform(0, 1.5)])),
        shift_sd_vox=float(rng.uniform(0, 1.2)),
        dose_exponent=float(rng.uniform(0, 0.6)),
    )
    radial = FilterSettings(
        cutoff=float(rng.uniform(0.28, 0.5)), falloff=float(rng.uniform(0.03, 0.1))
    )
    return phantom, tilt, radial
