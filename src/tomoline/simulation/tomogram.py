"""One simulated tomogram: phantom, tilt series, reconstruction, over a range of conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tomoline.simulation.densities import Density
from tomoline.simulation.distractors import DistractorSettings
from tomoline.simulation.phantom import Phantom, PhantomSettings, make_phantom
from tomoline.simulation.projection import (
    TiltSettings,
    project,
    projection_matrix,
    tilt_series,
    true_tilts_deg,
)
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
    assert phantom_settings.voxel_size_angstrom == tilt_settings.voxel_size_angstrom
    nominal = tilt_settings.tilts_deg
    matrix = projection_matrix(nz, nx, nominal)
    true = true_tilts_deg(tilt_settings, np.random.default_rng([seed, 4]))
    exact = matrix if true is nominal else projection_matrix(nz, nx, true)
    images = tilt_series(
        project(exact, phantom.specimen), tilt_settings, rng,
        signal=phantom.signal, thickness_nm=phantom_settings.thickness_nm,
    )  # fmt: skip
    del exact
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
    snr_range: tuple[float, float] = (0.03, 3.0),
    voxels_per_particle: tuple[float, float] = (7e3, 2.6e4),
    distractors: float = 1.0,
    misalignment_vox: float = 1.2,
) -> tuple[PhantomSettings, TiltSettings, FilterSettings]:
    """Imaging conditions drawn from the range that weights are trained over.

    The SNR is log-uniform; tilt range, step and lost tilts, the ice's thickness and tilt, crowding,
    defocus with and without phase flipping, dose, alignment errors, solvent and reconstruction
    filter vary, so that other people's tomograms lie inside the range. About half of the tomograms
    have membranes, a third gold, a fifth filaments and a fifth contamination, each with its
    probability times `distractors`; 3 % have no particles. Tilts are out of place by up to
    `misalignment_vox` (SD).
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
        mtf_sigma_nyquist=float(rng.choice([0.0, 0.0, rng.uniform(0, 1.5)])),
        shift_sd_vox=float(rng.uniform(0, misalignment_vox)),
        dose_exponent=float(rng.uniform(0, 0.6)),
    )
    radial = FilterSettings(
        cutoff=float(rng.uniform(0.28, 0.5)), falloff=float(rng.uniform(0.03, 0.1))
    )
    phantom = _random_specimen(phantom, np.random.default_rng([seed, 5]), distractors)
    return phantom, _random_faults(tilt, np.random.default_rng([seed, 6])), radial


def _random_specimen(
    phantom: PhantomSettings, rng: np.random.Generator, distractors: float
) -> PhantomSettings:
    """Ice, solvent and distractors; how many there are goes by the area."""
    nz, ny, nx = phantom.shape_zyx
    nm = phantom.voxel_size_angstrom / 10
    filled = float(rng.uniform(0.6, 0.95)) if rng.random() < 0.6 else 1.0
    thickness = round(nz * filled * nm, 1) if filled < 1 else 0.0
    leaning = bool(rng.random() < 0.4) and filled < 1
    rise = rng.uniform(-4, 4, 2) if leaning else np.zeros(2)
    area = max(1.0, ny * nx * nm**2 / 112**2)  # of the smallest tomograms that are trained on
    share = rng.random(5) < np.array([0.5, 0.33, 0.2, 0.2, 0.03]) * [*[distractors] * 4, 1.0]
    membranes, gold, filaments, contamination, empty = share
    vesicles = int(rng.integers(1, 3) * area) if membranes else 0
    sheets = int(rng.random() < 0.4) if membranes else 0
    return replace(
        phantom,
        particles=0 if empty else int(phantom.particles * filled),
        ice_thickness_nm=thickness,
        ice_tilt_deg=(float(rise[0]), float(rise[1])),
        distractors=DistractorSettings(
            vesicles=vesicles if not sheets or rng.random() < 0.5 else 0,
            sheets=sheets,
            gold_beads=int(rng.integers(1, 7) * area) if gold else 0,
            filaments=int(rng.integers(1, 3)) if filaments else 0,
            contaminants=int(rng.integers(1, 3) * area) if contamination else 0,
            membrane_density=float(rng.uniform(0.5, 1.0)),
            gold_density=float(rng.uniform(6, 12)),
            contaminant_density=float(rng.uniform(0.6, 2.0)),
            solvent_rms=float(rng.uniform(0.0, 0.12)) if rng.random() < 0.7 else 0.0,
        ),
    )


def _random_faults(tilt: TiltSettings, rng: np.random.Generator) -> TiltSettings:
    """What goes wrong on a microscope, most of it in some tomograms only."""
    count = len(tilt.tilts_deg)
    gaps = int(rng.integers(1, 4)) if rng.random() < 0.25 else 0
    lost = rng.choice(count, gaps, replace=False)
    dose = rng.random() < 0.4
    return replace(
        tilt,
        missing_tilts=tuple(sorted(int(k) for k in lost)),
        phase_flipped=bool(rng.random() < 0.6),
        defocus_sd_um=float(rng.uniform(0, 0.3)),
        rotation_sd_deg=float(rng.uniform(0, 0.5)) if rng.random() < 0.4 else 0.0,
        tilt_error_sd_deg=float(rng.uniform(0, 0.5)) if rng.random() < 0.3 else 0.0,
        drift_vox=float(rng.uniform(0, 1.0)) if rng.random() < 0.4 else 0.0,
        mean_free_path_nm=float(rng.uniform(250, 400)) if rng.random() < 0.5 else 0.0,
        dose_per_tilt=float(rng.uniform(1.5, 3.5)) if dose else 0.0,
        dose_weighted=bool(dose and rng.random() < 0.5),
    )
