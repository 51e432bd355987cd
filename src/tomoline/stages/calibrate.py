"""The localizer's threshold and bandwidth: those with the best F1 on held-out tomograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoline.evaluation.matching import localization, match_one_to_one
from tomoline.infer import choose_precision
from tomoline.kernels.dilated import cpu_convolve
from tomoline.networks.msdnet import MSDNet
from tomoline.ops.clusters import find_clusters
from tomoline.settings import ClusterSettings
from tomoline.training.data import TrainingVolume

THRESHOLDS = tuple(round(0.3 + 0.025 * k, 3) for k in range(27))  # 0.3 to 0.95
BANDWIDTHS_VOX = (2.5, 3.0, 3.5)  # about the radii of the cores
HIT_DISTANCE_VOX = 5.0


@dataclass(frozen=True)
class Calibration:
    """The best threshold and bandwidth, and what they give on the held-out tomograms."""

    threshold: float
    bandwidth_vox: float
    figures: dict[str, Any]


def particle_probability(
    network: MSDNet, volume: NDArray[np.float32], *, device: str = "cpu"
) -> NDArray[np.float32]:
    """Probability of the second class in a whole volume `(Z, Y, X)`, untiled."""
    network.convolve = cpu_convolve if device == "cpu" else network.convolve
    dtype = choose_precision("auto", torch.device(device))
    x = torch.from_numpy(np.ascontiguousarray(volume))[None, None].to(device, dtype)
    with torch.inference_mode():
        logits = network.to(device)(x.contiguous(memory_format=torch.channels_last_3d))
        return np.asarray(logits.float().softmax(1)[0, 1].cpu().numpy())


def calibrate(network: MSDNet, volumes: Sequence[TrainingVolume]) -> Calibration:
    """Run the localizer and the clustering on held-out tomograms with every pair of settings."""
    maps = [particle_probability(network.eval(), v.volume) for v in volumes]
    tried = [
        _tried(maps, volumes, threshold, bandwidth)
        for threshold in THRESHOLDS
        for bandwidth in BANDWIDTHS_VOX
    ]
    return max(tried, key=lambda c: c.figures["f1"])


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
