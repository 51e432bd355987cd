"""Runs the members of a pack in SLURM's allocation: `python -m tomoline_slurm.runner FOLDER`.

Each member is a process of its own, so that it fails alone; some run at a time and share the GPU.
A job that SLURM starts again goes on with the members that have not ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tomoline.io.atomic import write_text
from tomoline_slurm.packs import read_exit_code, read_plan

GRACE_S = 20.0


class Runner:
    """The members of a pack and their processes."""

    def __init__(self, folder: Path) -> None:
        plan = read_plan(folder)
        self.folder = folder
        self.members: list[dict[str, Any]] = plan["members"]
        self.processes = int(plan["processes"])
        self.running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes] | None]] = {}
        self.failed = False

    def run(self) -> int:
        """Run all members that have not ended; 1 if any failed."""
        waiting = [n for n in range(len(self.members)) if read_exit_code(self.folder, n) is None]
        while waiting or self.running:
            while waiting and len(self.running) < self.processes:
                self._start(waiting.pop(0))
            self._collect()
            time.sleep(0.2)
        return int(self.failed)

    def _start(self, number: int) -> None:
        member = self.members[number]
        handle = None
        if len(self.members) > 1:
            path = Path(member["log"].replace("%j", os.environ.get("SLURM_JOB_ID", "0")))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
            print(f"{member['label']}: started, log {path}", flush=True)
        self.running[number] = (
            subprocess.Popen(
                ["/bin/sh", "-c", member["command"]], stdin=subprocess.DEVNULL,
                stdout=handle, stderr=handle, env=self._environment(number),
                start_new_session=True,
            ),
            handle,
        )  # fmt: skip

    def _environment(self, number: int) -> dict[str, str]:
        """Its share of the allocation: memory by the number of processes, GPUs in turn."""
        environment = dict(os.environ)
        environment["TOMOLINE_SHARE"] = str(self.processes)
        devices = [d for d in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        if self.processes > 1 and len(devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        return environment

    def _collect(self) -> None:
        for number, (process, handle) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[number]
            if handle is not None:
                handle.close()
            self.failed |= code != 0
            write_text(self.folder / f"{number}.rc", str(code))
            print(f"{self.members[number]['label']}: ended with {code}", flush=True)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """End all members; they leave no exit code, so that they are seen as not having ended."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process, _ in self.running.values():
                if process.poll() is None:
                    os.killpg(process.pid, sign)
            limit = time.monotonic() + GRACE_S
            while time.monotonic() < limit and any(
                process.poll() is None for process, _ in self.running.values()
            ):
                time.sleep(0.1)
        sys.exit(128 + number)


def main(folder: str) -> int:
    """Run the pack of a folder."""
    runner = Runner(Path(folder))
    signal.signal(signal.SIGTERM, runner.stop)
    return runner.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
