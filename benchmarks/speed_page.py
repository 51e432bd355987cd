"""Write the tables of docs/speed.md and its pictures from the figures in benchmarks/results.

    .venv/bin/python benchmarks/speed_page.py

What stands between `<!-- NAME -->` and `<!-- end -->` is replaced. A figure that was not measured
(no GPU) is left out and said so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md"
PICTURES = ROOT / "docs" / "pictures"
KINDS = ("plain float32", "plain bfloat16", "oneDNN float32", "oneDNN bfloat16",
         "kernel float32", "kernel bfloat16")  # fmt: skip


def read(name: str) -> dict[str, Any] | None:
    """A benchmark's figures, or None."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def msdnet(result: dict[str, Any]) -> str:
    """Seconds and the ratio to plain layers, a row a network, size and direction."""
    rows = []
    keys = dict.fromkeys((r["network"], r["what"], r["edge"]) for r in result["rows"])
    for network, what, edge in keys:
        own = {r["kind"]: r for r in result["rows"]
               if (r["network"], r["what"], r["edge"]) == (network, what, edge)}  # fmt: skip
        cells = []
        for kind in KINDS:
            row = own.get(kind)
            ratio = f" ({row['times_plain']:.1f})" if row and row["times_plain"] else ""
            cells.append(f"{row['seconds']:.2f}{ratio}" if row else "")
        rows.append([network, what, f"{edge}", *cells])
    words = f"{result['machine']}, torch {result['torch']}; seconds (times plain float32)."
    return words + "\n\n" + table(["network", "direction", "edge", *KINDS], rows)


def draw_msdnet(result: dict[str, Any], path: Path) -> None:
    """GFLOP/s of each kind at the largest edge that all were measured at."""
    groups = []
    for network, what in dict.fromkeys((r["network"], r["what"]) for r in result["rows"]):
        own = [r for r in result["rows"] if (r["network"], r["what"]) == (network, what)]
        full = [
            e for e in {r["edge"] for r in own} if sum(r["edge"] == e for r in own) == len(KINDS)
        ]
        if full:
            edge = max(full)
            rates = {r["kind"]: r["gflops"] for r in own if r["edge"] == edge}
            groups.append((f"{network}\n{what}, {edge}³", rates))
    figure = Figure(figsize=(11, 4), layout="constrained")
    at = figure.subplots()
    for k, kind in enumerate(KINDS):
        at.bar([g + (k - 2.5) * 0.14 for g in range(len(groups))],
               [rates.get(kind, 0) for _, rates in groups], 0.13, label=kind)  # fmt: skip
    at.set_xticks(range(len(groups)), [name for name, _ in groups], fontsize=7)
    at.set(ylabel="GFLOP/s", title=result["machine"])
    at.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def volume(result: dict[str, Any]) -> str:
    """One sentence."""
    shape = " x ".join(map(str, result["shape"]))
    return (
        f"{result['machine']}: {shape} voxels through the {result['network']} localizer "
        f"({result['kernel']}, {result['precision']}) in {result['seconds'] / 60:.1f} minutes, in "
        f"{result['windows']} windows with a halo of {result['halo_vox']}, "
        f"{result['cost']:.2f} voxels computed for each kept, {result['gflops']:.0f} GFLOP/s; at "
        f"most {result['peak_gb']:.1f} GB resident."
    )


def stages(result: dict[str, Any]) -> str:
    """A table a series: seconds and MB at each size, and the exponents."""
    parts = [f"{result['machine']}; {result['flips']} flip(s)."]
    for series, powers in result["exponents"].items():
        own = [r for r in result["rows"] if r["series"] == series]
        sizes = list(dict.fromkeys((tuple(r["shape_zyx"]), r["particles"]) for r in own))
        head = ["stage", *(f"{' x '.join(map(str, s))}, {n} particles" for s, n in sizes),
                "exponent of time", "of memory"]  # fmt: skip
        rows = []
        for stage, power in powers.items():
            cells = []
            for shape, number in sizes:
                (row,) = [r for r in own if (r["stage"], tuple(r["shape_zyx"]), r["particles"])
                          == (stage, shape, number)]  # fmt: skip
                cells.append(f"{row['seconds']:.1f} s, {row['peak_mb'] / 1e3:.2f} GB")
            words = ["start-up" if p is None else f"{p:g}" for p in power.values()]
            rows.append([stage, *cells, *words])
        parts.append(f"Series `{series}`:\n\n" + table(head, rows))
    return "\n\n".join(parts)


def gpu() -> str:
    """Rows of every GPU that was measured."""
    files = sorted(RESULTS.glob("gpu_*.json"))
    if not files:
        return "Not measured yet: no GPU was at hand. `benchmarks/bench_gpu.py` measures all of it."
    parts = []
    for path in files:
        result = json.loads(path.read_text())
        rows = [[r["what"] if "what" in r else r.get("name", ""),
                 ", ".join(f"{k} {v:.3g}" for k, v in r.items() if isinstance(v, float))]
                for r in result["rows"]]  # fmt: skip
        parts.append(f"{result['device']}, torch {result['torch']}\n\n" + table(["", ""], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Replace the tables, draw the pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text()
    texts = {"gpu": gpu()}
    for name, file, make in (("msdnet", "msdnet_cpu", msdnet), ("volume", "volume_cpu", volume),
                             ("stages", "stages", stages)):  # fmt: skip
        found = read(file)
        texts[name] = "Not measured." if found is None else make(found)
        if name == "msdnet" and found is not None:
            draw_msdnet(found, PICTURES / "msdnet.png")
    for name, text in texts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda m, t=text: m[1] + t + "\n" + m[2], page, flags=re.S)
        assert count == 1, f"{PAGE} has no place for {name}"
    PAGE.write_text(page)
    print(PAGE)


if __name__ == "__main__":
    main()
