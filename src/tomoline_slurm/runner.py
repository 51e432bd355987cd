"""Runs the members of a pack in SLURM's allocation: `python -m tomoline_slurm.runner FOLDER`.

Each member is a process of its own, so that it fails alone; some run at a time and share the GPU,
where one process keeps the networks for all (`tomoline.warm`, which the first member starts).
A job that SLURM starts again goes on with the members that have not ended; one whose driver has
given it up finds its pack removed, and does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tomoline.errors import TomolineError
from tomoline.io.atomic import write_text
from tomoline.io.warm_folder import VARIABLE, warm_folder
from tomoline_slurm.packs import read_exit_code, read_plan

# Between asking members to end and killing them; SLURM itself kills all after KillWait, often 30 s.
GRACE_S = 20.0
# A job that is ended by SLURM gets its signal together with its members, which may die first: a
# failure is noted only if no signal comes within this time.
SETTLE_S = 1.0
# How long a share may take to show a new folder, and a full disk to take an exit code.
PLAN_S, WRITE_S = 15.0, 300.0


class Runner:
    """The members of a pack and their processes."""

    def __init__(self, folder: Path) -> None:
        plan = _plan(folder)
        self.folder = folder
        self.members: list[dict[str, Any]] = plan["members"]
        self.processes = int(plan["processes"])
        self.running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes] | None]] = {}
        self.devices: dict[int, str] = {}
        self.codes: dict[int, int] = {}
        self.unwritten: dict[int, float] = {}
        self.signal = 0
        self.warm = ""

    def run(self) -> int:
        """Run all members that have not ended; 0 if all have ended well, now or earlier."""
        with contextlib.ExitStack() as stack:
            if _has_gpu() and os.environ.get(VARIABLE) != "":
                try:
                    self.warm = str(stack.enter_context(warm_folder()))
                except OSError as error:
                    print(f"networks are not kept between tomograms: {error}", flush=True)
            return self._run()

    def _run(self) -> int:
        # The codes are kept: the driver removes the folder as soon as it has seen the last of them.
        for number in range(len(self.members)):
            code = read_exit_code(self.folder, number)
            if code is not None:
                self.codes[number] = code
        waiting = [n for n in range(len(self.members)) if n not in self.codes]
        while waiting or self.running:
            while waiting and len(self.running) < self.processes and not self.signal:
                self._start(waiting.pop(0))
            time.sleep(0.2)
            self._collect()
            if self.signal:
                self._end()
                return 128 + self.signal
        return int(any(self.codes.values()))

    def _start(self, number: int) -> None:
        member = self.members[number]
        handle = self._log(member) if len(self.members) > 1 else None
        process = subprocess.Popen(
            ["/bin/sh", "-c", member["command"]], stdin=subprocess.DEVNULL,
            stdout=handle, stderr=handle, env=self._environment(number), start_new_session=True,
        )  # fmt: skip
        self.running[number] = (process, handle)

    def _log(self, member: Mapping[str, Any]) -> IO[bytes] | None:
        """Open a member's log; where that fails it writes to the job's."""
        path = Path(member["log"].replace("%j", os.environ.get("SLURM_JOB_ID", "0")))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
        except OSError as error:
            print(f"{member['label']}: started, without a log of its own: {error}", flush=True)
            return None
        print(f"{member['label']}: started, log {path}", flush=True)
        return handle

    def _environment(self, number: int) -> dict[str, str]:
        """Its share of the allocation: memory by the number of processes, the least used GPU."""
        environment = dict(os.environ)
        environment["TOMOLINE_SHARE"] = str(self.processes)
        environment[VARIABLE] = self.warm
        devices = [d for d in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        if self.processes > 1 and len(devices) > 1:
            used = [self.devices[n] for n in self.running if n in self.devices]
            self.devices[number] = min(devices, key=used.count)
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[number]
        return environment

    def _collect(self) -> None:
        """Note how members ended, but not while the job itself is being ended."""
        ended = {n: process.poll() for n, (process, _) in self.running.items()}
        if any(code for code in ended.values()):
            time.sleep(SETTLE_S)
        for number, code in ended.items():
            if code is not None and not self.signal and self._noted(number, code):
                self.codes.setdefault(number, code)
                handle = self.running.pop(number)[1]
                if handle is not None:
                    handle.close()
                print(f"{self.members[number]['label']}: ended with {code}", flush=True)

    def _noted(self, number: int, code: int) -> bool:
        """Leave an exit code for the driver; False where it has to be tried again."""
        try:
            write_text(self.folder / f"{number}.rc", str(code))
        except (OSError, TomolineError) as error:
            since = self.unwritten.setdefault(number, time.monotonic())
            if time.monotonic() - since < WRITE_S:
                return False
            print(f"the exit code could not be left: {error}", flush=True)
            self.codes[number] = 1
        return True

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; no exit codes are left any more, so that SLURM may go on later."""
        self.signal = number

    def _end(self) -> None:
        """End all members: asked first, then killed, with all that they started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process, _ in self.running.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, sign)
            limit = time.monotonic() + GRACE_S
            while time.monotonic() < limit and any(
                process.poll() is None for process, _ in self.running.values()
            ):
                time.sleep(0.1)


def _has_gpu() -> bool:
    """Whether SLURM has given this job a GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1", "NoDevFiles")


def _plan(folder: Path) -> Mapping[str, Any]:
    limit = time.monotonic() + PLAN_S
    while True:
        try:
            return read_plan(folder)
        except FileNotFoundError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.5)


def main(folder: str) -> int:
    """Run the pack of a folder."""
    try:
        runner = Runner(Path(folder))
    except FileNotFoundError:
        print(f"{folder} is gone: the driver has given this job up, nothing is done", flush=True)
        return 1
    signal.signal(signal.SIGTERM, runner.stop)
    return runner.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
