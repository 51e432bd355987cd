"""What became of a tomogram's jobs on a cluster: one JSON object a line, `logs/slurm.jsonl`.

The executor appends; `tomoline status` and the report read the last line. A line has `time`, `run`,
`job` (SLURM's id), `state` (SLURM's word, or SUBMITTED, REFUSED, FORGOTTEN), `task`, `rules`,
`attempt`, `log` and, after a failure, `reason`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HISTORY = Path("logs") / "slurm.jsonl"
# What `tomoline retry` writes: nothing before it speaks of the present.
FORGOTTEN = "FORGOTTEN"
WAITING = frozenset({"SUBMITTED", "PENDING", "CONFIGURING", "REQUEUED"})
WORKING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT"})
_TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The last that is known of a tomogram's last job; `changed` in seconds since the epoch."""

    job: str
    state: str
    rules: tuple[str, ...] = ()
    log: str = ""
    reason: str = ""
    attempt: int = 1
    changed: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.state not in WAITING | WORKING | {"COMPLETED", FORGOTTEN}

    @property
    def text(self) -> str:
        """It in a few words: `SLURM job 1234 TIMEOUT, log PATH`."""
        if not self.job:
            return f"SLURM took no job: {self.reason}"
        shown = f", log {self.log}" if self.log and self.failed else ""
        return f"SLURM job {self.job} {self.state}{shown}"


def append(
    path: Path, *, run: str, job: str, state: str, rules: Sequence[str] = (), **more: Any
) -> None:
    """Add a line; OSError where it cannot be written."""
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "run": run, "job": job, "state": state, "rules": list(rules), **more,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry, ensure_ascii=False) + "\n")


def last_record(path: Path) -> JobRecord | None:
    """Read the last whole line; None where there is no file or nothing in it can be read."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - _TAIL_BYTES))
            lines = handle.read().decode("utf-8", errors="replace").splitlines()
        changed = path.stat().st_mtime
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return JobRecord(
                job=str(entry["job"]), state=str(entry["state"]), rules=tuple(entry["rules"]),
                log=str(entry.get("log", "")), reason=str(entry.get("reason", "")),
                attempt=int(entry.get("attempt", 1)), changed=changed,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue
    return None
