"""Largest difference between a tiled and an untiled probability map, and where it is.

`python benchmarks/tiled_against_untiled.py TOMOGRAM.mrc [--model FOLDER] [--size 96]`; the halo is
the model's receptive field radius, then half of it, to show what a short halo costs. float32.
"""

import argparse
from pathlib import Path

import numpy as np

from tomoline.infer import make_runner
from tomoline.io.mrc import open_volume
from tomoline.ops.normalise import normalise
from tomoline.ops.tiles import plan_tiles
from tomoline.settings import InferenceSettings


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tomogram", type=Path)
    parser.add_argument("--model", type=Path, default=Path("resources/models/msdnet-localizer"))
    parser.add_argument("--size", type=int, default=96, help="window edge, voxels")
    options = parser.parse_args()
    runner = make_runner(options.model, InferenceSettings(device="auto", precision="float32"))
    volume = normalise(np.asarray(open_volume(options.tomogram), np.float32))
    whole = runner.probabilities(volume[None])[0, 1]
    radius = runner.card.receptive_field_vox // 2
    for halo in (radius, radius // 2):
        tiled = np.empty_like(whole)
        plan = plan_tiles(volume.shape, size_vox=options.size, halo_vox=halo)
        for tile in plan.tiles:
            low, high = np.array(tile.read_start), np.array(tile.read_stop)
            window = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            p = runner.probabilities(window[None])[0, 1]
            inner = tuple(
                slice(a - s, b - s)
                for a, b, s in zip(tile.keep_start, tile.keep_stop, low, strict=True)
            )
            outer = tuple(slice(a, b) for a, b in zip(tile.keep_start, tile.keep_stop, strict=True))
            tiled[outer] = p[inner]
        difference = np.abs(tiled - whole)
        place = np.unravel_index(difference.argmax(), difference.shape)
        crossing = int(((tiled >= 0.5) != (whole >= 0.5)).sum())
        print(f"halo {halo}: {len(plan.tiles)} windows of at most {options.size}, largest "
              f"difference {difference.max():.2e} at z, y, x = {tuple(map(int, place))}; "
              f"{crossing} voxels change sides of 0.5")  # fmt: skip


if __name__ == "__main__":
    main()
