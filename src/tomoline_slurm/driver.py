"""One driver a project: who it is, and what is done about one that died without a word.

Snakemake's lock says that a run is under way but not whose. Beside it lies `driver.json` with the
driver's host, process and SLURM run. A driver that was killed leaves the lock and its jobs behind;
the next one sees that the process is gone, ends those jobs, which would write the same files, and
removes the lock. Jobs that ended in the meantime keep their outputs.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from tomoline.errors import InputError
from tomoline.io.atomic import write_json
from tomoline.log import get_logger
from tomoline_slurm.commands import SlurmError, cancel_run, is_over
from tomoline_slurm.records import FOLDER, QUEUE

log = get_logger(__name__)

RECORD = FOLDER / "driver.json"
LOCKS = Path(".snakemake") / "locks"
# Held while a driver takes the folder over, which two might begin at a time.
GATE, GATE_S = FOLDER / "driver.lock", 300.0
# A driver on another host cannot be looked at; it touches its record every few minutes.
SILENT_S = 1800.0
# The job that the present process runs in, if it does so on a node of that job (and not merely in a
# shell of `salloc`, which may outlive it). Snakemake's plugin removes it from the environment.
_OWN_JOB = os.environ.get("SLURM_JOB_ID", "") if "SLURMD_NODENAME" in os.environ else ""


@dataclass(frozen=True)
class Driver:
    """A running snakemake.

    `started` is the process's start in seconds since the epoch, which changes when the machine's
    clock is set; `ticks` the same as the kernel counts it (0: unknown). `job` is the SLURM job that
    it runs in itself.
    """

    host: str
    pid: int
    started: float
    run: str = ""
    ticks: int = 0
    job: str = ""

    @classmethod
    def this(cls, run: str = "") -> Driver:
        """The present process."""
        pid = os.getpid()
        started = round(psutil.Process(pid).create_time(), 2)
        return cls(socket.gethostname(), pid, started, run, _ticks(pid), _OWN_JOB)

    @classmethod
    def last(cls) -> Driver | None:
        """The driver that wrote the record of the present folder, if there is one."""
        known = {field.name for field in fields(cls)}
        try:
            record = json.loads(RECORD.read_text(encoding="utf-8"))
            return cls(**{key: value for key, value in record.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    @property
    def is_this(self) -> bool:
        """Whether it is the present process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid()) and self.alive is True

    @property
    def alive(self) -> bool | None:
        """Whether its process is there; None where that cannot be known from this host."""
        if self.host != socket.gethostname():
            return self._alive_elsewhere()
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            ticks = _ticks(self.pid)
            if self.ticks and ticks:
                return self.ticks == ticks
            return bool(abs(process.create_time() - self.started) < 1.0)
        except psutil.Error:
            return None if _is_hidden() else False

    def _alive_elsewhere(self) -> bool | None:
        """By its SLURM job, if it runs in one; else by when it last touched its record."""
        if self.job:
            with contextlib.suppress(SlurmError):
                # SLURM may have started the very job again, on this host.
                if self.job == _OWN_JOB or is_over(self.job):
                    return False
        try:
            silent = time.time() - RECORD.stat().st_mtime > SILENT_S
        except OSError:
            return None
        return None if silent else True

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
    with _gate():
        last = Driver.last()
        if last is not None and not last.is_this:
            alive = last.alive
            if alive:
                return
            if alive is None:
                raise InputError(
                    RECORD, expected="no other run, or one that can be seen from this machine",
                    found=f"one begun on {last.host} (process {last.pid}), which cannot be seen "
                    "and has been silent for long",
                    remedy=f"look on {last.host} whether it still runs; if it does not: "
                    "`tomoline recover`",
                )  # fmt: skip
            recover(last, unlock)
        if last is None or not last.is_this:
            Driver.this().save()
    atexit.register(release)


@contextlib.contextmanager
def _gate() -> Iterator[None]:
    """Let one driver at a time take the folder over; without, where the share knows no locks."""
    GATE.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + GATE_S
    with GATE.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise InputError(
                        GATE,
                        expected="no other run that is just starting here",
                        found=f"one that has been for {GATE_S / 60:.0f} minutes",
                        remedy="end it, then give the same command again",
                    ) from None
                time.sleep(0.5)
                continue
            except OSError:
                pass
            break
        yield


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


def leave() -> None:
    """Keep the record when this driver ends: its jobs could not, and the next is to end them."""
    atexit.unregister(release)


def note_run(run: str) -> None:
    """Add to the record under which name the present driver's SLURM jobs run."""
    last = Driver.last()
    if last is not None and not last.is_this and last.alive is not False:
        log.warning(
            "another run (process %d on %s) works in this folder: should this one be killed, end "
            "its jobs by `scancel --name=%s`", last.pid, last.host, run,
        )  # fmt: skip
        return
    Driver.this(run).save()
    atexit.unregister(release)
    atexit.register(release)


def beat() -> None:
    """Say that the present driver is alive."""
    last = Driver.last()
    if last is not None and last.is_this:
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
    with _gate():
        last = Driver.last()
        if last is None:
            held = list(LOCKS.glob("*.lock"))
            _remove_locks()
            return [f"removed a lock that no run here holds ({len(held)} files)"] if held else []
        if last.alive:
            raise InputError(
                RECORD, expected="a run that has ended",
                found=f"process {last.pid} on {last.host}, which is alive",
                remedy=f"stop it with `kill -INT {last.pid}` on {last.host}, or wait for it; if "
                f"that machine is down, try again {SILENT_S / 60:.0f} minutes after it went",
            )  # fmt: skip
        jobs = recover(last, _remove_locks)
    done = [f"took over from process {last.pid} on {last.host} and removed its lock"]
    return [*done, *([f"cancelled SLURM jobs {', '.join(jobs)}"] if jobs else [])]


def _remove_locks() -> None:
    for path in LOCKS.glob("*.lock"):
        path.unlink(missing_ok=True)


def _end_processes() -> list[str]:
    """End the jobs of a local run whose driver died; they work in this very folder."""
    here, ended = str(Path.cwd()), []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if process.info["cwd"] != here or process.pid == os.getpid():
            continue
        if any("/.snakemake/scripts/" in word for word in command):
            with contextlib.suppress(psutil.Error):
                if _is_looked_after(process):
                    continue
                process.kill()
                process.wait(10)
                ended.append(f"{process.pid} ({Path(command[-1]).name})")
    return ended


def _is_looked_after(process: psutil.Process) -> bool:
    """Whether a living snakemake, or the runner in a SLURM job, has started a process."""
    return any(
        Path(word).name == "snakemake" or word == "tomoline_slurm.runner"
        for above in process.parents()
        if above.pid != os.getpid()
        for word in above.cmdline()[:5]
    )


def _is_hidden() -> bool:
    """Whether the record is another user's, whose processes this machine does not show."""
    try:
        return RECORD.stat().st_uid != os.getuid() and not Path("/proc/1").exists()
    except OSError:
        return False


def _ticks(pid: int) -> int:
    """When a process was started, in the kernel's ticks since the machine's start; 0: unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(fields.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
