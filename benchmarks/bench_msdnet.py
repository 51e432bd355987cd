"""MSDNet on this processor: plain layers against the kernel, forward and with gradients.

    .venv/bin/python benchmarks/bench_msdnet.py [--edges 32 64 96] [--output FILE]

Plain is `tomoline.networks.msdnet` as it reads: PyTorch's convolutions, maps concatenated layer by
layer. All run in turn in one process, so that ratios hold on a busy machine too. Prints, and keeps
as JSON, for each network, edge of a cube and kind: seconds, GFLOP/s, ratio to plain float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from tomoline.kernels.cpu_loops import has_pairs
from tomoline.kernels.cpu_msdnet import CpuMSDNet, cpu_msdnet
from tomoline.kernels.dilated import cpu_convolve
from tomoline.networks.blocks import count_parameters, plain_convolve
from tomoline.networks.msdnet import MSDNet

NETWORKS: dict[str, dict[str, Any]] = {
    "published localizer (49 x 2)": {"depth": 49, "width": 2, "max_dilation": 7},
    "published classifier (100 x 2)": {
        "depth": 100, "width": 2, "max_dilation": 5, "classes": 13,
    },
    "shipped (8 x 16)": {"depth": 8, "width": 16, "max_dilation": 4, "dilation": "per_layer"},
}  # fmt: skip
# Plain gradients of the deeper networks would take minutes beyond this edge.
PLAIN_STEP_EDGE = 48


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Least time of some repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def kinds() -> dict[str, tuple[str, torch.dtype]]:
    """What is compared: code and precision."""
    both = {"float32": torch.float32}
    if has_pairs():
        both["bfloat16"] = torch.bfloat16
    return {f"{code} {name}": (code, dtype) for code in ("plain", "oneDNN", "kernel")
            for name, dtype in both.items()}  # fmt: skip


def forward(network: MSDNet, code: str, dtype: torch.dtype, x: torch.Tensor) -> Callable[[], Any]:
    """The forward pass by one kind of code."""
    if code == "kernel":
        model = CpuMSDNet(network, dtype=dtype)
        return lambda: model.logits(x)
    network.convolve = cpu_convolve if code == "oneDNN" else plain_convolve
    moved = x.to(dtype)
    if code == "oneDNN":
        moved = moved.contiguous(memory_format=torch.channels_last_3d)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return network(moved).float()

    return run


def step(network: MSDNet, code: str, dtype: torch.dtype, x: torch.Tensor) -> Callable[[], Any]:
    """The forward pass and all weights' gradients."""
    network.convolve = cpu_convolve if code == "oneDNN" else plain_convolve
    moved = x.to(dtype)
    if code == "oneDNN":
        moved = moved.contiguous(memory_format=torch.channels_last_3d)

    def run() -> None:
        network.zero_grad()
        logits = cpu_msdnet(network, x, dtype) if code == "kernel" else network(moved).float()
        logits.square().mean().backward()

    return run


def measure(name: str, edge: int, repeats: int) -> list[dict[str, Any]]:
    """All kinds on a cube of one edge."""
    torch.manual_seed(0)
    network = MSDNet(**NETWORKS[name])
    x = torch.randn(1, 1, edge, edge, edge)
    operations = 2 * count_parameters(network) * edge**3
    rows: list[dict[str, Any]] = []
    for what, make, factor in (("forward", forward, 1), ("forward and backward", step, 3)):
        plain_s = 0.0
        for kind, (code, dtype) in kinds().items():
            if factor == 3 and code != "kernel" and edge > PLAIN_STEP_EDGE:
                continue
            work = make(network, code, dtype, x)
            work()  # compiles, and touches memory
            taken = seconds(work, repeats)
            plain_s = taken if kind == "plain float32" else plain_s
            row = {
                "network": name, "edge": edge, "what": what, "kind": kind, "seconds": taken,
                "gflops": factor * operations / taken / 1e9,
                "times_plain": plain_s / taken if plain_s else None,
            }  # fmt: skip
            rows.append(row)
            ratio = f"{row['times_plain']:5.1f} x plain" if plain_s else ""
            print(f"{name:32} {edge:4} {what:20} {kind:16} {taken:8.3f} s "
                  f"{row['gflops']:6.0f} GFLOP/s {ratio}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Time every combination."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[32, 48, 64, 96])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = [
        row for name in chosen.networks for edge in chosen.edges
        for row in measure(name, edge, chosen.repeats)
    ]  # fmt: skip
    if chosen.output:
        result = {"machine": machine(), "torch": torch.__version__, "rows": rows}
        chosen.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
