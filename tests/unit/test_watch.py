"""`tomoline watch`: which files it takes and when, what it runs, what it never repeats.

Most tests run a small program instead of snakemake that writes what a finished or failed tomogram
leaves behind; the last one runs the workflow itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from tiny_project import CENTRES, ROOT, balls, make_project, write_tomogram

from tomoline import cli
from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.io.sheet import SheetRow, load_dataset
from tomoline.stages.onboard import Request
from tomoline.stages.retry import Selection, retry
from tomoline.stages.watch import Plan, promised_bytes, seconds_of, seconds_until, watch

FAKE = """#!{python}
import csv, json, pathlib, signal, sys, time
def note(name, value):
    with open(name, "a") as stream:
        stream.write(json.dumps(value) + "\\n")
signal.signal(signal.SIGINT, lambda *_: note("signals", "SIGINT"))
note("calls", sys.argv[1:])
if pathlib.Path("broken").exists():
    sys.exit("WorkflowError: the profile makes no sense")
if pathlib.Path("slow").exists():
    note("running", 1)
    time.sleep(30)  # ended early by the signal: see the loop below
    sys.exit(1)
with open("config/datasets/s.tsv") as stream:
    rows = [r for r in csv.DictReader(stream, delimiter="\\t") if r["use"] == "yes"]
code = 0
for row in rows:
    folder = pathlib.Path("results/s", row["tomogram"])
    if f"{{folder}}/prepared.json" in sys.argv or (folder / "particles.csv").exists():
        continue
    for name in ("logs", "export", "report"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if pathlib.Path("bad", row["tomogram"]).exists():
        line = "2026-01-01 00:00:00,000 ERROR   tomoline: InputError: it is bad\\n"
        (folder / "logs/prepare.log").write_text(line)
        code = 1
        continue
    for name in ("prepared.json", "candidates.csv", "particles.csv", "report/tomogram.html",
                 "export/relion5.star", "export/relion4.star", "export/particles.csv"):
        (folder / name).write_text("status\\n")
sys.exit(code)
"""


class Bench:
    """A project folder, a folder where tomograms arrive, a small snakemake, what was said."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.folder = root / "arrivals"
        self.folder.mkdir()
        (self.root / "config").mkdir(parents=True)
        (self.root / "config/config.yaml").write_text("datasets: [demo]\n")
        (self.root / "bad").mkdir()
        program = root / "bin" / "snakemake"
        program.parent.mkdir()
        program.write_text(FAKE.format(python=sys.executable))
        program.chmod(0o755)
        self.program = program
        self.said: list[str] = []
        self.answers: dict[str, Callable[[], None]] = {}

    def arrive(self, name: str, seed: int = 0, folder: Path | None = None) -> Path:
        path = (folder or self.folder) / f"{name}.mrc"
        data = np.random.default_rng(seed).normal(0, 20, (52, 84, 84))
        write_volume(path, data.astype(np.int8), 10.0)
        return path

    def say(self, text: str) -> None:
        self.said.append(text)
        for begin in list(self.answers):
            if text.startswith(begin):
                self.answers.pop(begin)()

    def watch(self, **changes: object) -> int:
        folders = changes.pop("folders", (self.folder,))
        request = Request(name="s", paths=tuple(folders))  # type: ignore[arg-type]
        plan: dict[str, object] = {"every_seconds": 0.05, "settle_seconds": 0.0, "once": True}
        self.said.clear()
        plan |= changes
        return watch(
            Plan(request=request, **plan),  # type: ignore[arg-type]
            project=self.root, say=self.say, program=self.program,
        )  # fmt: skip

    def stop(self) -> None:
        raise KeyboardInterrupt

    def watch_until(self, message: str, **changes: object) -> None:
        """Watch in a loop until a message, at most for some seconds."""
        self.answers[message] = self.stop
        with pytest.raises(KeyboardInterrupt):
            self.watch(once=False, for_seconds=15.0, **changes)

    def calls(self) -> list[list[str]]:
        path = self.root / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> dict[str, SheetRow]:
        _, rows = load_dataset("s", folder=self.root / "config/datasets")
        return {row.tomogram: row for row in rows}

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_there_is_onboarded_and_run_once(bench: Bench) -> None:
    bench.arrive("TS_01_rec")
    bench.arrive("TS_02", seed=1)
    (bench.folder / "notes.txt").write_text("not a tomogram")
    assert bench.watch() == 0
    assert set(bench.rows()) == {"TS_01", "TS_02"}
    assert bench.calls() == [["--cores", "all", "--config", "datasets=[s]"]]
    assert bench.heard("run finished after 0:00:0")
    assert bench.heard("2 done, 0 failed")
    assert bench.watch() == 0  # nothing is new: nothing is run
    assert len(bench.calls()) == 1
    assert not (bench.root / "results/s/logs/watch.lock").exists()


def test_what_the_configuration_names_alone_is_not_named_again(bench: Bench) -> None:
    (bench.root / "config/config.yaml").write_text("datasets: [s]\n")
    bench.arrive("TS_01")
    bench.watch(arguments=("--profile", "slurm"))
    assert bench.calls() == [["--profile", "slurm"]]


def test_only_what_is_new_is_added_and_edited_rows_stay(bench: Bench) -> None:
    bench.arrive("TS_01")
    bench.watch()
    sheet = bench.root / "config/datasets/s.tsv"
    sheet.write_text(sheet.read_text().replace("xyz\tTS_01", "xyz\tmy_series"))
    bench.arrive("TS_02", seed=1)
    bench.watch()
    assert bench.rows()["TS_01"].tilt_series == "my_series"
    assert bench.heard("onboarded TS_02")
    assert len(bench.calls()) == 2


def test_a_file_that_changes_between_looks_is_left(bench: Bench) -> None:
    path = bench.arrive("TS_01")

    def grow() -> None:
        with path.open("ab") as stream:
            stream.write(b"more")

    bench.answers["found TS_01.mrc (0.4 MB)"] = grow
    assert bench.watch(settle_seconds=0.2) == 0
    assert bench.calls() == []
    assert not (bench.root / "config/datasets/s.yaml").exists()
    assert bench.watch(settle_seconds=0.2) == 0  # now it has settled
    assert len(bench.calls()) == 1


def test_an_old_time_alone_does_not_make_a_file_settled(bench: Bench) -> None:
    path = bench.arrive("TS_01")
    os.utime(path, (1e9, 1e9))
    assert bench.watch(once=False, for_seconds=0.4, settle_seconds=30) == 0
    assert bench.calls() == []


def test_a_file_shorter_than_its_header_says_still_grows(bench: Bench) -> None:
    path = bench.arrive("TS_01")
    whole = path.read_bytes()
    assert promised_bytes(path) == len(whole)
    path.write_bytes(whole[: len(whole) // 2])

    def finish() -> None:
        path.write_bytes(whole)

    bench.answers["growing: TS_01.mrc has 0.2 MB of 0.4 MB"] = finish
    bench.watch_until("run finished", settle_seconds=0.2)
    assert bench.heard("growing: TS_01.mrc")
    assert bench.rows()["TS_01"].verdict == "ok"
    assert len(bench.calls()) == 1


def test_a_file_that_stays_short_is_refused_in_the_end(bench: Bench) -> None:
    path = bench.arrive("TS_01")
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    assert bench.watch() == 0
    assert not (bench.root / "config/datasets/s.yaml").exists()
    bench.watch_until("TS_01 is refused", settle_seconds=0.05)
    assert "truncated" in bench.rows()["TS_01"].reason
    assert bench.calls() == []
    path.write_bytes(whole)  # the transfer was repeated
    bench.watch()
    assert bench.rows()["TS_01"].wanted
    assert len(bench.calls()) == 1


def test_a_failed_tomogram_is_not_tried_at_every_look(bench: Bench) -> None:
    path = bench.arrive("TS_01")
    bench.arrive("TS_02", seed=1)
    (bench.root / "bad/TS_01").touch()
    assert bench.watch(once=False, for_seconds=1.0) == 1
    assert len(bench.calls()) == 1
    assert bench.heard("1 done, 1 failed")
    assert bench.heard("failed: TS_01; see `tomoline status --dataset s`")
    assert bench.watch() == 1  # nor after a restart
    assert len(bench.calls()) == 1
    bench.arrive("TS_03", seed=2)  # nor with others that arrive
    bench.watch(once=False, for_seconds=0.5)
    assert bench.calls()[1][-2:] == ["--omit-from", "results/s/TS_01/prepared.json"]
    assert bench.heard("run started for TS_03, without 1 that failed")
    (bench.root / "bad/TS_01").unlink()
    bench.arrive("TS_01", seed=3)  # but when its file is another one
    assert path.exists()
    assert bench.watch() == 0
    assert bench.heard("changed, onboarded again: TS_01")
    assert len(bench.calls()) == 3
    assert "--omit-from" not in bench.calls()[2]


def test_retry_makes_a_failed_one_be_tried_again(bench: Bench) -> None:
    bench.arrive("TS_01")
    (bench.root / "bad/TS_01").touch()
    assert bench.watch() == 1
    (bench.root / "bad/TS_01").unlink()
    assert bench.watch() == 1
    assert len(bench.calls()) == 1
    retry(Selection(failed=True), project=bench.root)
    assert bench.watch() == 0
    assert len(bench.calls()) == 2


def test_a_run_that_begins_nothing_is_told_and_blames_no_tomogram(bench: Bench) -> None:
    bench.arrive("TS_01")
    (bench.root / "broken").touch()
    assert bench.watch() == 1
    assert bench.heard("WorkflowError: the profile makes no sense")
    bench.watch(once=False, for_seconds=1.0)
    assert 2 < len(bench.calls()) < 7  # with growing pauses
    (bench.root / "broken").unlink()
    assert bench.watch() == 0
    assert bench.heard("1 done, 0 failed")


def test_a_folder_that_is_away_for_a_while_does_not_end_the_watch(bench: Bench) -> None:
    bench.arrive("TS_01")
    bench.watch()
    away = bench.folder.with_name("away")

    def leave() -> None:
        bench.folder.rename(away)

    def come_back() -> None:
        away.rename(bench.folder)
        bench.arrive("TS_02", seed=1)

    bench.answers["watching"] = leave
    bench.answers["this look failed, the next one tries again"] = come_back
    with pytest.raises(InputError, match="no such folder"):
        leave()
        try:
            bench.watch()
        finally:
            away.rename(bench.folder)
    bench.watch_until("looking works again")
    assert {name: row.wanted for name, row in bench.rows().items()} == {
        "TS_01": True, "TS_02": True,
    }  # fmt: skip


def test_an_unmounted_share_does_not_take_its_tomograms_out(bench: Bench, tmp_path: Path) -> None:
    path = bench.arrive("TS_01")
    bench.watch()
    path.rename(tmp_path / "TS_01.mrc")  # the mount point is there, and empty
    other = tmp_path / "other"
    other.mkdir()
    bench.arrive("TS_02", seed=1, folder=other)
    with pytest.raises(InputError, match="is the share mounted"):
        bench.watch(folders=(bench.folder, other))
    assert bench.rows()["TS_01"].wanted


def test_results_in_a_watched_project_are_no_tomograms(bench: Bench) -> None:
    bench.arrive("TS_01", folder=bench.root)
    (bench.root / "results/other/x").mkdir(parents=True)
    bench.arrive("prepared", folder=bench.root / "results/other/x")
    bench.watch(folders=(bench.root,))
    assert set(bench.rows()) == {"TS_01"}


def lock(bench: Bench, **changes: object) -> Path:
    path = bench.root / "results/s/logs/watch.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    owner["started"] = psutil.Process().create_time()
    path.write_text(json.dumps(owner | changes))
    return path


def test_a_second_watch_of_a_dataset_is_refused(bench: Bench) -> None:
    bench.arrive("TS_01")
    path = lock(bench)
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        bench.watch()
    lock(bench, host="microscope-pc")
    with pytest.raises(InputError, match=r"one on microscope-pc.*remove .*watch\.lock"):
        bench.watch()
    assert path.exists()
    assert bench.calls() == []


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 1.0}])
def test_the_lock_of_a_dead_watch_is_taken_over(bench: Bench, changes: dict[str, object]) -> None:
    bench.arrive("TS_01")
    path = lock(bench, **changes)
    assert bench.watch() == 0
    assert not path.exists()


def run_cli(bench: Bench, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with our small snakemake beside its Python."""
    code = (
        "import signal, sys; from tomoline import cli; "
        "signal.signal(signal.SIGINT, signal.SIG_IGN); "  # as of a job that a shell starts with &
        # not as under nohup, which the tests may be started with and watch obeys
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        f"sys.executable = {str(bench.program.with_name('python'))!r}; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "watch", *arguments], cwd=bench.root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_reaches_snakemake_once_and_is_waited_for(bench: Bench, number: int) -> None:
    bench.arrive("TS_01")
    (bench.root / "slow").touch()
    text = bench.program.read_text()
    slow = (
        'while not pathlib.Path("signals").exists():\n        time.sleep(0.02)\n    time.sleep(0.3)'
    )
    bench.program.write_text(text.replace("time.sleep(30)", slow))
    process = run_cli(bench, str(bench.folder), "--name", "s", "--settle", "0")
    begin = time.monotonic()
    while not (bench.root / "running").exists():
        assert time.monotonic() - begin < 30
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does, to all of its foreground
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping: snakemake was told to end its jobs" in out
    assert "tomoline watch: stopped" in err
    assert (bench.root / "signals").read_text().splitlines() == ['"SIGINT"']
    assert not (bench.root / "results/s/logs/watch.lock").exists()
    assert not (bench.root / "results/s/logs/watch.json").exists()  # nobody is to blame


def test_what_follows_the_dashes_is_snakemakes(bench: Bench) -> None:
    bench.arrive("TS_01")
    process = run_cli(
        bench, str(bench.folder), "--name", "s", "--once", "--settle", "0", "--every", "1m",
        "--contrast", "dark", "--", "--profile", "slurm", "--config", "keep=[mask]",
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert bench.calls() == [["--profile", "slurm", "--config", "datasets=[s]", "keep=[mask]"]]
    assert "run started for TS_01: snakemake --profile slurm" in out
    assert out.startswith(datetime.now().strftime("%Y-"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--name", "s"], "expected a folder to watch; found no such folder"),
        (["../arrivals/TS_01.mrc", "--name", "s"], "found a file"),
        (["../arrivals", "--name", "a b"], "expected a dataset name"),
        (["../arrivals", "--name", "s", "--project", "/"], "expected a project's settings"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    message: str,
) -> None:
    bench.arrive("TS_01")
    monkeypatch.chdir(bench.root)
    assert cli.main(["watch", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("120", 120), ("0.5", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "eight hours", "-3", "8:30", "1m2h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds_of(text)


def test_times_of_day() -> None:
    now = datetime(2026, 1, 31, 22, 0, 30)
    assert seconds_until("22:10", now=now) == 570
    assert seconds_until("8:00", now=now) == 10 * 3600 - 30
    assert seconds_until("22:00", now=now) == 24 * 3600 - 30
    with pytest.raises(ValueError, match="time of day"):
        seconds_until("25:00", now=now)
    with pytest.raises(SystemExit):
        cli.main(["watch", "x", "--name", "s", "--until", "noon"])


def test_with_the_workflow_itself_what_failed_before_is_left_out(tmp_path: Path) -> None:
    project = make_project(tmp_path, {name: CENTRES["two"] for name in ("one", "two")})
    stat = (tmp_path / "tomograms/two.mrc").stat()
    mark = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "logs": 0, "newest_log_ns": 0}
    project.file("logs").mkdir(parents=True)
    project.file("logs", "watch.json").write_text(json.dumps({"failed": {"two": mark}}))
    write_tomogram(tmp_path / "tomograms/three.mrc", balls(CENTRES["three"], seed=5))
    done = project.run(
        "tomoline", "watch", "tomograms", "--name", "tiny", "--once", "--settle", "0", "--",
        "--snakefile", str(ROOT / "Snakefile"), "--cores", "2",
        "--workflow-profile", str(ROOT / "profiles" / "default"),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "onboarded three" in done.stdout
    assert "run started for one, three, without 1 that failed" in done.stdout
    assert "2 done, 0 failed" in done.stdout
    assert not project.file("two", "logs").exists()
    combined = pd.read_csv(project.file("export", "csv", "particles.csv"))
    assert set(combined["tomogram"]) == {"one", "three"}
    table = pd.read_csv(project.file("report", "summary.csv")).set_index("tomogram")
    assert dict(table["state"]) == {"one": "finished", "two": "to do", "three": "finished"}
    shutil.rmtree(project.file())
