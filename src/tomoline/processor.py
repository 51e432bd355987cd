"""What this machine's processor can do. Nothing here loads torch."""

from __future__ import annotations

from pathlib import Path

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 natively (elsewhere float32 is faster)."""
    if not cpuinfo.is_file():
        return False
    flags = next((r for r in cpuinfo.read_text().splitlines() if r.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())
