"""`tomoline watch`: onboard and run tomograms while the microscope, or its pipeline, writes them.

A file is taken when neither its size nor its time has changed for a while, measured between looks
with a clock that nobody sets, and when it is as long as its header promises. A tomogram that
failed is left out of further runs until its file changes or someone acts on it, so that a bad file
does not make an endless loop; results/<dataset>/logs/watch.json remembers these over a restart.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

from tomoline.errors import InputError, TomolineError
from tomoline.io.atomic import write_json
from tomoline.io.sheet import DATASETS_FOLDER, SheetRow, check_name, load_dataset
from tomoline.settings import Config, validated
from tomoline.stages.checks import CONFIG_FILE, check_run
from tomoline.stages.names import COMPRESSED, is_tomogram_name, is_truth_volume
from tomoline.stages.onboard import GONE, Outcome, Request, onboard
from tomoline.stages.status import TomogramStatus, collect_status
from tomoline.stages.summary import refresh

Say = Callable[[str], None]

# A file shorter than its header says that has not grown for so many times `settle_seconds` will
# not grow any more: it is onboarded, and refused there with the reason.
_SHORT_FOR_GOOD = 10
# The longest pause (s) before a run that could not even begin is tried again.
_LONGEST_PAUSE = 1800.0
_MOST_NAMES = 6
# Bytes of a voxel, by MRC mode; 101 holds two voxels in a byte.
_MODE_BYTES = {0: 1.0, 1: 2.0, 2: 4.0, 3: 4.0, 4: 8.0, 6: 2.0, 12: 2.0, 101: 0.5}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to watch and how; `request` is what `tomoline onboard` would be asked.

    `every_seconds` lie between looks, a file rests for `settle_seconds` before it is taken. `once`
    ends after what is there now; `for_seconds` ends the watch (None: when it is stopped).
    `arguments` go to snakemake.
    """

    request: Request
    every_seconds: float = 60.0
    settle_seconds: float = 120.0
    once: bool = False
    for_seconds: float | None = None
    arguments: tuple[str, ...] = ("--cores", "all")


@dataclass(frozen=True)
class _Sighting:
    """A file that is not in the sheet as it is now, and since when (monotonic, s) it is so."""

    size: int
    mtime_ns: int
    since: float


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """The state in which a tomogram failed: its file's, and its logs' (how many, the newest).

    Anything else means that somebody did something about it, so it may be tried again.
    """

    bytes: int
    mtime_ns: int
    logs: int
    newest_log_ns: int


def watch(
    plan: Plan, *, project: str | Path = ".", say: Say | None = None, program: Path | None = None
) -> int:
    """Watch until told to stop; returns 0, or 1 where tomograms of the dataset have failed.

    Parameters
    ----------
    say:
        Takes each message, one line; default: print it with the time.
    program:
        The snakemake to run; default: the one beside this Python.

    Raises
    ------
    InputError
        At the beginning: an unsafe name, a folder that is not there, no snakemake, or another
        watch of the same dataset. With `once` also what goes wrong in the look.
    KeyboardInterrupt
        It was stopped (Ctrl-C, SIGTERM, the terminal closed); a run was told to and waited for.
    """
    project = Path(project)
    name = check_name(plan.request.name, what="dataset name")
    program = program or Path(sys.executable).with_name("snakemake")
    _check_start(plan, project, program)
    watcher = _Watcher(plan, project, say or _print, program)
    with _held(project / "results" / name / "logs" / "watch.lock"), _signals():
        return watcher.loop()


def seconds_of(text: str) -> float:
    """Return a duration such as 8h, 90m, 1h30m, 45s or 120 (seconds); ValueError for others."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration such as 8h, 90m, 1h30m or 45s")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def seconds_until(text: str, *, now: datetime) -> float:
    """Return the seconds from `now` to a time of day HH:MM, tomorrow's if it has passed."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time of day such as 08:30 or 22:00")
    then = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    return (then + timedelta(days=then <= now) - now).total_seconds()


def promised_bytes(path: Path) -> int:
    """Return how long an uncompressed MRC file's header says it will be; 0 where it says nothing.

    A file too short for a header promises one (1024 bytes).
    """
    if path.name.lower().endswith(COMPRESSED):
        return 0
    with path.open("rb") as stream:
        raw = stream.read(1024)
    if len(raw) < 1024:
        return 1024
    order = ">" if raw[212:214] == b"\x11\x11" else "<"
    nx, ny, nz, mode = struct.unpack(f"{order}4i", raw[:16])
    (extended,) = struct.unpack(f"{order}i", raw[92:96])
    if raw[208:211] != b"MAP" or mode not in _MODE_BYTES or min(nx, ny, nz, extended) < 0:
        return 0
    return int(1024 + extended + math.ceil(nx * _MODE_BYTES[mode]) * ny * nz)


class _Watcher:
    """One watch: what it has seen, what it has said, what has failed."""

    def __init__(self, plan: Plan, project: Path, say: Say, program: Path) -> None:
        self.plan = plan
        self.project = project
        self.say = say
        self.program = program
        self.name = plan.request.name
        self.logs = project / "results" / self.name / "logs"
        self.folders = [Path(os.path.normpath(Path.cwd() / path)) for path in plan.request.paths]
        self.sightings: dict[Path, _Sighting] = {}
        self.growing: set[Path] = set()
        self.failed = _read_failures(self.logs / "watch.json")
        self.trouble = ""  # the last look's, so that it is told once
        self.onboarded = False
        self.idle_runs = 0
        self.not_before = 0.0  # monotonic; when a run may be tried again

    def loop(self) -> int:
        """Look until the time is up, or once; returns the exit code."""
        plan = self.plan
        begin = time.monotonic()
        end = math.inf if plan.for_seconds is None else begin + plan.for_seconds
        if not plan.once:
            self.say(
                f"watching {', '.join(map(str, self.folders))} every {plan.every_seconds:g} s "
                f"for dataset {self.name}; Ctrl-C stops"
            )
        while True:
            self._look_safely()
            now = time.monotonic()
            if plan.once or now >= end:
                break
            time.sleep(min(plan.every_seconds, end - now))
            if time.monotonic() >= end:
                break
        if not plan.once:
            self.say("the time is up: no further look")
        return 1 if self.failed or self.idle_runs else 0

    def _look_safely(self) -> None:
        """One look; what goes wrong is told, and the next one tries again."""
        try:
            self._look()
            if self.trouble:
                self.say("looking works again")
            self.trouble = ""
        except (TomolineError, OSError) as error:
            if self.plan.once:
                raise
            if str(error) != self.trouble:
                self.say(f"this look failed, the next one tries again: {error}")
            self.trouble = str(error)

    def _look(self) -> None:
        settled = self._settled()
        if self.plan.once and len(settled) < len(self.sightings):
            time.sleep(self.plan.settle_seconds)
            settled = self._settled()
        if settled:
            self._onboard(settled)
        self._run_what_is_due()

    # --- files ---------------------------------------------------------------------------------

    def _settled(self) -> list[Path]:
        """Return the files to onboard now, the oldest first; remember the others."""
        rows = self._rows()
        self._check_folders(rows)
        found = self._candidates(rows)
        self.sightings = {path: self.sightings[path] for path in found if path in self.sightings}
        new, settled = [], []
        for path, stat in found.items():
            before = self.sightings.get(path)
            if before is None or (before.size, before.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
                if before is None:
                    new.append(f"{path.name} ({_size(stat.st_size)})")
                before = _Sighting(stat.st_size, stat.st_mtime_ns, time.monotonic())
                self.sightings[path] = before
            if self._is_settled(path, before):
                settled.append(path)
        if new:
            self.say(f"found {_listed(new)}")
        return sorted(settled, key=lambda path: (self.sightings[path].mtime_ns, path))

    def _is_settled(self, path: Path, seen: _Sighting) -> bool:
        settle = self.plan.settle_seconds
        rested = time.monotonic() - seen.since
        age = time.time() - seen.mtime_ns / 1e9
        # An age below 0: the file server's clock is ahead, and only our own looks count.
        if rested < settle or 0 <= age < settle:
            return False
        promised = promised_bytes(path)
        if promised <= seen.size:
            return True
        if settle and not self.plan.once and rested >= _SHORT_FOR_GOOD * settle:
            return True
        if path not in self.growing:
            self.growing.add(path)
            have = f"{_size(seen.size)} of {_size(promised)}"
            self.say(f"growing: {path.name} has {have} that its header promises")
        return False

    def _rows(self) -> dict[Path, SheetRow]:
        """The dataset's rows by the file's absolute path; none before the first onboarding."""
        if not (self.project / DATASETS_FOLDER / f"{self.name}.yaml").exists():
            return {}
        _, rows = load_dataset(self.name, folder=self.project / DATASETS_FOLDER)
        root = self.project.resolve()
        return {Path(os.path.normpath(root / row.path)): row for row in rows}

    def _check_folders(self, rows: Mapping[Path, SheetRow]) -> None:
        """Refuse to look where a network share has gone: its tomograms would all seem deleted."""
        for folder in self.folders:
            if not folder.is_dir():
                raise InputError(
                    folder,
                    expected="the folder to watch",
                    found="none",
                    remedy="is the share mounted, the computer on?",
                )
            known = [p for p, r in rows.items() if p.is_relative_to(folder) and r.reason != GONE]
            if known and not any(path.exists() for path in known):
                raise InputError(
                    folder,
                    expected=f"at least one of the {len(known)} tomograms onboarded from it",
                    found="none of them",
                    remedy="is the share mounted? If they were moved for good, onboard those that "
                    "are left with `tomoline onboard`",
                )

    def _candidates(self, rows: Mapping[Path, SheetRow]) -> dict[Path, os.stat_result]:
        """Files that are new, or not what the sheet says any more."""
        results = (self.project / "results").resolve()
        found: dict[Path, os.stat_result] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob(self.plan.request.pattern or "*")):
                if not self._is_wanted(path) or path.resolve().is_relative_to(results):
                    continue
                with contextlib.suppress(FileNotFoundError):  # renamed since it was listed
                    stat, row = path.stat(), rows.get(path)
                    if row is None or (row.file_bytes, row.file_mtime_ns) != (
                        stat.st_size,
                        stat.st_mtime_ns,
                    ):
                        found[path] = stat
        return found

    def _is_wanted(self, path: Path) -> bool:
        if path.name.startswith(".") or not str(path).isprintable() or not path.is_file():
            return False
        by_name = bool(self.plan.request.pattern) or is_tomogram_name(path)
        return by_name and not is_truth_volume(path)

    def _onboard(self, files: Sequence[Path]) -> None:
        request = replace(self.plan.request, paths=tuple(files), again=False)
        if self.onboarded:  # later the dataset's file rules, which the user may have edited
            request = replace(request, voxel_size_angstrom=None, contrast=None)
        outcome = onboard(request, project=self.project)
        self.onboarded = True
        for path in files:
            self.sightings.pop(path, None)
            self.growing.discard(path)
        self._tell_outcome(outcome)

    def _tell_outcome(self, outcome: Outcome) -> None:
        if outcome.added:
            self.say(f"onboarded {_listed(outcome.added)}")
        if outcome.changed:
            self.say(f"changed, onboarded again: {_listed(outcome.changed)}")
        fresh = {*outcome.added, *outcome.changed}
        for row in outcome.rows:
            if row.tomogram in fresh and row.verdict == "refused":
                self.say(f"{row.tomogram} is refused: {row.reason}")
        for note in outcome.notes:
            self.say(note)

    # --- runs ----------------------------------------------------------------------------------

    def _run_what_is_due(self) -> None:
        if not (self.project / DATASETS_FOLDER / f"{self.name}.yaml").exists():
            return
        rows = self._unfinished()
        before = self._marks(rows)
        left = {name: mark for name, mark in self.failed.items() if before.get(name) == mark}
        if left != self.failed:  # mended, finished, or taken out of the sheet
            self._remember(left)
        due = [row.tomogram for row in rows if row.tomogram not in left]
        if not due:
            self.idle_runs = 0
        elif time.monotonic() >= self.not_before:
            self._run(due, left=sorted(left), before=before)

    def _unfinished(self) -> list[TomogramStatus]:
        # no log is recent: nothing runs when this is asked, or another run holds the lock
        (dataset,) = collect_status(self.project, dataset=self.name, now=math.inf)
        return [row for row in dataset.tomograms if row.use and row.summary != "finished"]

    def _run(self, due: Sequence[str], *, left: Sequence[str], before: Mapping[str, _Mark]) -> None:
        command = self._command(left)
        # The names that are left out make it long; the rest is what the user would type.
        shown = shlex.join(["snakemake", *self._command(())[1:]])
        but = f", without {len(left)} that failed" if left else ""
        self.say(f"run started for {_listed(due)}{but}: {shown}")
        begin = time.monotonic()
        log = self.logs / "watch_run.log"
        code = self._wait_for(command, log)
        failed = self._marks(self._unfinished())
        tried = {name: mark for name, mark in failed.items() if mark != before.get(name)}
        self._remember({**{name: self.failed[name] for name in left}, **tried})
        done = len(set(due) - set(failed))
        took = timedelta(seconds=round(time.monotonic() - begin))
        self.say(f"run finished after {took}: {done} done, {len(tried)} failed")
        if tried:
            see = f"see `tomoline status --dataset {self.name}`"
            self.say(f"failed: {_listed(sorted(tried))}; {see}")
        self._note_idleness(idle=not done and not tried, code=code, log=log)
        if left and code == 0:
            # Snakemake leaves out what depends on all tomograms too, so sum up what is there.
            self._sum_up(log)

    def _note_idleness(self, *, idle: bool, code: int, log: Path) -> None:
        """After a run that did nothing, wait longer and longer before the next one."""
        if not idle:
            self.idle_runs, self.not_before = 0, 0.0
            return
        self.idle_runs += 1
        pause = min(self.plan.every_seconds * 2 ** min(self.idle_runs, 20), _LONGEST_PAUSE)
        self.not_before = time.monotonic() + pause
        again = "" if self.plan.once else f"; tried again in {timedelta(seconds=round(pause))}"
        self.say(f"snakemake (exit code {code}) began no tomogram: {_complaint(log)}{again}")

    def _command(self, left: Sequence[str]) -> list[str]:
        """Snakemake's arguments: the user's, the dataset, and what has failed and is left out."""
        arguments = list(self.plan.arguments)
        said = any(argument.startswith("datasets=") for argument in arguments)
        if not said and _configured(self.project) != [self.name]:
            chosen = f"datasets=[{self.name}]"
            given = [n for n, text in enumerate(arguments) if text in ("--config", "-C")]
            if given:  # a second --config would undo the first
                arguments.insert(given[0] + 1, chosen)
            else:
                arguments += ["--config", chosen]
        if left:
            arguments.append("--omit-from")
            arguments += [f"results/{self.name}/{name}/prepared.json" for name in left]
        return [str(self.program), *arguments]

    def _wait_for(self, command: Sequence[str], log: Path) -> int:
        """Run a command in the project; a stop is passed on once, and its end waited for."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            # In a session of its own, so that Ctrl-C and a closed terminal reach only us.
            child = subprocess.Popen(
                command, cwd=self.project, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                return child.wait()
            except KeyboardInterrupt:
                self.say("stopping: snakemake was told to end its jobs; please wait")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGINT)
                self._outwait(child)
                raise

    def _outwait(self, child: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                child.wait()
                return
            except KeyboardInterrupt:
                self.say(f"still waiting for snakemake (process {child.pid}) to end")

    def _sum_up(self, log: Path) -> None:
        """Write the dataset's files and page of what has finished, naming what has failed."""
        raw = yaml.safe_load((self.project / CONFIG_FILE).read_text(encoding="utf-8")) or {}
        config = validated(Config, {**raw, "datasets": [self.name]}, source=CONFIG_FILE)
        with log.open("a", encoding="utf-8") as output, contextlib.redirect_stderr(output):
            refresh(check_run(config, root=self.project, thorough=False), root=self.project)

    def _marks(self, rows: Sequence[TomogramStatus]) -> dict[str, _Mark]:
        """The state of tomograms' files and logs, by name."""
        paths = {row.tomogram: path for path, row in self._rows().items() if row.wanted}
        marks = {}
        for name in (row.tomogram for row in rows):
            size, changed = 0, 0
            with contextlib.suppress(OSError, KeyError):
                stat = paths[name].stat()
                size, changed = stat.st_size, stat.st_mtime_ns
            logs = self.logs.parent / name / "logs"
            times = [path.stat().st_mtime_ns for path in logs.glob("*")]
            marks[name] = _Mark(
                bytes=size, mtime_ns=changed, logs=len(times), newest_log_ns=max(times, default=0)
            )
        return marks

    def _remember(self, failed: Mapping[str, _Mark]) -> None:
        self.failed = dict(failed)
        values = {name: asdict(mark) for name, mark in sorted(self.failed.items())}
        write_json(self.logs / "watch.json", {"failed": values})


def _check_start(plan: Plan, project: Path, program: Path) -> None:
    for folder in plan.request.paths:
        if not folder.is_dir():
            raise InputError(
                folder,
                expected="a folder to watch",
                found="a file" if folder.exists() else "no such folder",
                remedy="make it first, or check the path; single files: tomoline onboard",
            )
    if not (project / CONFIG_FILE).is_file():
        raise InputError(
            project / CONFIG_FILE,
            expected="a project's settings",
            found="no such file",
            remedy="change to the project folder, or name it with --project",
        )
    if not program.is_file():
        raise InputError(
            program,
            expected="the program snakemake beside this Python",
            found="no such file",
            remedy="install Tomoline with its requirements (`make setup`)",
        )


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; one that a dead process left is taken over."""
    own = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": psutil.Process().create_time(),
    }
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _refuse_if_alive(lock)
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(own, stream)
        break
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _refuse_if_alive(lock: Path) -> None:
    owner = _read_json(lock)
    pid, host = owner.get("pid"), owner.get("host", "an unknown computer")
    if host == socket.gethostname():
        if _is_alive(pid, owner.get("started")):
            raise _second(lock, pid, host, "stop that one, or leave this to it")
        return
    if not owner:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > 10:
                return  # its writer died between making and filling it
    raise _second(lock, pid, host, f"stop that one; if that computer is down, remove {lock}")


def _is_alive(pid: Any, started: Any) -> bool:
    """Whether a process of this computer lives that began at `started` (s since the epoch)."""
    try:
        # a number is given again to other processes; the time of their start differs
        return bool(abs(psutil.Process(pid).create_time() - float(started)) < 2)
    except (psutil.NoSuchProcess, TypeError, ValueError):
        return False


def _second(lock: Path, pid: Any, host: Any, remedy: str) -> InputError:
    return InputError(
        lock,
        expected="no other `tomoline watch` of this dataset",
        found=f"one on {host}, process {pid}",
        remedy=remedy,
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal stop the block as Ctrl-C does, also in the background."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup's wish is respected. A shell's `&` makes SIGINT ignored, here and in snakemake,
        # which then could not be told to stop: that is undone.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_failures(path: Path) -> dict[str, _Mark]:
    """What an earlier watch remembered; nothing where its file is not what it wrote."""
    try:
        return {name: _Mark(**mark) for name, mark in _read_json(path).get("failed", {}).items()}
    except (TypeError, AttributeError):
        return {}


def _configured(project: Path) -> object:
    try:
        raw = yaml.safe_load((project / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return raw.get("datasets") if isinstance(raw, dict) else None


def _complaint(log: Path) -> str:
    """What snakemake said last, in a line."""
    lines = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    if any("LockException" in line or "cannot be locked" in line for line in lines):
        return (
            "another run holds this folder, or one that was killed left its lock "
            "(`tomoline recover`)"
        )
    wrong = [n for n, line in enumerate(lines) if re.search(r"error|exception", line, re.I)]
    said = lines[wrong[0] : wrong[0] + 2] if wrong else [line for line in lines if line][-1:]
    return (" ".join(said) or "it said nothing")[:400]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)
