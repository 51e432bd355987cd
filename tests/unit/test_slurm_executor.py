"""The executor between Snakemake and SLURM: what it submits, believes, reports and cancels.

Time is a number that the tests set. The last tests run a small workflow with the real Snakemake.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_jobs import FakeJob, FakeLogger, FakeWorkflow
from fake_slurm import AWAY, FakeSlurm, wait_until

from tomoline.io.jobs import last_record
from tomoline_slurm import commands, driver, executor
from tomoline_slurm.driver import RECORD, Driver
from tomoline_slurm.executor import (
    ENDED_S,
    LOOK_S,
    OFFER_EVERY_S,
    OFFER_S,
    POLL_VARIABLE,
    RETURN_S,
    UNKNOWN_S,
    Executor,
)
from tomoline_slurm.packs import PACKS, read_plan
from tomoline_slurm.records import QUEUE

LATENCY_S = 60.0
GATHER_S = 2 * LOOK_S
LOGS = Path("results/slurm-logs")


class Clock:
    """The executor's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Parked(Executor):
    """Looks when a test says so; submits one pack after the other."""

    def __post_init__(self, test_mode: bool = False) -> None:
        super().__post_init__(test_mode)
        self._job_submission_executor.shutdown()
        self._job_submission_executor = ThreadPoolExecutor(1)

    def _wait_thread(self) -> None:
        pass


class Run:
    """A run of Snakemake in the present folder, with stand-ins on both sides of the executor."""

    def __init__(self, slurm: FakeSlurm, clock: Clock, **options: Any) -> None:
        self.slurm, self.clock, self.logger = slurm, clock, FakeLogger()
        self.workflow = FakeWorkflow(Path.cwd(), **{"logdir": LOGS, **options})
        self.scheduler = self.workflow.scheduler
        self.executor = Parked(self.workflow, self.logger)

    def ready(self, *jobs: FakeJob) -> None:
        """Jobs of which Snakemake has made the inputs."""
        self.executor.run_jobs(list(jobs))

    def look(self, seconds: float = LOOK_S) -> None:
        """One turn of the plugin's loop, after some seconds; waits for what it submits."""
        self.clock.now += seconds
        asyncio.run(self._look())
        with_threads = self.executor._job_submission_executor
        if not with_threads._shutdown:
            with_threads.submit(int).result(30)

    async def _look(self) -> None:
        active = list(self.executor.active_jobs)
        self.executor.active_jobs.clear()
        left = [info async for info in self.executor.check_active_jobs(active)]
        self.executor.active_jobs.extend(left)

    def submit(self, *jobs: FakeJob) -> None:
        """Jobs that are ready, and handed to sbatch."""
        self.ready(*jobs)
        self.look(0)
        if self.executor._gathered:
            self.look(GATHER_S)

    def answer(self, slurm_job: str, member: int, code: int) -> None:
        """A member has left its exit code."""
        (self.slurm.pack(slurm_job) / f"{member}.rc").write_text(str(code))

    @property
    def waited_for(self) -> list[str]:
        """Tomograms of the jobs in SLURM that have not been reported."""
        return sorted(info.job.tomogram for info in self.executor.active_jobs)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(executor, "time", clock)
    return clock


@pytest.fixture
def start(
    tmp_path: Path, slurm: FakeSlurm, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    """Begins a run, with options of the plugin; SLURM is asked at every look."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(POLL_VARIABLE, str(LOOK_S))
    (tmp_path / ".snakemake").mkdir()
    begun: list[Run] = []

    def start(**options: Any) -> Run:
        begun.append(Run(slurm, clock, **options))
        return begun[-1]

    yield start
    for run in begun:
        run.executor._job_submission_executor.shutdown(cancel_futures=True)
        atexit.unregister(run.executor.clean_old_logs)
    atexit.unregister(driver.release)


@pytest.fixture
def run(start: Callable[..., Run]) -> Run:
    return start()


def job(tomogram: str = "a", *, bundle: int = 1, **changes: Any) -> FakeJob:
    known = {key: changes.pop(key) for key in ("name", "threads", "attempt") if key in changes}
    wanted = {"slurm_partition": "cpu", "mem_mb": 1000, "runtime": 10, "bundle": bundle}
    return FakeJob(tomogram=tomogram, wanted={**wanted, **changes}, **known)


def history(tomogram: str = "a") -> list[dict[str, Any]]:
    path = Path("results/d", tomogram, "logs/slurm.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(tomogram: str = "a") -> list[str]:
    return [entry["state"] for entry in history(tomogram)]


def packs() -> list[Path]:
    return sorted(PACKS.iterdir()) if PACKS.is_dir() else []


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


# --- gathering


def test_jobs_that_become_ready_one_by_one_share_a_submission(run: Run) -> None:
    run.ready(job("a", bundle=4))
    run.look()
    run.ready(job("b", bundle=4))
    assert run.slurm.jobs == []
    run.look()
    assert run.slurm.jobs == ["100"]
    assert run.waited_for == ["a", "b"]
    assert [j.slurm for j in run.scheduler.submitted] == [["100"], ["100"]]
    assert len(read_plan(run.slurm.pack("100"))["members"]) == 2


def test_a_full_pack_waits_for_nothing(run: Run) -> None:
    run.ready(*(job(name, bundle=3) for name in "abcd"), job("e"))
    run.look(0)
    assert run.slurm.jobs == ["100", "101"]
    assert run.waited_for == ["a", "b", "c", "e"]
    run.look(GATHER_S)
    assert run.waited_for == ["a", "b", "c", "d", "e"]


def test_a_job_is_submitted_once(run: Run) -> None:
    run.submit(job("a"), job("b", bundle=2))
    for _ in range(5):
        run.look(GATHER_S)
    assert len(run.slurm.jobs) == 2
    assert len(run.scheduler.submitted) == 2


# --- the call of sbatch


def test_what_is_submitted(run: Run, tmp_path: Path) -> None:
    run.submit(job("a", bundle=2, mem_mb=3000, threads=2), job("b", bundle=2, threads=2))
    (call,) = run.slurm.calls("sbatch")
    assert option(call, "--job-name") == run.executor.run_uuid
    assert option(call, "--comment") == "prepare:"
    assert {"a", "b"} <= set(call)  # the rest of the comment
    assert option(call, "--output") == str(tmp_path / LOGS / "prepare" / "%j.log")
    assert (option(call, "-p"), option(call, "--mem"), option(call, "-t")) == ("cpu", "6000", "10")
    assert "--cpus-per-task=4" in call
    assert option(call, "-D") == str(tmp_path)
    assert "--open-mode=append" in call  # SLURM starts a job again with the same log
    assert not [word for word in call if word.startswith(("-A", "--account", "--wrap", "--array"))]
    script = (run.slurm.folder / "100.script").read_text().splitlines()
    assert script[0] == "#!/bin/sh"
    words = shlex.split(script[1])
    assert words[:4] == ["exec", sys.executable, "-m", "tomoline_slurm.runner"]
    assert Path(words[4]).is_absolute()


def test_members_are_run_by_one_snakemake_each(run: Run) -> None:
    run.submit(job("a"))
    (member,) = read_plan(run.slurm.pack("100"))["members"]
    assert "-m snakemake" in member["command"]
    assert "--executor" not in member["command"]
    assert "prepare:dataset=d,tomogram=a" in member["command"]


def test_a_job_alone_has_its_own_log(run: Run, tmp_path: Path) -> None:
    run.submit(job("a"))
    log = tmp_path / LOGS / "prepare" / "prepare_d_a"
    assert option(run.slurm.calls("sbatch")[0], "--output") == str(log / "%j.log")
    assert history()[0]["log"] == str(log / "100.log")
    assert log.is_dir()  # SLURM does not make it


def test_a_comment_is_no_longer_than_slurm_stores(run: Run) -> None:
    run.submit(*(job("x" * 150 + str(number), bundle=2) for number in range(2)))
    call = " ".join(run.slurm.calls("sbatch")[0])
    comment = call.partition("--comment ")[2].partition(" -p ")[0]
    assert len(comment.strip()) == executor.COMMENT_LENGTH


def test_options_of_the_plugin_that_reach_slurm(start: Callable[..., Run]) -> None:
    run = start(requeue=True, qos="night", reservation="course", exclude_failed_nodes="n7",
                jobname_prefix="tomoline")  # fmt: skip
    run.submit(job("a", gpu=1, gpu_model="a100", constraint="ssd", slurm_extra="'--nice=5'"))
    call = run.slurm.calls("sbatch")[0]
    assert {"--requeue", "--qos=night", "--reservation=course", "--exclude=n7", "--nice=5",
            "--gpus=a100:1"} <= set(call)  # fmt: skip
    assert option(call, "-C") == "ssd"
    assert option(call, "--job-name").startswith("tomoline_")


def test_options_of_the_plugin_without_effect_on_packs(start: Callable[..., Run]) -> None:
    run = start(array_jobs="all", pass_command_as_script=True)
    run.submit(*(job(name) for name in "ab"), *(job(name, bundle=2) for name in "cd"))
    calls = run.slurm.calls("sbatch")
    assert len(calls) == 3
    assert not [word for call in calls for word in call if word.startswith("--array")]
    plans = [read_plan(run.slurm.pack(number)) for number in run.slurm.jobs]
    assert "jobstep" not in json.dumps(plans)


def test_a_partition_is_chosen_for_the_whole_pack(start: Callable[..., Run]) -> None:
    Path("p.yaml").write_text("partitions: {small: {max_mem_mb: 2000}, large: {max_mem_mb: 9000}}")
    run = start(partition_config=Path("p.yaml"))
    run.submit(job("a", slurm_partition=""))
    run.submit(*(job(name, slurm_partition="", bundle=2, mem_mb=1500) for name in "bc"))
    assert [option(call, "-p") for call in run.slurm.calls("sbatch")] == ["small", "large"]


def test_an_account_is_given_where_there_is_one(run: Run) -> None:
    run.slurm.says("sacctmgr", "lab\nother\n")
    run.submit(job("a", slurm_account="lab"))
    assert option(run.slurm.calls("sbatch")[0], "-A") == "lab"
    assert run.slurm.calls("sacctmgr")


def test_no_account_is_guessed(run: Run) -> None:
    run.slurm.says("sacct", "guessed\n")
    run.submit(job("a"))
    assert "-A" not in run.slurm.calls("sbatch")[0]
    assert run.logger.warnings == []


def test_no_more_time_is_asked_for_than_the_partition_gives(run: Run) -> None:
    run.slurm.says("sinfo", "cpu*|30:00\nlong|infinite\n")
    run.submit(job("a", runtime=100))
    run.submit(job("b", runtime=20))
    run.submit(job("c", runtime=100, slurm_partition="long"))
    assert [option(call, "-t") for call in run.slurm.calls("sbatch")] == ["30", "20", "100"]
    assert len(run.slurm.calls("sinfo")) == 2  # once a partition
    assert any("30 minutes in partition cpu, not 100" in line for line in run.logger.warnings)


def test_a_limit_that_cannot_be_asked_for_stops_nothing(run: Run) -> None:
    run.slurm.fails("sinfo", "sinfo: command not found")
    run.submit(job("a", runtime=100))
    assert option(run.slurm.calls("sbatch")[0], "-t") == "100"
    run.slurm.fails("sinfo", None)
    run.slurm.says("sinfo", "cpu*|30:00\n")
    run.submit(job("b", runtime=100))
    assert option(run.slurm.calls("sbatch")[1], "-t") == "30"


# --- SLURM takes no jobs


LIMIT = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates accounting/QOS"


@pytest.mark.parametrize("said", [AWAY, LIMIT])
def test_while_slurm_takes_no_jobs_they_wait(run: Run, said: str) -> None:
    run.slurm.fails("sbatch", said)
    run.ready(*(job(name, bundle=2) for name in "ab"))
    run.look(0)
    assert len(run.slurm.calls("sbatch")) == 1
    assert packs() == []
    run.ready(job("c"))
    run.look(OFFER_EVERY_S - 1.0)
    assert len(run.slurm.calls("sbatch")) == 1  # nor is another one offered
    run.look(3600.0)
    run.slurm.fails("sbatch", None)
    run.look(OFFER_EVERY_S)
    assert run.waited_for == ["a", "b", "c"]
    assert run.scheduler.failed == []
    assert {name: states(name) for name in "abc"} == {name: ["SUBMITTED"] for name in "abc"}
    assert {entry["attempt"] for entry in history()} == {1}
    assert any("they wait" in line for line in run.logger.warnings)


def test_packs_that_were_under_way_wait_too(run: Run) -> None:
    run.slurm.fails("sbatch", AWAY)
    run.ready(job("a"), job("b"), job("c"))
    run.look(GATHER_S)  # hands over three; the first is told that SLURM is away
    assert len(run.slurm.calls("sbatch")) == 1
    run.slurm.fails("sbatch", None)
    run.look(OFFER_EVERY_S)
    assert run.waited_for == ["a", "b", "c"]


def test_the_accounting_may_be_away_as_well(run: Run) -> None:
    for program in ("sacctmgr", "sshare"):
        run.slurm.fails(program, f"{program}: error: Sending PersistInit msg: Connection refused")
    run.submit(job("a", slurm_account="lab"))
    assert run.scheduler.failed == []
    for program in ("sacctmgr", "sshare"):
        run.slurm.fails(program, None)
    run.slurm.says("sacctmgr", "lab\n")
    run.look(OFFER_EVERY_S)
    assert run.waited_for == ["a"]


def test_jobs_are_not_offered_for_ever(run: Run) -> None:
    run.slurm.fails("sbatch", AWAY)
    run.submit(job("a"))
    run.look(OFFER_S - GATHER_S)
    assert run.scheduler.failed == []
    run.look(OFFER_EVERY_S)
    assert [j.tomogram for j in run.scheduler.failed] == ["a"]
    assert states() == ["REFUSED"]


def test_a_call_that_hangs_may_have_been_obeyed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.3)
    sbatch = run.slurm.folder / "bin" / "sbatch"
    obeyed = sbatch.read_text()
    sbatch.write_text(obeyed.replace("\necho $n\n", "\necho $n; exec sleep 5\n"))
    run.submit(job("a"))
    assert run.slurm.jobs == ["100"]
    assert not run.slurm.pack("100").exists()  # that job does nothing
    assert run.scheduler.failed == []
    sbatch.write_text(obeyed)
    run.look(OFFER_EVERY_S)
    assert run.slurm.pack("101").exists()
    assert run.waited_for == ["a"]


def test_what_slurm_refuses_has_failed(run: Run) -> None:
    run.slurm.fails("sbatch", "sbatch: error: invalid partition specified: cpu")
    pair = [job(name, bundle=2) for name in "ab"]
    run.submit(*pair)
    assert set(run.scheduler.failed) == set(pair)
    assert packs() == []
    for one in pair:
        assert "invalid partition specified" in one.errors[0]
        (entry,) = history(one.tomogram)
        assert (entry["state"], entry["job"]) == ("REFUSED", "")
        assert "invalid partition specified" in entry["reason"]
    run.look(GATHER_S)
    assert len(run.slurm.calls("sbatch")) == 1


def test_what_the_plugin_refuses_has_failed(run: Run) -> None:
    run.submit(job("a", slurm_extra="'--mem=9'"))
    assert [j.tomogram for j in run.scheduler.failed] == ["a"]
    assert run.slurm.jobs == []


# --- jobs that end


def write_logs(run: Run, slurm_job: str, names: str) -> dict[str, Path]:
    folder = LOGS / "prepare"
    logs = {name: folder / f"prepare_d_{name}" / f"{slurm_job}.log" for name in names}
    logs["shared"] = folder / f"{slurm_job}.log"
    for path in logs.values():
        path.write_text("said\n")
    return logs


def test_a_job_that_ended_well(run: Run) -> None:
    run.submit(job("a"))
    log = write_logs(run, "100", "a")["a"]
    for state in ("PENDING", "RUNNING"):
        run.slurm.state("100", state)
        run.look()
        run.look()
    assert json.loads(QUEUE.read_text())["jobs"] == {"100": {"state": "RUNNING", "reason": "None"}}
    run.answer("100", 0, 0)
    run.look()
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]
    assert (run.waited_for, run.scheduler.failed) == ([], [])
    assert states() == ["SUBMITTED", "PENDING", "RUNNING", "COMPLETED"]
    assert packs() == []
    assert not log.exists()


def test_logs_may_be_kept(start: Callable[..., Run]) -> None:
    run = start(keep_successful_logs=True)
    run.submit(*(job(name, bundle=2) for name in "ab"))
    logs = write_logs(run, "100", "ab")
    for member in (0, 1):
        run.answer("100", member, 0)
    run.look()
    assert len(run.scheduler.finished) == 2
    assert all(path.exists() for path in logs.values())


def test_a_member_that_failed_fails_alone(run: Run) -> None:
    run.submit(*(job(name, bundle=3) for name in "abc"))
    logs = write_logs(run, "100", "abc")
    run.answer("100", 1, 7)
    run.look()
    (failed,) = run.scheduler.failed
    assert failed.tomogram == "b"
    assert "SLURM job 100 is FAILED: exit code 7" in failed.errors[0]
    assert [Path(log) for log in failed.logs] == [logs["b"].absolute()]
    assert run.waited_for == ["a", "c"]
    for member in (0, 2):
        run.answer("100", member, 0)
    run.look()
    assert sorted(j.tomogram for j in run.scheduler.finished) == ["a", "c"]
    assert {name: states(name)[-1] for name in "abc"} == {
        "a": "COMPLETED", "b": "FAILED", "c": "COMPLETED",
    }  # fmt: skip
    assert {name for name, path in logs.items() if path.exists()} == {"b", "shared"}


def test_a_pack_goes_with_the_last_of_its_members(run: Run) -> None:
    run.submit(*(job(name, bundle=2) for name in "ab"))
    folder = run.slurm.pack("100")
    shared = write_logs(run, "100", "ab")["shared"]
    run.answer("100", 0, 0)
    run.look()
    assert folder.exists()
    assert shared.exists()
    run.answer("100", 1, 0)
    run.look()
    assert not folder.exists()
    assert not shared.exists()


def test_ended_jobs_are_reported_while_slurm_is_away(run: Run) -> None:
    run.submit(job("a"), job("b"))
    run.slurm.fails("squeue", AWAY)
    run.slurm.fails("sacct", AWAY)
    run.answer("100", 0, 0)
    run.look()
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]
    for _ in range(20):
        run.look(3600.0)
    assert run.waited_for == ["b"]
    assert run.scheduler.failed == []
    assert any("waited for" in line for line in run.logger.warnings)


# --- jobs that end without a word


NEVER = "SLURM would never start it (BadConstraints)"


@pytest.mark.parametrize(
    ("state", "options", "patience", "cancelled", "reason"),
    [
        ("CANCELLED by 1000", {}, ENDED_S + LATENCY_S, False, "ended without an exit code"),
        ("TIMEOUT", {}, ENDED_S + LATENCY_S, False, "ended without an exit code"),
        ("OUT_OF_MEMORY", {}, ENDED_S + LATENCY_S, False, "ended without an exit code"),
        ("FAILED", {}, ENDED_S + LATENCY_S, False, "ended without an exit code"),
        ("NODE_FAIL", {}, RETURN_S, True, "did not come back"),
        ("PREEMPTED", {"requeue": True}, RETURN_S, True, "did not come back"),
        ("PREEMPTED", {"no_requeue": True}, ENDED_S + LATENCY_S, True, "did not come back"),
        ("", {}, UNKNOWN_S, True, "did not come back"),
        ("PENDING|BadConstraints", {}, RETURN_S, True, NEVER),
    ],
)
def test_jobs_that_leave_no_exit_code(
    start: Callable[..., Run], state: str, options: dict[str, Any], patience: float,
    cancelled: bool, reason: str,
) -> None:  # fmt: skip
    run = start(**options)
    run.submit(job("a"))
    run.slurm.state("100", *state.split("|"))
    run.look()
    run.look(patience - LOOK_S)
    assert run.waited_for == ["a"]
    assert run.slurm.calls("scancel") == []
    run.look(LOOK_S)
    (failed,) = run.scheduler.failed
    # To `tomoline status` a job that is PENDING has not failed.
    word = "CANCELLED" if reason == NEVER else state.partition(" ")[0] or "UNKNOWN"
    assert f"SLURM job 100 is {word}" in failed.errors[0]
    assert reason in failed.errors[0]
    assert failed.logs == []  # SLURM has written none
    record = last_record(Path("results/d/a/logs/slurm.jsonl"))
    assert record is not None
    assert record.failed
    assert (record.state, record.job) == (word, "100")
    assert reason in record.reason
    assert run.slurm.calls("scancel") == ([["--quiet", "100"]] if cancelled else [])
    assert packs() == []  # a job that SLURM starts after all does nothing
    assert run.waited_for == []


def test_all_members_of_a_cancelled_job_have_failed_but_those_that_ended(run: Run) -> None:
    run.submit(*(job(name, bundle=3) for name in "abc"))
    run.slurm.state("100", "CANCELLED by 0")
    run.look()
    run.answer("100", 1, 0)
    run.look(ENDED_S + LATENCY_S)
    assert [j.tomogram for j in run.scheduler.finished] == ["b"]
    assert sorted(j.tomogram for j in run.scheduler.failed) == ["a", "c"]


def test_a_job_that_is_not_waiting_in_vain_is_waited_for(run: Run) -> None:
    run.submit(*(job(name) for name in "ab"))
    run.slurm.state("100", "PENDING", "QOSMaxJobsPerUserLimit")
    run.slurm.state("101", "RUNNING", "BadConstraints")
    for _ in range(10):
        run.look(3600.0)
    assert run.waited_for == ["a", "b"]


def test_a_job_that_comes_back_is_doubted_anew(run: Run) -> None:
    run.submit(job("a"))
    for state in ("NODE_FAIL", "PENDING", "RUNNING", "NODE_FAIL"):
        run.slurm.state("100", state)
        run.look()
        run.look(RETURN_S - LOOK_S)
    assert run.waited_for == ["a"]
    assert states() == ["SUBMITTED", "PENDING", "RUNNING"]
    run.look(LOOK_S)
    assert run.waited_for == []


def test_each_state_is_doubted_by_itself(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "PREEMPTED")
    run.look()
    run.look(RETURN_S - LOOK_S)
    run.slurm.state("100", "CANCELLED")
    run.look(LOOK_S)
    assert run.waited_for == ["a"]
    run.look(ENDED_S + LATENCY_S)
    assert states()[-1] == "CANCELLED"


def test_nothing_is_given_up_while_slurm_does_not_answer(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "CANCELLED")
    run.look()
    for program in ("squeue", "sacct"):
        run.slurm.fails(program, AWAY)
    run.look(10 * UNKNOWN_S)
    assert run.waited_for == ["a"]


def test_a_job_that_cannot_be_cancelled_now_is_given_up_later(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "NODE_FAIL")
    run.slurm.fails("scancel", AWAY)
    run.look()
    run.look(RETURN_S)
    assert run.waited_for == ["a"]
    assert packs() != []
    run.slurm.fails("scancel", None)
    run.look()
    assert states()[-1] == "NODE_FAIL"
    assert run.waited_for == []


def test_a_job_that_completed_has_completed(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "COMPLETED")
    run.look()
    assert run.waited_for == ["a"]  # the file may be on its way
    run.look(ENDED_S + LATENCY_S)
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]
    assert run.scheduler.failed == []


def test_a_file_that_comes_late_is_believed(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "FAILED")
    run.look()
    run.answer("100", 0, 0)
    run.look(ENDED_S + LATENCY_S)
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]


def test_a_file_that_comes_while_slurm_is_asked_is_believed(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "FAILED")
    run.look()
    squeue = run.slurm.folder / "bin" / "squeue"
    squeue.write_text(squeue.read_text().replace(
        "exit 0\n", f"echo 0 > {run.slurm.pack('100')}/0.rc\nexit 0\n"
    ))  # fmt: skip
    run.look(ENDED_S + LATENCY_S)
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]


def test_a_job_that_only_the_accounting_knows(run: Run) -> None:
    run.submit(job("a"))
    run.slurm.state("100", "")
    run.slurm.says("sacct", "100|RUNNING\n")
    run.look()
    run.look(2 * UNKNOWN_S)
    assert run.waited_for == ["a"]
    assert states() == ["SUBMITTED", "RUNNING"]


def pauses(run: Run, seconds: float) -> list[float]:
    """Look for some time; returns the times between questions to SLURM."""
    asked: list[float] = []
    for _ in range(int(seconds / LOOK_S)):
        count = len(run.slurm.calls("squeue"))
        run.look()
        if len(run.slurm.calls("squeue")) > count:
            asked.append(run.clock.now)
    return [later - earlier for earlier, later in itertools.pairwise(asked)]


def test_slurm_is_asked_ever_more_rarely_while_nothing_happens(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(POLL_VARIABLE)
    run = start()
    run.submit(job("a"), job("b"))
    assert pauses(run, 600.0) == [30.0, 45.0, 70.0, 105.0, 120.0, 120.0]
    run.answer("100", 0, 0)
    assert pauses(run, 200.0) == [30.0, 45.0, 70.0]


# --- the end of a run


def test_a_run_that_is_through_cancels_nothing(run: Run) -> None:
    run.submit(job("a"))
    run.answer("100", 0, 0)
    run.look()
    run.executor.shutdown()
    assert run.slurm.calls("scancel") == []


def test_ctrl_c_ends_all_jobs(run: Run) -> None:
    run.submit(*(job(name, bundle=2) for name in "ab"))
    run.ready(job("c", bundle=2))
    run.look(0)
    run.executor.cancel()
    assert run.slurm.calls("scancel") == [["--quiet", "100"]]
    assert f"--name={run.executor.run_uuid}" in run.slurm.calls("squeue")[-1]
    assert packs() == []
    for name in "ab":
        assert states(name)[-1] == "CANCELLED"
        assert history(name)[-1]["reason"] == "the run was stopped"
    run.look(10 * GATHER_S)
    assert run.slurm.jobs == ["100"]  # the one that had gathered is not submitted any more
    assert (run.scheduler.failed, run.scheduler.finished) == ([], [])
    assert any("1 SLURM jobs cancelled" in line for line in run.logger.infos)


def test_ctrl_c_ends_jobs_that_are_just_submitted(run: Run) -> None:
    sbatch = run.slurm.folder / "bin" / "sbatch"
    held = f"touch asked; while [ ! -e {run.slurm.folder}/go ]; do sleep 0.02; done\n"
    sbatch.write_text(sbatch.read_text().replace("n=100\n", held + "n=100\n"))
    run.ready(job("a"), job("b"))
    asyncio.run(run._look())
    wait_until((run.slurm.folder / "asked").exists)
    ending = threading.Thread(target=run.executor.cancel)
    ending.start()
    wait_until(run.executor._closed.is_set)
    (run.slurm.folder / "go").touch()
    ending.join(30)
    assert run.slurm.jobs == ["100"]
    assert run.slurm.calls("scancel") == [["--quiet", "100"]]
    assert packs() == []
    assert run.scheduler.failed == []


def test_ctrl_c_while_jobs_are_looked_at(run: Run) -> None:
    run.submit(job("a"))
    looked_at = list(run.executor.active_jobs)
    run.executor.active_jobs.clear()  # as the plugin's loop does for as long as it looks
    run.executor.cancel()
    assert looked_at
    assert run.slurm.calls("scancel") == [["--quiet", "100"]]


def test_ctrl_c_while_slurm_is_away_leaves_the_jobs_to_the_next_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    monkeypatch.setattr(driver, "leave", lambda: left.append(True))
    run.submit(job("a"))
    for program in ("squeue", "sacct"):
        run.slurm.fails(program, AWAY)
    run.executor.cancel()
    assert left == [True]
    assert any(f"scancel --name={run.executor.run_uuid}" in line for line in run.logger.warnings)
    assert packs() != []
    last = Driver.last()
    assert last is not None
    assert last.run == run.executor.run_uuid


def test_a_fault_of_the_watching_leaves_no_jobs(run: Run) -> None:
    run.submit(job("a"))
    run.executor.shutdown()
    assert run.slurm.calls("scancel") == [["--quiet", "100"]]


# --- the rest


def test_a_driver_says_who_it_is_and_that_it_lives(run: Run) -> None:
    last = Driver.last()
    assert last is not None
    assert last.is_this
    assert last.run == run.executor.run_uuid
    os.utime(RECORD, (1.0, 1.0))
    run.look(executor.BEAT_S - 1.0)
    assert RECORD.stat().st_mtime == 1.0
    run.look(2.0)
    assert RECORD.stat().st_mtime > 1.0


def test_in_a_job_of_slurm_it_is_known_where_slurm_is(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SLURM_CONF", "/opt/slurm.conf")
    start()
    assert os.environ["SLURM_CONF"] == "/opt/slurm.conf"
    assert "SLURM_MEM_PER_CPU" not in os.environ


@pytest.mark.parametrize("where", [{"mpi": "srun", "tasks": 2}, {"slurm_cluster": "far"}])
def test_jobs_of_several_nodes_or_clusters_go_the_plugins_way(
    start: Callable[..., Run], where: dict[str, Any]
) -> None:
    run = start(array_jobs="all")
    pair = [job(name, bundle=2, **where) for name in "ab"]
    run.workflow.dag.ready_jobs = lambda: pair
    run.ready(*pair)
    run.look(0)
    calls = run.slurm.calls("sbatch")
    assert len(calls) == 2
    assert all(any(word.startswith("--wrap=") for word in call) for call in calls)
    # A member of an array would need another snakemake between, to know which one it is.
    assert not [word for call in calls for word in call if word.startswith("--array")]
    assert packs() == []
    run.slurm.says("sacct", "100|COMPLETED\n101|RUNNING\n")
    run.look()
    assert [j.tomogram for j in run.scheduler.finished] == ["a"]
    assert run.waited_for == ["b"]
    run.executor.cancel()
    elsewhere = ["--clusters=all"] if "slurm_cluster" in where else []
    assert ["101", *elsewhere] in run.slurm.calls("scancel")


# --- with Snakemake itself


SNAKEFILE = """
from tomoline_slurm import install
install()
rule all:
    input: expand("results/d/{t}/second", t=["a", "b"])
rule first:
    output: "results/{dataset}/{tomogram}/first"
    resources: bundle=2
    group: "line"
    shell: "touch {output}"
rule second:
    input: "results/{dataset}/{tomogram}/first"
    output: "results/{dataset}/{tomogram}/second"
    resources: bundle=2
    group: "line"
    shell: "touch {output}"
"""


@pytest.fixture
def snakemake(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Begins a run of two tomograms, whose jobs share a submission."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(POLL_VARIABLE, "0.1")
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    begun: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        call = [sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "4",
                "--latency-wait", "5", "--default-resources", "slurm_partition=cpu", "mem_mb=100",
                "runtime=1"]  # fmt: skip
        # A shell starts what runs in its background deaf to Ctrl-C, and that is inherited.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        signal.signal(signal.SIGINT, heard)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_workflow(slurm: FakeSlurm, snakemake: Callable[[], subprocess.Popen[str]]) -> None:
    slurm.runs_jobs()
    process = snakemake()
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 0, told
    assert slurm.jobs == ["100"], told
    for name in "ab":
        assert Path(f"results/d/{name}/second").exists()
        assert (states(name)[0], states(name)[-1]) == ("SUBMITTED", "COMPLETED")
        assert (history(name)[0]["task"], history(name)[0]["rules"]) == (
            "line",
            ["first", "second"],
        )
    assert packs() == []
    assert not RECORD.exists()


def test_ctrl_c(slurm: FakeSlurm, snakemake: Callable[[], subprocess.Popen[str]]) -> None:
    process = snakemake()
    wait_until(lambda: Path("results/d/b/logs/slurm.jsonl").exists(), 40.0)
    assert Driver.last() is not None
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0]
    assert process.returncode != 0, told
    assert slurm.calls("scancel") == [["--quiet", "100"]]
    assert packs() == []
    assert not RECORD.exists()
    assert states("a")[-1] == states("b")[-1] == "CANCELLED"
