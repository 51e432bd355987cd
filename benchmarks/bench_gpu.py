"""The Triton kernels of MSDNet on this GPU: equal to the plain network first, then how fast.

Run alone, with the repository's `src` on PYTHONPATH; under 10 minutes on an H200, no other package
of this project needed than torch with Triton, and numpy:

    python benchmarks/bench_gpu.py            # all; JSON in benchmarks/results/ and in $OUT
    python benchmarks/bench_gpu.py --check    # equality only, about a minute

Exit code 0: done; 1: the kernels differ from the plain network; 2: no GPU, nothing was run.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tomoline.errors import DeviceError
from tomoline.kernels.streaming import stream_arrays, stream_windows
from tomoline.kernels.triton_msdnet import Launch, TritonMSDNet, triton_msdnet
from tomoline.networks.msdnet import MSDNet

LOCALIZER = {"depth": 49, "width": 2, "max_dilation": 7, "classes": 2}
CLASSIFIER = {"depth": 100, "width": 2, "max_dilation": 5, "classes": 13}
SHIPPED = {"depth": 8, "width": 16, "max_dilation": 4, "dilation": "per_layer", "classes": 14}
ODD = {"depth": 5, "width": 3, "max_dilation": 7, "in_channels": 2, "classes": 5}
NETWORKS = {"localizer": LOCALIZER, "classifier": CLASSIFIER, "shipped": SHIPPED, "odd": ODD}
MATRIX_OPERATIONS_A_S, BYTES_A_S = 790e12, 4.3e12  # the figures for an H200
FLOAT32_ERROR, BF16_ERROR = 1e-5, 1e-2
GPU = torch.device("cuda")


def make(kind: dict) -> MSDNet:
    """A network with random weights and biases, on the GPU."""
    torch.manual_seed(1)
    network = MSDNet(**kind)
    with torch.no_grad():
        for bias in [*network.biases, network.last_bias]:
            bias.normal_(std=0.1)
    return network.to(GPU).eval()


def operations(network: MSDNet) -> int:
    """Floating-point operations a voxel."""
    return 2 * sum(p.numel() for p in network.parameters())


def least_bytes(network: MSDNet) -> int:
    """Bytes a voxel when every earlier map is read once a layer, in bfloat16 (the issue's)."""
    return sum(2 * w.shape[1] for w in network.weights)


def seconds(work, repeats: int = 5, warm: int = 1) -> float:
    """Median of some timings of `work`, after `warm` more; the device is idle before each."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Greatest difference over the greatest magnitude; infinite if anything is not finite."""
    if not bool(torch.isfinite(found).all()):
        return math.inf
    return float((found.detach().double() - wanted).abs().max() / wanted.detach().abs().max())


class Report:
    """Figures that are printed and kept."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.failures: list[str] = []

    def add(self, what: str, **figures) -> None:
        self.rows.append({"what": what, **figures})
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
        print(f"{what:42s} " + "  ".join(shown), flush=True)

    def expect(self, what: str, value: float, bound: float, **figures) -> None:
        good = value <= bound
        self.add(what, error=value, bound=bound, result="ok" if good else "FAILED", **figures)
        if not good:
            self.failures.append(what)


def check_forward(report: Report) -> None:
    """Every network, division of taps and type against the plain network in float64."""
    for name, kind in NETWORKS.items():
        network = make(kind)
        reference = make(kind).double()
        for shape in ((2, 19, 33, 47), (1, 1, 5, 3), (1, 40, 40, 64)):
            x = torch.randn(shape[0], network.in_channels, *shape[1:], device=GPU)
            with torch.no_grad():
                wanted = reference(x.double())
            for dtype, bound in ((torch.float32, FLOAT32_ERROR), (torch.bfloat16, BF16_ERROR)):
                for pull in ("x", "all", "none"):
                    fast = TritonMSDNet(network, dtype=dtype, device=GPU, pull=pull)
                    what = f"{name} {str(dtype)[6:]} {pull} {shape}"
                    report.expect(what, error(fast.logits(x), wanted), bound)
                again = fast.logits(x)
                report.expect(f"{name} {str(dtype)[6:]} twice the same {shape}",
                              float((again - fast.logits(x)).abs().max()), 0.0)  # fmt: skip
                p = wanted.softmax(1)
                report.expect(f"{name} {str(dtype)[6:]} probabilities {shape}",
                              error(fast.probabilities(x), p), 5 * bound)  # fmt: skip
                off = (fast.particle_bytes(x).double() - 255 * p[:, 1]).abs().max()
                report.expect(
                    f"{name} {str(dtype)[6:]} bytes {shape}", float(off), 0.51 + 510 * bound
                )
            fast = TritonMSDNet(network, dtype=torch.float32, device=GPU, precision="tf32")
            report.add(f"{name} tf32 {shape} (not bounded)", error=error(fast.logits(x), wanted))


def check_gradients(report: Report) -> None:
    """Gradients against the plain network's in float64, and the plain one's own in bfloat16."""

    def gradients(run, network, x, grad):
        x = x.clone().requires_grad_()
        for p in network.parameters():
            p.grad = None
        (run(network, x).double() * grad).sum().backward()
        return torch.cat([p.grad.double().flatten() for p in [*network.parameters(), x]])

    def plain(network, x):
        return network(x)

    for name, kind in NETWORKS.items():
        network, reference = make(kind), make(kind).double()
        x = torch.randn(2, network.in_channels, 17, 20, 23, device=GPU)
        grad = torch.randn(2, network.classes, 17, 20, 23, device=GPU, dtype=torch.float64)
        wanted = gradients(plain, reference, x.double(), grad)
        found = gradients(triton_msdnet, network, x, grad)
        far = float((found - wanted).norm() / wanted.norm())
        report.expect(f"{name} gradients float32", far, 1e-4)
        far = [float((gradients(run, network, x.bfloat16(), grad) - wanted).norm() / wanted.norm())
               for run in (triton_msdnet, plain)]  # fmt: skip
        report.expect(f"{name} gradients bfloat16", far[0], 1.5 * far[1] + 0.01, plain=far[1])


def check_large(report: Report, edge: int) -> None:
    """Places beyond 2^31: a short network on a large volume, against the plain one on a part."""
    kind = {"depth": 10, "width": 2, "max_dilation": 3}
    network = make(kind)
    halo, size = network.receptive_field_vox // 2, 24
    x = torch.randn(1, 1, edge, edge, edge, device=GPU)
    fast = TritonMSDNet(network, dtype=torch.bfloat16, device=GPU).logits(x)
    for corner in (0, edge - halo - size):
        low = max(corner - halo, 0)
        part = x[:, :, low : corner + size + halo, low : corner + size + halo,
                 low : corner + size + halo]  # fmt: skip
        with torch.no_grad():
            wanted = network(part)
        inner = slice(corner - low, corner - low + size)
        cut = slice(corner, corner + size)
        report.expect(f"{edge}^3, from voxel {corner} on",
                      error(fast[:, :, cut, cut, cut], wanted[:, :, inner, inner, inner].double()),
                      BF16_ERROR)  # fmt: skip


def measure_ceilings(report: Report) -> dict[str, float]:
    """What this card copies and multiplies a second."""
    source = torch.randn(2**30, device=GPU)
    target = torch.empty_like(source)
    copied = 8 * 2**30 / seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    multiplied = 2 * 8192**3 / seconds(lambda: a @ b, 10)
    report.add("ceilings", copy_bytes_a_s=copied, bf16_operations_a_s=multiplied)
    return {"copy_bytes_a_s": copied, "bf16_operations_a_s": multiplied}


def rates(network: MSDNet, voxels: int, took: float) -> dict[str, float]:
    """Time and the achieved fractions of the issue's two limits."""
    return {
        "seconds": took,
        "of_790_tflop_s": operations(network) * voxels / took / MATRIX_OPERATIONS_A_S,
        "of_4.3_tb_s": least_bytes(network) * voxels / took / BYTES_A_S,
    }


def tune(report: Report, name: str, shape: tuple[int, ...]) -> TritonMSDNet:
    """The fastest division of taps and launch for a network and window."""
    network = make(NETWORKS[name])
    x = torch.randn(shape, device=GPU)
    best: tuple[float, TritonMSDNet] | None = None
    chosen = TritonMSDNet(network, dtype=torch.bfloat16, device=GPU).plan.pull
    for pull in ("x", "none", "all"):
        fast = TritonMSDNet(network, dtype=torch.bfloat16, device=GPU, pull=pull)
        # Launches for the way that was planned; the others only to see whether the plan was right.
        if pull == chosen:
            times = fast.tune(lambda work: seconds(work, 3), x)
        else:
            times = {Launch(): seconds(lambda fast=fast: fast.particle_bytes(x), 3)}
        for launch, took in times.items():
            report.add(f"tune {name} {pull}", launch=str(launch)[6:], seconds=took)
        took = min(times.values())
        if best is None or took < best[0]:
            best = (took, fast)
    assert best is not None
    return best[1]


def plain_seconds(report: Report, kind: dict, shapes, dtype=torch.bfloat16) -> float:
    """Seconds a voxel of the plain network in eager mode, the best of some window shapes."""
    network, best = make(kind), math.inf
    for shape in shapes:
        x = torch.randn(shape, device=GPU, dtype=dtype)
        with torch.inference_mode(), contextlib.suppress(torch.OutOfMemoryError):
            took = seconds(lambda x=x: network(x), 1)
            report.add(f"plain eager {str(dtype)[6:]} {tuple(shape)}", seconds=took)
            best = min(best, took / (x.numel() // x.shape[1]))
    torch.cuda.empty_cache()
    return best


def localize(report: Report, edge: int) -> None:
    """A tomogram from a memory-mapped file to bytes, and the plain network's time for it."""
    fast = tune(report, "localizer", (1, 1, 192, 192, 192))
    network = make(LOCALIZER)
    free = torch.cuda.mem_get_info()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.npy"
        np.save(path, np.random.default_rng(0).standard_normal((edge,) * 3, dtype=np.float32))
        volume = np.load(path, mmap_mode="r")
        size = fast.largest_window(volume.shape, 0.85 * free)
        report.add("window", edge=size, bytes_per_voxel=fast.bytes_per_voxel,
                   planned_gb=fast.memory_bytes(1, (size,) * 3) / 1e9)  # fmt: skip
        if size < edge:
            report.add("the volume does not fit; timed in windows without a halo", edge=size)
        for side in dict.fromkeys((size, min(size, edge // 2))):
            cuts = [slice(a, min(a + side, edge)) for a in range(0, edge, side)]
            boxes = [(z, y, x) for z in cuts for y in cuts for x in cuts]

            def whole(boxes=boxes) -> None:
                for result in stream_windows(fast.particle_bytes, volume, boxes, device=GPU):
                    result[0, 0, 0, 0]

            torch.cuda.reset_peak_memory_stats()
            took = seconds(whole, 3)
            report.add(f"localize {edge}^3, file to bytes, {len(boxes)} windows of {side}",
                       **rates(network, edge**3, took),
                       peak_gb=torch.cuda.max_memory_allocated() / 1e9)  # fmt: skip
        window = torch.randn(1, 1, size, size, size, device=GPU)
        alone = seconds(lambda: fast.particle_bytes(window), 3)
        report.add(f"localize {size}^3, on the device", **rates(network, size**3, alone))
    torch.cuda.empty_cache()
    each = plain_seconds(report, LOCALIZER, [(1, 1, 96, 96, 96), (1, 1, 192, 192, 192)])
    if each * edge**3 < 60:
        each = plain_seconds(report, LOCALIZER, [(1, 1, edge, edge, edge)])
    report.add(f"plain eager bf16 at {edge}^3 (scaled from its best window)",
               seconds=each * edge**3, ratio=each * size**3 / alone)  # fmt: skip


def classify(report: Report, count: int) -> None:
    """Subvolumes of 32^3 in batches, from host memory to probabilities there."""
    fast, network = tune(report, "classifier", (16, 1, 32, 32, 32)), make(CLASSIFIER)
    stack = np.random.default_rng(0).standard_normal((count, 1, 32, 32, 32), dtype=np.float32)
    best = math.inf
    for batch in (8, 32, 128, 512):
        parts = [stack[i : i + batch] for i in range(0, count, batch)]

        def whole(parts=parts) -> None:
            sources = [lambda part=part: part for part in parts]
            for result in stream_arrays(fast.probabilities, sources, device=GPU):
                result[0, 0, 0, 0, 0]

        torch.cuda.reset_peak_memory_stats()
        took = seconds(whole, 1)
        best = min(best, took)
        report.add(f"classify {count} of 32^3, batches of {batch}",
                   **rates(network, count * 32**3, took),
                   peak_gb=torch.cuda.max_memory_allocated() / 1e9)  # fmt: skip
    each = plain_seconds(report, CLASSIFIER, [(4, 1, 32, 32, 32), (32, 1, 32, 32, 32)])
    report.add("plain eager bf16, scaled", seconds=each * count * 32**3,
               ratio=each * count * 32**3 / best)  # fmt: skip


def train(report: Report) -> None:
    """A training step (forward, backward) in both types, plain and fast."""
    for name in ("localizer", "classifier", "shipped"):
        network = make(NETWORKS[name])
        for edge, dtype in ((64, torch.bfloat16), (64, torch.float32), (128, torch.bfloat16)):
            x = torch.randn(1, 1, edge, edge, edge, device=GPU, dtype=dtype)
            label = torch.randint(network.classes, (1, edge, edge, edge), device=GPU)
            took = {}
            for kind in ("fast", "plain"):

                def step(x=x, label=label, kind=kind, network=network) -> None:
                    network.zero_grad(set_to_none=True)
                    logits = triton_msdnet(network, x) if kind == "fast" else network(x)
                    torch.nn.functional.cross_entropy(logits.float(), label).backward()

                torch.cuda.reset_peak_memory_stats()
                with contextlib.suppress(torch.OutOfMemoryError):
                    took[kind] = seconds(step, 3 if kind == "fast" else 1)
                    report.add(f"train {name} {edge}^3 {str(dtype)[6:]} {kind}",
                               seconds=took[kind],
                               peak_gb=torch.cuda.max_memory_allocated() / 1e9)  # fmt: skip
            if len(took) == 2:
                report.add(f"train {name} {edge}^3 {str(dtype)[6:]}",
                           ratio=took["plain"] / took["fast"])  # fmt: skip
            torch.cuda.empty_cache()


def shipped(report: Report) -> None:
    """The shipped network, 8 layers of 16 maps."""
    fast, network = tune(report, "shipped", (1, 1, 192, 192, 192)), make(SHIPPED)
    x = torch.randn(1, 1, 256, 256, 256, device=GPU)
    took = seconds(lambda: fast.particle_bytes(x), 3)
    report.add("shipped 256^3, on the device", **rates(network, 256**3, took))
    each = plain_seconds(report, SHIPPED, [(1, 1, 128, 128, 128), (1, 1, 256, 256, 256)])
    report.add("plain eager bf16, scaled", seconds=each * 256**3, ratio=each * 256**3 / took)


def line(report: Report) -> None:
    """The whole line on 512^3 voxels, file to STAR files and page; see bench_stages."""
    script = Path(__file__).with_name("bench_stages.py")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "line.json"
        done = subprocess.run(
            [sys.executable, str(script), "--series", "line", "--output", str(output),
             "--picture", str(Path(folder) / "line.png")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:  # such as a machine without snakemake
            raise RuntimeError(done.stderr[-400:])
        rows = json.loads(output.read_text())["rows"]
    for row in rows:
        report.add(f"line {row['stage']}", seconds=row["seconds"], peak_mb=row["peak_mb"])
    report.add("line, all stages one after the other", seconds=sum(r["seconds"] for r in rows))


def main() -> int:
    """Check, then time; see the module's text."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--check", action="store_true", help="equality only")
    parser.add_argument("--edge", type=int, default=512, help="edge of the tomogram, voxels")
    parser.add_argument("--subvolumes", type=int, default=2800, help="subvolumes to classify")
    parser.add_argument("--results", type=Path, help="folder of the JSON",
                        default=Path(__file__).resolve().parent / "results")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, help="start no new part after these")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was run (see `tomoline doctor`)", file=sys.stderr)
        return 2
    started = time.monotonic()
    # The plain network is the reference: float32 as float32, and cuDNN may choose its best way.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report, name = Report(), torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    try:
        TritonMSDNet(make(NETWORKS["odd"]), dtype=torch.bfloat16, device=GPU)
    except DeviceError as problem:
        print(problem, file=sys.stderr)
        return 2
    parts = [
        ("forward", lambda: check_forward(report)),
        ("backward", lambda: check_gradients(report)),
        ("large", lambda: check_large(report, args.edge)),
    ]
    ceilings: dict[str, float] = {}
    if not args.check:
        parts += [
            ("ceilings", lambda: ceilings.update(measure_ceilings(report))),
            ("localize", lambda: localize(report, args.edge)),
            ("classify", lambda: classify(report, args.subvolumes)),
            ("train", lambda: train(report)),
            ("shipped", lambda: shipped(report)),
            ("line", lambda: line(report)),
        ]
    skipped = []
    for part, work in parts:
        if time.monotonic() - started > 60 * args.minutes:
            skipped.append(part)
            continue
        begun = time.monotonic()
        try:
            work()
        except (RuntimeError, AssertionError) as problem:  # say it, and go on with the next part
            report.failures.append(part)
            report.add(part, problem=f"{type(problem).__name__}: {str(problem)[:500]}")
        report.add(f"part {part}", minutes=(time.monotonic() - begun) / 60)
        torch.cuda.empty_cache()
        write(report, args, name, ceilings, skipped)
    write(report, args, name, ceilings, skipped)
    print(f"{len(report.failures)} failures {report.failures[:20]}; skipped for time: {skipped}")
    return 1 if report.failures else 0


def write(report: Report, args, name: str, ceilings: dict[str, float], skipped: list[str]) -> None:
    """Keep the figures, also in $OUT."""
    text = json.dumps(
        {
            "device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
            "python": sys.version.split()[0], "check_only": args.check, "edge": args.edge,
            "subvolumes": args.subvolumes, "ceilings": ceilings, "failures": report.failures,
            "skipped": skipped, "rows": report.rows,
        },
        indent=1,
    )  # fmt: skip
    stem = "gpu_" + name.lower().replace(" ", "_") + ("_check" if args.check else "")
    for folder in [args.results, *([Path(os.environ["OUT"])] if os.environ.get("OUT") else [])]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
