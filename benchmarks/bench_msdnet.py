"""MSDNet on this machine: plain layers against the kernels, forward and with gradients.

Run alone: `python benchmarks/bench_msdnet.py [--edge 48]`. Prints a line a network, precision and
kernel: seconds, ratio to the plain code in float32, and arithmetic rate.
"""

import argparse
import os
import time

import torch

from tomoline.infer import cpu_has_bfloat16
from tomoline.kernels.dilated import cpu_convolve
from tomoline.networks.blocks import count_parameters, plain_convolve
from tomoline.networks.msdnet import MSDNet

NETWORKS = {
    "shipped (8 x 16)": {"depth": 8, "width": 16, "max_dilation": 4, "dilation": "per_layer"},
    "published localizer (49 x 2)": {"depth": 49, "width": 2, "max_dilation": 7},
}


def seconds(work, repeats: int = 3) -> float:
    """Least time of some repeats, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Time every combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=48, help="edge of the cube, voxels")
    edge = parser.parse_args().edge
    kinds = [torch.float32] + ([torch.bfloat16] if cpu_has_bfloat16() else [])
    print(f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, cube of {edge}")  # fmt: skip
    for name, shape in NETWORKS.items():
        network = MSDNet(**shape)
        operations = 2 * count_parameters(network) * edge**3
        reference: dict[str, float] = {}
        for dtype in kinds:
            for kernel, convolve in (("plain", plain_convolve), ("cpu", cpu_convolve)):
                network.convolve = convolve
                x = torch.randn(1, 1, edge, edge, edge, dtype=dtype)
                x = x.contiguous(memory_format=torch.channels_last_3d)

                def forward(x=x, network=network):
                    with torch.inference_mode():
                        network(x)

                def gradients(x=x, network=network):
                    network(x).float().square().mean().backward()

                for what, work, factor in (("forward", forward, 1), ("step", gradients, 3)):
                    took = seconds(work)
                    ratio = reference.setdefault(what, took) / took
                    rate = factor * operations / took / 1e9
                    print(f"{name:30s} {str(dtype)[6:]:9s} {kernel:6s} {what:8s} {took:7.2f} s "
                          f"{ratio:5.1f} x {rate:6.0f} GFLOP/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
