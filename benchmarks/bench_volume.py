"""A whole volume through the published localizer (49 x 2) on this machine, as `segment` does it.

    .venv/bin/python benchmarks/bench_volume.py [--edge 512] [--network published|shipped]
        [--output FILE]

The volume is read window by window from a file, probabilities come back as bytes. Windows and halo
are those of the stage `tile`: the halo is measured, at the tolerance that cards are made with, on
a part of the volume. The published network's weights are random, which costs as much time. The peak
is that of the process, with the pages of the file that it has looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from tomoline.infer import Runner, choose_device, choose_precision, window_bytes
from tomoline.kernels.choose import speed_up
from tomoline.networks.blocks import count_parameters
from tomoline.networks.cards import ModelCard
from tomoline.networks.msdnet import MSDNet
from tomoline.ops.tiles import box, cost
from tomoline.settings import SegmentSettings, TilingSettings
from tomoline.stages import tile
from tomoline.stages.calibrate import measured_halo
from tomoline.stages.memory import available

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "published": {"depth": 49, "width": 2, "max_dilation": 7},
    "shipped": {"depth": 8, "width": 16, "max_dilation": 4, "dilation": "per_layer"},
}
MEASURED = (192, 192, 192)


def make_runner(kind: str) -> Runner:
    """A network with random weights, its card with all that the plan needs."""
    torch.manual_seed(0)
    network = MSDNet(**NETWORKS[kind]).eval()
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    network = network.to(device)
    kernel = speed_up(network, device, precision)
    card = ModelCard(
        name=kind, network="msdnet", parameters=NETWORKS[kind], role="localizer",
        classes=["background", "particle"], voxel_size_angstrom=10.0, threshold=0.5,
        voxel_size_range_angstrom=(9.0, 11.0), bandwidth_vox=3.0, n_parameters=1,
        receptive_field_vox=network.receptive_field_vox,
    )  # fmt: skip
    return Runner(card, network, device, precision, kernel, 1)


def main() -> None:
    """Run, print, keep."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--network", choices=list(NETWORKS), default="published")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/volume_cpu.json")
    options = parser.parse_args()
    runner = make_runner(options.network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.npy"
        rng = np.random.default_rng(0)
        shape = (options.edge,) * 3
        volume = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for section in volume:
            section[:] = rng.standard_normal(shape[1:], np.float32)
        part = np.array(volume[tuple(slice(0, n) for n in MEASURED)])
        halo = measured_halo(runner, part)
        card = runner.card.model_copy(update={"halo_vox": halo})
        memory = available(device="auto")
        settings = SegmentSettings(test_time_flips=1)
        plan = tile.make_plan(
            shape, card, TilingSettings(), memory_bytes=tile.usable(memory),
            per_voxel=tile.window_bytes(card, settings, on_gpu=memory.on_gpu),
            modest_bytes=math.inf if memory.on_gpu else tile.MODEST_BYTES,
        )  # fmt: skip
        boxes = [box(t.read_start, t.read_stop) for t in plan.tiles]
        print(f"{len(boxes)} windows, halo {plan.halo_vox} (measured {halo}), "
              f"{cost(plan):.2f} voxels computed for each kept", flush=True)  # fmt: skip
        volume = np.load(path, mmap_mode="r")
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        for k, _ in enumerate(window_bytes(runner, volume, boxes, halo=plan.halo_vox)):
            print(f"window {k + 1}: {time.perf_counter() - began:.0f} s", flush=True)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    operations = (
        2 * count_parameters(runner.network) * np.prod([s.stop - s.start for s in boxes[0]])
    )
    result = {
        "machine": machine(), "torch": torch.__version__, "network": options.network,
        "kernel": runner.kernel, "precision": str(runner.dtype)[6:], "shape": shape,
        "windows": len(boxes), "halo_vox": plan.halo_vox, "cost": round(cost(plan), 3),
        "seconds": round(took, 1), "processor_seconds": round(used, 1),
        "gflops": round(float(operations) * len(boxes) / took / 1e9, 1),
        "peak_gb": round(after.ru_maxrss / 1e6, 2),
    }  # fmt: skip
    print(json.dumps(result))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
