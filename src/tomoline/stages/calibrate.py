"""The localizer's threshold: the one with the best F1 on held-out tomograms."""

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

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
HIT_DISTANCE_VOX = 5.0


@dataclass(frozen=True)
class ChosenThreshold:
    """The best threshold, and the localization figures with it on the held-out tomograms."""

    threshold: float
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


def choose_threshold(
    network: MSDNet, volumes: Sequence[TrainingVolume], *, bandwidth_vox: float
) -> ChosenThreshold:
    """Run the localizer and the clustering on held-out tomograms at each threshold."""
    maps = [particle_probability(network.eval(), v.volume) for v in volumes]
    least = ClusterSettings().min_size_vox
    best = ChosenThreshold(0.5, {"f1": -1.0})
    for threshold in THRESHOLDS:
        figures = []
        for volume, p in zip(volumes, maps, strict=True):
            found = find_clusters(p >= threshold, p, bandwidth_vox=bandwidth_vox)
            centres = found.centres[found.size_vox >= least]
            matching = match_one_to_one(centres, volume.centres_zyx, HIT_DISTANCE_VOX)
            figures.append(localization(matching))
        f1 = float(np.mean([f.f1 for f in figures]))
        if f1 > best.figures["f1"]:
            best = ChosenThreshold(threshold, {
                "f1": round(f1, 4),
                "precision": round(float(np.mean([f.precision for f in figures])), 4),
                "recall": round(float(np.mean([f.recall for f in figures])), 4),
                "ad_vox": round(float(np.nanmean([f.ad_vox for f in figures])), 3),
                "hit_distance_vox": HIT_DISTANCE_VOX,
            })  # fmt: skip
    return best
