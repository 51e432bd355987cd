"""Time of the mean-shift on a volume like SHREC's: 7 million marked voxels, 2,800 seeds.

    python benchmarks/bench_meanshift.py [--radius 8.4] [--particles 2800]

Balls are planted in a 200 x 512 x 512 volume, a tenth of a voxel apart at the least, so that many
touch. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
from scipy.spatial import cKDTree

from tomoline.ops.clusters import find_clusters, find_seeds, gather_foreground, mean_shift


def plant(shape: tuple[int, int, int], number: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask with `number` balls, and their centres."""
    rng = np.random.default_rng(1)
    reach = int(np.ceil(radius))
    grid = np.indices((2 * reach + 1,) * 3) - reach
    mask, centres = np.zeros(shape, bool), np.empty((0, 3))
    while len(centres) < number:
        new = rng.integers(reach, np.array(shape) - reach, 3)
        if len(centres) and cKDTree(centres).query(new)[0] < 2 * radius + 0.1:
            continue
        centres = np.vstack([centres, new])
        box = tuple(slice(c - reach, c + reach + 1) for c in new)
        mask[box] |= (grid**2).sum(0) <= radius**2
    return mask, centres


def main() -> None:
    """Plant, time the parts, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--radius", type=float, default=8.4)
    parser.add_argument("--particles", type=int, default=2800)
    options = parser.parse_args()
    mask, truth = plant((200, 512, 512), options.particles, options.radius)
    probability = mask.astype(np.float32)
    times = {}
    start = time.perf_counter()
    voxels = gather_foreground(mask, probability)
    times["components_and_smoothing_s"] = time.perf_counter() - start
    start = time.perf_counter()
    seeds = find_seeds(mask, voxels, split_above_vox=2483, bandwidth_vox=options.radius)
    times["seeds_s"] = time.perf_counter() - start
    start = time.perf_counter()
    # A quarter of the radius off, so that the seeds have some way to go.
    astray = seeds + np.random.default_rng(2).normal(0, options.radius / 4, seeds.shape)
    modes = mean_shift(mask, astray, bandwidth_vox=options.radius)
    times["mean_shift_s"] = time.perf_counter() - start
    start = time.perf_counter()
    found = find_clusters(mask, probability, bandwidth_vox=options.radius)
    times["find_clusters_whole_s"] = time.perf_counter() - start
    error = cKDTree(found.centres).query(truth)[0]
    result = {
        "voxels": int(mask.sum()),
        "seeds": len(seeds),
        "centres": len(modes.centres),
        "planted": len(truth),
        "largest_error_vox": round(float(error.max()), 3),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps({k: round(v, 2) for k, v in (times | result).items()}))


if __name__ == "__main__":
    main()
