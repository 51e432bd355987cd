"""One driver a project: who it is, and what is done about one that died without a word.

Snakemake's lock says that a run is under way but not whose. Beside it lies `driver.json` with the
driver's host, process and SLURM run. A driver that was killed leaves the lock and its jobs behind;
the next one sees that the process is gone, ends those jobs, which would write the same files, and
removes the lock. Jobs that ended in the meantime keep their outputs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tomoline.errors import InputError
from tomoline.io.atomic import write_json
from tomoline.log import get_logger
from tomoline_slurm.commands import cancel_run
from tomoline_slurm.records import FOLDER, QUEUE

log = get_logger(__name__)

RECORD = FOLDER / "driver.json"
LOCKS = Path(".snakemake") / "locks"
# A driver on another host cannot be looked at; it touches its record every few minutes.
SILENT_S = 1800.0


@dataclass(frozen=True)
class Driver:
    """A running snakemake: `started` is the process's start in seconds since the epoch."""

    host: str
    pid: int
    started: float
    run: str = ""

    @classmethod
    def this(cls, run: str = "") -> Driver:
        """The present process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, round(psutil.Process(pid).create_time(), 2), run)

    @classmethod
    def last(cls) -> Driver | None:
        """The driver that wrote the record of the present folder, if there is one."""
        try:
            return cls(**json.loads(RECORD.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_this(self) -> bool:
        """Whether it is the present process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    @property
    def alive(self) -> bool | None:
        """Whether its process is there; None where that cannot be known from this host."""
        same: bool
        if self.host != socket.gethostname():
            silent = time.time() - RECORD.stat().st_mtime > SILENT_S
            return None if silent else True
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            same = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        return same

    def save(self) -> None:
        """Write the record."""
        write_json(RECORD, asdict(self))


def claim(unlock: Callable[[], None]) -> None:
    """Take the folder over from a driver that died; call it before a run is planned.

    Where another driver is alive nothing is done: Snakemake's own lock then refuses the run.

    Raises
    ------
    InputError
        The last driver ran on another host and has been silent for long.
    SlurmError
        The jobs it left cannot be ended.
    """
    last = Driver.last()
    if last is not None and not last.is_this:
        if last.alive:
            return
        if last.alive is None:
            raise InputError(
                RECORD, expected="no other run, or one that can be seen from this machine",
                found=f"one begun on {last.host} (process {last.pid}), silent for over "
                f"{SILENT_S / 60:.0f} minutes",
                remedy=f"look on {last.host} whether it still runs; if it does not: "
                "`tomoline recover`",
            )  # fmt: skip
        recover(last, unlock)
    Driver.this(last.run if last is not None and last.is_this else "").save()
    atexit.register(release)


def recover(last: Driver, unlock: Callable[[], None]) -> list[str]:
    """End what a dead driver left running and remove its lock; returns the SLURM jobs ended."""
    log.warning("an earlier run (process %d on %s) ended without a word: taking over",
                last.pid, last.host)  # fmt: skip
    jobs = cancel_run(last.run) if last.run else []
    if jobs:
        log.warning("%d of its SLURM jobs were cancelled: %s", len(jobs), ", ".join(jobs))
    for name in _end_processes():
        log.warning("ended its process %s", name)
    unlock()
    # Snakemake's own removes the folder, and misses it when it locks again.
    LOCKS.mkdir(parents=True, exist_ok=True)
    RECORD.unlink(missing_ok=True)
    return jobs


def release() -> None:
    """Remove the record at the end of the present driver."""
    last = Driver.last()
    if last is not None and last.is_this:
        for path in (RECORD, QUEUE):
            with contextlib.suppress(OSError):
                path.unlink()


def note_run(run: str) -> None:
    """Add to the record under which name the present driver's SLURM jobs run."""
    Driver.this(run).save()


def beat() -> None:
    """Say that the present driver is alive."""
    with contextlib.suppress(OSError):
        os.utime(RECORD)


def recover_here() -> list[str]:
    """What `tomoline recover` does: take over from the last driver of this folder, if it died.

    Returns lines that say what was done.

    Raises
    ------
    InputError
        The last driver is alive, on this host or on another one that speaks.
    """
    last = Driver.last()
    if last is None:
        held = list(LOCKS.glob("*.lock"))
        _remove_locks()
        return [f"removed a lock that no run here holds ({len(held)} files)"] if held else []
    if last.alive:
        raise InputError(
            RECORD, expected="a run that has ended",
            found=f"process {last.pid} on {last.host}, which is alive",
            remedy=f"stop it with `kill -INT {last.pid}` on {last.host}, or wait for it",
        )  # fmt: skip
    jobs = recover(last, _remove_locks)
    done = [f"took over from process {last.pid} on {last.host} and removed its lock"]
    return [*done, *([f"cancelled SLURM jobs {', '.join(jobs)}"] if jobs else [])]


def _remove_locks() -> None:
    for path in LOCKS.glob("*.lock"):
        path.unlink(missing_ok=True)


def _end_processes() -> list[str]:
    """End the jobs of a local run whose driver died; they work in this very folder."""
    here, ended = Path.cwd(), []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if process.info["cwd"] != str(here) or process.pid == os.getpid():
            continue
        if any("/.snakemake/scripts/" in word for word in command):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)
                ended.append(f"{process.pid} ({Path(command[-1]).name})")
    return ended
