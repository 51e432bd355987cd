"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor and number of cores, such as "AMD EPYC 9654 (x86_64), 2 cores"."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "unknown processor"
    return f"{name} ({platform.machine()}), {os.cpu_count()} cores"
