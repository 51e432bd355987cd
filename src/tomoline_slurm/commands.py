"""The few questions that are asked of SLURM, each with a time limit and never through a shell."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tomoline.errors import TomolineError

TIMEOUT_S = 60
# Whatever else a job's state is, it will not go on by itself.
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED",
     "BOOT_FAIL", "DEADLINE", "REVOKED"}
)  # fmt: skip
# SLURM itself may put a job in one of these states back into its queue.
MAY_RETURN = frozenset({"PREEMPTED", "NODE_FAIL"})

# Reasons of a job that waits and will wait for ever, as it was asked for. Not among them: limits of
# what runs at a time, which others' ends lift, and jobs that somebody holds for a while.
HOPELESS = re.compile(
    "PartitionTimeLimit|PartitionNodeLimit|BadConstraints|AccountNotAllowed|QOSNotAllowed|"
    "InvalidAccount|InvalidQOS|MaxMemPerLimit|DependencyNeverSatisfied|JobHoldMaxRequeue|"
    r"(Assoc|QOS)Max\w+PerJob(Limit)?|(launch_failed|user_env_retrieval_failed)_requeued_held"
)
# What SLURM's programs say where the same call will be answered another time: the controller or
# munge is away; as many jobs are queued as the site allows.
PASSING = re.compile(
    r"did not answer|Unable to contact slurm|Unable to establish control machine|Socket timed out|"
    r"connection failure|Connection (refused|timed)|Zero Bytes were trans|standby mode|"
    r"temporarily un|Protocol authentication|[Mm]unge|Submit\w*Limit"
)
# What scancel says of jobs that it need not cancel any more.
GONE = re.compile("Invalid job id|already completing or completed")


@dataclass(frozen=True)
class JobState:
    """A job's state in one word, and why it waits where it does."""

    state: str = "UNKNOWN"
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not go on by itself."""
        return self.state in ENDED

    @property
    def hopeless(self) -> bool:
        """Whether it waits for what will not come."""
        return self.state == "PENDING" and HOPELESS.fullmatch(self.reason) is not None


class SlurmError(TomolineError):
    """SLURM does not answer, or refuses."""


def ask(arguments: Sequence[str], *, text: str | None = None) -> str:
    """Run one of SLURM's programs and return what it prints; SlurmError where it fails.

    A program that did not answer in time may have been obeyed all the same.
    """
    try:
        done = subprocess.run(
            list(arguments), input=text, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{arguments[0]} did not answer within {TIMEOUT_S} s") from error
    except OSError as error:
        raise SlurmError(f"{arguments[0]} could not be started: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise SlurmError(f"{arguments[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def is_passing(error: Exception) -> bool:
    """Whether the call that failed may be answered another time."""
    return PASSING.search(str(error)) is not None


def job_states(run: str, ids: Sequence[str] = ()) -> dict[str, JobState]:
    """State of each job of a run that SLURM still knows.

    The controller is asked first: it answers at once and also where there is no accounting. It
    forgets jobs some minutes after their end (MinJobAge); for those of `ids` that it does not name
    the accounting is asked. A state is one word: "CANCELLED by 1000" is CANCELLED.

    Raises
    ------
    SlurmError
        Neither answers.
    """
    states: dict[str, JobState] = {}
    fault: SlurmError | None = None
    try:
        states = _parsed(ask(["squeue", "--noheader", "--states=all", "--format=%i|%T|%r",
                              f"--name={run}"]))  # fmt: skip
    except SlurmError as error:
        fault = error
    missing = [name for name in ids if name not in states]
    if missing or fault:
        chosen = f"--jobs={','.join(missing)}" if missing else f"--name={run}"
        try:
            states = _parsed(ask(["sacct", "--allocations", "--parsable2", "--noheader",
                                  "--format=JobIDRaw,State", chosen])) | states  # fmt: skip
        except SlurmError:
            if fault:
                raise fault from None
    return states


def _parsed(text: str) -> dict[str, JobState]:
    rows = ([*line.split("|"), ""] for line in text.splitlines() if "|" in line)
    return {
        row[0].strip(): JobState(
            (row[1].split() or ["UNKNOWN"])[0].rstrip("+"), "_".join(row[2].split())
        )
        for row in rows
    }


def is_over(job: str) -> bool:
    """Whether a job, of whatever run, has ended or been forgotten; SlurmError where unknown."""
    try:
        text = ask(["squeue", "--noheader", "--states=all", "--format=%i|%T", f"--jobs={job}"])
    except SlurmError as error:
        if GONE.search(str(error)):
            return True
        raise
    return all(state.ended for state in _parsed(text).values())


def time_limit(partition: str) -> int | None:
    """Longest run time of a job in a partition (empty: the default one), in minutes.

    None where there is no limit. Of several partitions, "a,b", the longest counts: SLURM takes any.
    SlurmError where it cannot be asked for.
    """
    rows = ask(["sinfo", "--noheader", "--format=%P|%l"]).split()
    limits = dict(row.split("|", 1) for row in rows if "|" in row)
    if partition:
        limits = {name.rstrip("*"): text for name, text in limits.items()}
        texts = [limits.get(name, "infinite") for name in partition.split(",")]
    else:
        texts = [text for name, text in limits.items() if name.endswith("*")]
    minutes = [_minutes(text) for text in texts]
    return None if None in minutes else max((m for m in minutes if m is not None), default=None)


def _minutes(text: str) -> int | None:
    """Read SLURM's `days-hours:minutes:seconds`; None where it is no number: infinite."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    hours, minutes, _ = ([0, 0, 0] + [int(part) for part in parts])[-3:]
    return (int(days or 0) * 24 + hours) * 60 + minutes


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are no fault."""
    once = list(dict.fromkeys(ids))
    for start in range(0, len(once), 200):
        try:
            ask(["scancel", "--quiet", *once[start : start + 200]])
        except SlurmError as error:
            if not GONE.search(str(error)):
                raise


def cancel_run(run: str, *, patience_s: float = 180.0) -> list[str]:
    """Cancel all jobs of a run and wait until none of them writes any more.

    Returns the ids of those that had not ended. SlurmError where they do not end in time.
    """
    found = _unfinished(job_states(run))
    if found:
        cancel(sorted(found))
    limit = time.monotonic() + patience_s
    while left := _unfinished(job_states(run)):
        if time.monotonic() > limit:
            raise SlurmError(f"jobs {', '.join(sorted(left))} of {run} do not end after scancel")
        time.sleep(1.0)
    return sorted(found)


def _unfinished(states: Mapping[str, JobState]) -> set[str]:
    return {name for name, state in states.items() if not state.ended}
