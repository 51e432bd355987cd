"""What is understood of SLURM's programs, from stand-ins that print what the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import AWAY, DISABLED, FakeSlurm

from tomoline_slurm import commands
from tomoline_slurm.commands import (
    JobState,
    SlurmError,
    ask,
    cancel,
    cancel_run,
    is_over,
    is_passing,
    job_states,
    time_limit,
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "slurm", monkeypatch)


def test_the_controller_is_asked_about_the_whole_run(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "7|RUNNING|None\n8|PENDING|Priority\n")
    states = job_states("tomoline_1", ["7", "8"])
    assert states == {"7": JobState("RUNNING", "None"), "8": JobState("PENDING", "Priority")}
    assert "--name=tomoline_1" in slurm.calls("squeue")[0]
    assert slurm.calls("sacct") == []


def test_the_accounting_is_asked_for_those_that_the_controller_forgot(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "7|RUNNING|None\n")
    slurm.says("sacct", "6|COMPLETED\n")
    states = job_states("r", ["6", "7"])
    assert {job: known.state for job, known in states.items()} == {"6": "COMPLETED", "7": "RUNNING"}
    assert "--jobs=6" in slurm.calls("sacct")[0]


def test_the_controller_is_believed_where_both_know_a_job(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "7|PENDING|BeginTime\n")  # put back into the queue
    slurm.says("sacct", "7|NODE_FAIL\n6|TIMEOUT\n")
    assert job_states("r", ["6", "7"])["7"].state == "PENDING"


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_ME"),
        ("COMPLETED", "COMPLETED"),
        ("", "UNKNOWN"),
    ],
)
def test_a_state_is_one_word(slurm: FakeSlurm, printed: str, state: str) -> None:
    slurm.says("sacct", f"6|{printed}\n")
    assert job_states("r", ["6"])["6"].state == state


ENDED = """BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED
TIMEOUT"""
GOING_ON = "COMPLETING CONFIGURING PENDING REQUEUED REQUEUE_HOLD RESIZING RUNNING SUSPENDED"


@pytest.mark.parametrize("ended", [True, False])
def test_which_states_are_the_end(slurm: FakeSlurm, ended: bool) -> None:
    words = (ENDED if ended else GOING_ON).split()
    slurm.says("squeue", "".join(f"{job}|{word}|None\n" for job, word in enumerate(words)))
    states = job_states("r")
    assert len(states) == len(words)
    assert {known.ended for known in states.values()} == {ended}


def test_a_cancelled_job_has_ended(slurm: FakeSlurm) -> None:
    slurm.says("sacct", "6|CANCELLED by 0\n")
    assert job_states("r", ["6"])["6"].ended


def test_without_accounting_a_forgotten_job_is_unknown(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "7|RUNNING|None\n")
    slurm.fails("sacct", DISABLED)
    assert set(job_states("r", ["6", "7"])) == {"7"}


def test_while_the_controller_is_away_the_accounting_answers(slurm: FakeSlurm) -> None:
    slurm.fails("squeue", AWAY)
    slurm.says("sacct", "6|RUNNING\n")
    assert job_states("r", ["6"])["6"].state == "RUNNING"
    assert "--jobs=6" in slurm.calls("sacct")[0]
    job_states("r")
    assert "--name=r" in slurm.calls("sacct")[1]


@pytest.mark.parametrize("accounting", [DISABLED, "sacct: error: slurm_persist_conn_open: refused"])
def test_where_both_are_away_that_is_said(slurm: FakeSlurm, accounting: str) -> None:
    slurm.fails("squeue", AWAY)
    slurm.fails("sacct", accounting)
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        job_states("r", ["6"])


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("PartitionTimeLimit", True),
        ("BadConstraints", True),
        ("AccountNotAllowed", True),
        ("QOSMaxMemoryPerJob", True),
        ("AssocMaxCpuPerJobLimit", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("launch failed requeued held", True),
        # These end: other jobs do, somebody lets them go, a node comes back.
        ("Priority", False),
        ("Resources", False),
        ("AssocMaxJobsLimit", False),
        ("AssociationJobLimit", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpCpuLimit", False),
        ("JobHeldUser", False),
        ("JobHeldAdmin", False),
        ("ReqNodeNotAvail, UnavailableNodes:gpu1", False),
        ("BeginTime", False),
    ],
)
def test_what_a_job_waits_for_in_vain(slurm: FakeSlurm, reason: str, hopeless: bool) -> None:
    slurm.says("squeue", f"7|PENDING|{reason}\n8|RUNNING|{reason}\n")
    states = job_states("r")
    assert states["7"].hopeless is hopeless
    assert not states["8"].hopeless


SINFO = """\
cpu*|infinite
short|30:00
gpu|2:00:00
gpu|2:00:00
long|1-00:00:00
week|7-12:30:00
odd|n/a
"""


@pytest.mark.parametrize(
    ("partition", "minutes"),
    [
        ("cpu", None),
        ("", None),
        ("short", 30),
        ("gpu", 120),
        ("long", 1440),
        ("week", 10830),
        ("odd", None),
        ("no_such", None),
        ("short,gpu", 120),
        ("short,cpu", None),
    ],
)
def test_time_limits(slurm: FakeSlurm, partition: str, minutes: int | None) -> None:
    slurm.says("sinfo", SINFO)
    assert time_limit(partition) == minutes


def test_the_default_partition_is_the_marked_one(slurm: FakeSlurm) -> None:
    slurm.says("sinfo", "gpu|1:00:00\ncpu*|2-00:00:00\n")
    assert time_limit("") == 2880
    assert time_limit("cpu") == 2880
    slurm.says("sinfo", "gpu|1:00:00\n")
    assert time_limit("") is None


def test_a_time_limit_that_cannot_be_asked_for(slurm: FakeSlurm) -> None:
    slurm.fails("sinfo", AWAY)
    with pytest.raises(SlurmError):
        time_limit("gpu")


def test_jobs_are_cancelled_once_and_in_portions(slurm: FakeSlurm) -> None:
    cancel([*map(str, range(450)), "3", "3"])
    given = [[word for word in call if word.isdigit()] for call in slurm.calls("scancel")]
    assert [len(ids) for ids in given] == [200, 200, 50]
    assert len({word for ids in given for word in ids}) == 450


@pytest.mark.parametrize(
    "said",
    [
        "scancel: error: Kill job error on job id 5: Invalid job id specified",
        "scancel: error: Kill job error on job id 5: Job/step already completing or completed",
    ],
)
def test_cancelling_what_has_ended_is_no_fault(slurm: FakeSlurm, said: str) -> None:
    slurm.fails("scancel", said)
    cancel(["5"])


@pytest.mark.parametrize("said", [AWAY, "Kill job error on job id 5: Access/permission denied"])
def test_a_refused_cancellation_is_said(slurm: FakeSlurm, said: str) -> None:
    slurm.fails("scancel", said)
    with pytest.raises(SlurmError):
        cancel(["5"])


def test_a_run_is_cancelled_but_not_what_has_ended(slurm: FakeSlurm) -> None:
    for job, state in {"5": "COMPLETED", "6": "RUNNING", "7": "PENDING"}.items():
        slurm.state(job, state)
    assert cancel_run("r") == ["6", "7"]
    assert slurm.calls("scancel") == [["--quiet", "6", "7"]]


def test_a_job_that_does_not_end_is_told(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "6|COMPLETING|None\n")
    with pytest.raises(SlurmError, match="jobs 6 of r do not end"):
        cancel_run("r", patience_s=0.0)


def test_a_run_without_jobs_needs_no_cancelling(slurm: FakeSlurm) -> None:
    assert cancel_run("r") == []
    assert slurm.calls("scancel") == []


def test_whether_another_job_is_over(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "5|RUNNING\n")
    assert not is_over("5")
    slurm.says("squeue", "5|CANCELLED\n")
    assert is_over("5")
    slurm.says("squeue", "5+0|COMPLETED\n5+1|RUNNING\n")  # of several parts
    assert not is_over("5")
    slurm.says("squeue", "")
    assert is_over("5")
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert is_over("5")
    slurm.fails("squeue", AWAY)
    with pytest.raises(SlurmError):
        is_over("5")


@pytest.mark.parametrize(
    ("said", "passing"),
    [
        (AWAY, True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: If munged is up, restart with --num-threads=10", True),
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Job violates accounting/QOS", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates", True),
        ("sbatch: error: invalid partition specified: gpu", False),
        ("sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: Job violates accounting/QOS", False),
        ("Requested node configuration is not available", False),
    ],
)  # fmt: skip
def test_which_refusals_pass(slurm: FakeSlurm, said: str, passing: bool) -> None:
    slurm.fails("sbatch", said)
    with pytest.raises(SlurmError) as refused:
        ask(["sbatch"], text="")
    assert is_passing(refused.value) is passing


def test_a_program_that_hangs(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.2)
    (slurm.folder / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(SlurmError, match="did not answer") as hung:
        ask(["squeue"])
    assert is_passing(hung.value)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(SlurmError, match="could not be started"):
        ask(["no-such-program-of-slurm"])


def test_names_never_reach_a_shell(slurm: FakeSlurm, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    job_states(f"$(touch {trap}); touch {trap}", [f"1;touch {trap}"])
    cancel([f"`touch {trap}`"])
    assert not trap.exists()
