"""Whose the run in a folder is, and what is done about a driver that died without a word."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_slurm import AWAY, FakeSlurm, wait_until

from tomoline.errors import InputError
from tomoline_slurm import driver
from tomoline_slurm.commands import SlurmError
from tomoline_slurm.driver import (
    GATE,
    LOCKS,
    RECORD,
    SILENT_S,
    Driver,
    beat,
    claim,
    note_run,
    recover_here,
    release,
)
from tomoline_slurm.records import QUEUE

ELSEWHERE = "another-node"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "_OWN_JOB", "")
    yield tmp_path
    atexit.unregister(release)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, and may be taken for a driver."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def driver_of(pid: int, run: str = "") -> Driver:
    started = psutil.Process(pid).create_time()
    return Driver(socket.gethostname(), pid, started, run, driver._ticks(pid))


def dead(run: str = "") -> Driver:
    """A driver of this host that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    known = driver_of(process.pid, run)
    process.kill()
    process.wait()
    return known


class Unlock:
    """Notes that Snakemake was asked to remove its lock, and does what its own does."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self) -> None:
        self.called = True
        for path in LOCKS.glob("*.lock"):
            path.unlink()
        if LOCKS.is_dir():
            LOCKS.rmdir()


def lock() -> Path:
    LOCKS.mkdir(parents=True)
    path = LOCKS / "0.output.lock"
    path.write_text("results/x\n")
    return path


def make_silent() -> None:
    long_ago = time.time() - SILENT_S - 60.0
    os.utime(RECORD, (long_ago, long_ago))


# --- who it is


def test_a_driver_is_read_as_it_was_written() -> None:
    this = Driver.this("run_1")
    this.save()
    assert Driver.last() == this
    assert (this.pid, this.run, this.host) == (os.getpid(), "run_1", socket.gethostname())
    assert this.is_this


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": "x"}'])
def test_a_broken_record_is_none(text: str) -> None:
    assert Driver.last() is None
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text(text)
    assert Driver.last() is None


def test_the_record_of_another_version_is_read() -> None:
    Driver.this("r").save()
    known = json.loads(RECORD.read_text())
    del known["ticks"], known["job"]
    RECORD.write_text(json.dumps({**known, "colour": "blue"}))
    last = Driver.last()
    assert last is not None
    assert last.is_this
    assert (last.run, last.ticks) == ("r", 0)


def test_whether_a_process_lives(other: subprocess.Popen[bytes]) -> None:
    known = driver_of(other.pid)
    assert known.alive is True
    assert not known.is_this
    other.kill()
    wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
    assert known.alive is False
    other.wait()
    assert known.alive is False


def test_a_number_that_another_process_was_given(other: subprocess.Popen[bytes]) -> None:
    known = driver_of(other.pid)
    assert replace(known, ticks=known.ticks - 100).alive is False
    assert replace(known, ticks=0, started=known.started - 100).alive is False


def test_a_clock_that_was_set_makes_nobody_dead(other: subprocess.Popen[bytes]) -> None:
    known = driver_of(other.pid)
    assert replace(known, started=known.started - 3600.0).alive is True


# --- on another host


def test_a_driver_elsewhere_lives_as_long_as_it_speaks() -> None:
    far = Driver(ELSEWHERE, os.getpid(), 1.0)
    assert far.alive is None  # there is no record to go by
    far.save()
    assert far.alive is True
    assert not far.is_this
    make_silent()
    assert far.alive is None


def test_a_driver_elsewhere_whose_job_is_over_is_dead(slurm: FakeSlurm) -> None:
    far = Driver(ELSEWHERE, 1, 1.0, job="55")
    far.save()
    slurm.says("squeue", "55|RUNNING\n")
    assert far.alive is True
    slurm.says("squeue", "55|NODE_FAIL\n")
    assert far.alive is False
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert far.alive is False
    slurm.fails("squeue", AWAY)
    assert far.alive is True


def test_a_job_that_slurm_started_again_succeeds_itself(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    Driver(ELSEWHERE, 1, 1.0, job="55").save()
    slurm.says("squeue", "55|RUNNING\n")
    monkeypatch.setattr(driver, "_OWN_JOB", "55")
    unlock = Unlock()
    claim(unlock)
    last = Driver.last()
    assert unlock.called
    assert last is not None
    assert last.is_this
    assert last.job == "55"


# --- taking a folder over


def test_the_first_driver_takes_the_folder() -> None:
    unlock = Unlock()
    claim(unlock)
    assert Driver.last() == Driver.this()
    assert not unlock.called


def test_a_driver_may_claim_twice() -> None:
    claim(Unlock())
    note_run("run_1")
    unlock = Unlock()
    claim(unlock)
    assert Driver.last() == Driver.this("run_1")
    assert not unlock.called


def test_a_living_driver_is_left_alone(other: subprocess.Popen[bytes]) -> None:
    known = driver_of(other.pid, "theirs")
    known.save()
    held = lock()
    unlock = Unlock()
    claim(unlock)
    assert Driver.last() == known
    assert held.exists()
    assert not unlock.called


def test_a_dead_drivers_jobs_are_ended_and_its_lock_goes(slurm: FakeSlurm) -> None:
    dead("theirs").save()
    for job, state in {"7": "RUNNING", "8": "COMPLETED", "9": "PENDING"}.items():
        slurm.state(job, state)
    held = lock()
    unlock = Unlock()
    claim(unlock)
    assert slurm.calls("scancel") == [["--quiet", "7", "9"]]
    assert "--name=theirs" in slurm.calls("squeue")[0]
    assert unlock.called
    assert not held.exists()
    assert LOCKS.is_dir()  # Snakemake misses it when it locks again
    assert Driver.last() == Driver.this()


def test_a_dead_driver_that_used_no_slurm(slurm: FakeSlurm) -> None:
    dead().save()
    claim(Unlock())
    assert slurm.calls("squeue") == []
    assert Driver.last() == Driver.this()


def test_nothing_is_taken_over_while_slurm_is_away(slurm: FakeSlurm) -> None:
    known = dead("theirs")
    known.save()
    slurm.fails("squeue", AWAY)
    slurm.fails("sacct", AWAY)
    unlock = Unlock()
    with pytest.raises(SlurmError, match="Unable to contact"):
        claim(unlock)
    assert Driver.last() == known
    assert not unlock.called


def test_a_silent_driver_elsewhere_is_for_a_person_to_judge() -> None:
    far = Driver(ELSEWHERE, 12, 1.0, "theirs")
    far.save()
    make_silent()
    with pytest.raises(InputError, match=f"{ELSEWHERE}.*process 12.*tomoline recover"):
        claim(Unlock())
    assert Driver.last() == far


def test_one_driver_at_a_time_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "GATE_S", 0.0)
    GATE.parent.mkdir(parents=True)
    with GATE.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="just starting"):
            claim(Unlock())
        assert Driver.last() is None
    claim(Unlock())
    assert Driver.last() == Driver.this()


def test_the_second_waits_for_the_first(
    monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[bytes]
) -> None:
    known = driver_of(other.pid)
    GATE.parent.mkdir(parents=True)
    with GATE.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)

        naps: list[float] = []

        def sleep(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:  # the first is through
                known.save()
                fcntl.flock(handle, fcntl.LOCK_UN)

        clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep)
        monkeypatch.setattr(driver, "time", clock)
        claim(Unlock())
    assert Driver.last() == known


# --- processes of a dead driver


SCRIPT = ".snakemake/scripts/tmp0.segment.py"
# Starts the script as the runner in a SLURM's job does: through others.
KEEPER = "import os, subprocess; subprocess.run(['/bin/sh', os.environ['SCRIPT']])"


def is_there(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


@pytest.fixture
def started(project: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended after the test, with those that they started."""
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("keeper", ["tomoline_slurm.runner", "/opt/bin/snakemake"])
def test_jobs_of_a_dead_local_run_are_ended(
    project: Path, started: list[subprocess.Popen[bytes]], keeper: str
) -> None:
    path = project / SCRIPT
    for folder in (path.parent, project / "elsewhere"):
        folder.mkdir(parents=True)
    path.write_text("echo begun\nsleep 60\nexit 1\n")

    def start(*command: str, folder: Path = project) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "SCRIPT": str(path)},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        return process

    lost = start("/bin/sh", str(path))
    unrelated = start("/bin/sh", "-c", "echo begun; sleep 60")
    far = start("/bin/sh", str(path), folder=project / "elsewhere")
    looked_after = start(sys.executable, "-c", KEEPER, keeper)
    (child,) = psutil.Process(looked_after.pid).children()
    dead().save()
    claim(Unlock())
    assert not is_there(lost)
    assert all(map(is_there, (unrelated, far, looked_after)))
    assert child.status() != psutil.STATUS_ZOMBIE


# --- the end of a driver


def test_a_driver_that_ends_leaves_no_record() -> None:
    Driver.this("r").save()
    QUEUE.write_text("{}")
    release()
    assert not RECORD.exists()
    assert not QUEUE.exists()
    release()


def test_the_record_of_another_stays(other: subprocess.Popen[bytes]) -> None:
    driver_of(other.pid).save()
    QUEUE.write_text("{}")
    release()
    assert RECORD.exists()
    assert QUEUE.exists()


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ("claim(print)", False),
        ("note_run('r')", False),
        ("claim(print); note_run('r')", False),
        ("claim(print); note_run('r'); leave()", True),
    ],
)
def test_the_record_goes_with_the_process_unless_jobs_are_left(done: str, left: bool) -> None:
    code = f"from tomoline_slurm.driver import *; {done}; assert Driver.last().is_this"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert RECORD.exists() is left


def test_the_run_is_noted_beside_a_dead_driver_but_not_a_living_one(
    other: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    living = driver_of(other.pid, "theirs")
    living.save()
    note_run("ours")
    assert Driver.last() == living
    assert "scancel --name=ours" in caplog.text
    dead("theirs").save()
    note_run("ours")
    assert Driver.last() == Driver.this("ours")


def test_a_sign_of_life_is_given_by_the_driver_alone(other: subprocess.Popen[bytes]) -> None:
    driver_of(other.pid).save()
    make_silent()
    beat()
    assert time.time() - RECORD.stat().st_mtime > SILENT_S
    Driver.this().save()
    make_silent()
    beat()
    assert time.time() - RECORD.stat().st_mtime < SILENT_S


# --- tomoline recover


def test_recover_where_nothing_is_left() -> None:
    assert recover_here() == []


def test_recover_removes_a_lock_that_nobody_holds() -> None:
    held = lock()
    assert recover_here() == ["removed a lock that no run here holds (1 files)"]
    assert not held.exists()


def test_recover_refuses_while_the_driver_lives(other: subprocess.Popen[bytes]) -> None:
    known = driver_of(other.pid)
    known.save()
    held = lock()
    with pytest.raises(InputError, match=f"kill -INT {other.pid}"):
        recover_here()
    assert held.exists()
    assert Driver.last() == known


def test_recover_refuses_while_a_driver_elsewhere_speaks() -> None:
    Driver(ELSEWHERE, 12, 1.0, "theirs").save()
    with pytest.raises(InputError, match=f"kill -INT 12.* on {ELSEWHERE}"):
        recover_here()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_recover_takes_over(slurm: FakeSlurm, elsewhere: bool) -> None:
    known = Driver(ELSEWHERE, 12, 1.0, "theirs") if elsewhere else dead("theirs")
    known.save()
    make_silent()
    held = lock()
    slurm.state("31", "RUNNING")
    assert recover_here() == [
        f"took over from process {known.pid} on {known.host} and removed its lock",
        "cancelled SLURM jobs 31",
    ]
    assert not held.exists()
    assert Driver.last() is None
