"""The localizer's threshold and bandwidth: those with the best F1 on held-out tomograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoline.evaluation.matching import localization, match_one_to_one
from tomoline.infer import Runner, choose_precision
from tomoline.kernels.choose import speed_up
from tomoline.networks.cards import ModelCard
from tomoline.networks.msdnet import MSDNet
from tomoline.ops.clusters import find_clusters
from tomoline.settings import ClusterSettings, SegmentSettings
from tomoline.training.data import TrainingVolume

THRESHOLDS = tuple(round(0.3 + 0.025 * k, 3) for k in range(27))  # 0.3 to 0.95
BANDWIDTHS_VOX = (2.5, 3.0, 3.5)  # about the radii of the cores
HIT_DISTANCE_VOX = 5.0
HALF_STEP = 0.5 / 255  # probabilities are kept as bytes


@dataclass(frozen=True)
class Calibration:
    """The best threshold and bandwidth, and what they give on the held-out tomograms."""

    threshold: float
    bandwidth_vox: float
    figures: dict[str, Any]
    halo_vox: int | None = None


def calibrate(card: ModelCard, network: MSDNet, volumes: Sequence[TrainingVolume]) -> Calibration:
    """Run the localizer and the clustering on held-out tomograms with every pair of settings.

    Probabilities are averaged over flips as the segment stage does unless told otherwise, because
    the best threshold depends on it.
    """
    device = torch.device("cpu")
    precision = choose_precision("auto", device)
    kernel = speed_up(network.eval(), device, precision)
    runner = Runner(card, network, device, precision, kernel, SegmentSettings().test_time_flips)
    maps = [np.asarray(runner.probabilities(v.volume[None])[0, 1]) for v in volumes]
    tried = [
        _tried(maps, volumes, threshold, bandwidth)
        for threshold in THRESHOLDS
        for bandwidth in BANDWIDTHS_VOX
    ]
    best = max(tried, key=lambda c: c.figures["f1"])
    halos = [measured_halo(runner, v.volume) for v in volumes]
    known = [halo for halo in halos if halo is not None]
    return replace(best, halo_vox=max(known) if len(known) == len(halos) > 0 else None)


def measured_halo(
    runner: Runner, volume: NDArray[np.float32], *, tolerance: float = HALF_STEP
) -> int | None:
    """How far from a cut through a volume `(Z, Y, X)` particle probabilities change visibly.

    A deep network's view has long thin edges: what lies there is seen through many layers and
    weighs next to nothing. The volume is cut in halves along each axis, and each half's
    probabilities are compared with the whole's, without flips.

    Parameters
    ----------
    tolerance:
        The largest change that counts as none; half the step of a byte unless told otherwise.

    Returns
    -------
    Voxels, 1 at least; None where changes reach through the whole half of an axis, so that the
    volume is too small to tell.
    """
    once = replace(runner, flips=1)
    whole = once.probabilities(volume[None])[0, 1]
    halo = 1
    for axis in range(3):
        length = volume.shape[axis]
        for low, high in ((0, length // 2), (length // 2, length)):
            part = np.ascontiguousarray(volume.take(range(low, high), axis))
            there = once.probabilities(part[None])[0, 1]
            change = np.abs(there - whole.take(range(low, high), axis))
            others = tuple(k for k in range(3) if k != axis)
            seen = np.flatnonzero(change.max(others) > tolerance)
            # Sections from the cut to the farthest that has changed.
            far = 0 if not len(seen) else high - low - seen[0] if low == 0 else seen[-1] + 1
            if far == high - low:
                return None
            halo = max(halo, int(far))
    return halo


def _tried(
    maps: Sequence[NDArray[np.float32]],
    volumes: Sequence[TrainingVolume],
    threshold: float,
    bandwidth: float,
) -> Calibration:
    least = ClusterSettings().min_size_vox
    scores = []
    for volume, p in zip(volumes, maps, strict=True):
        found = find_clusters(p >= threshold, p, bandwidth_vox=bandwidth)
        centres = found.centres[found.size_vox >= least]
        matching = match_one_to_one(centres, volume.centres_zyx, HIT_DISTANCE_VOX)
        scores.append(localization(matching))
    figures: dict[str, Any] = {}
    for name in ("f1", "precision", "recall", "ad_vox"):
        known = [v for v in (getattr(s, name) for s in scores) if np.isfinite(v)]
        figures[name] = round(float(np.mean(known)), 4) if known else None
    return Calibration(threshold, bandwidth, figures | {"hit_distance_vox": HIT_DISTANCE_VOX})
