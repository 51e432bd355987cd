"""The few questions that are asked of SLURM, each with a time limit and never through a shell."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence

from tomoline.errors import TomolineError

TIMEOUT_S = 60
# Whatever else a job's state is, it will not go on by itself.
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED",
     "BOOT_FAIL", "DEADLINE", "REVOKED"}
)  # fmt: skip
# SLURM itself may put a job in one of these states back into its queue.
MAY_RETURN = frozenset({"PREEMPTED", "NODE_FAIL"})


class SlurmError(TomolineError):
    """SLURM does not answer, or refuses."""


def ask(arguments: Sequence[str], *, text: str | None = None) -> str:
    """Run one of SLURM's programs and return what it prints; SlurmError where it fails."""
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
        raise SlurmError(f"{arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def job_states(run: str, ids: Sequence[str] = ()) -> dict[str, str]:
    """State of each job of a run that SLURM still knows.

    The controller is asked first: it answers at once and also where there is no accounting. It
    forgets jobs some minutes after their end (MinJobAge); for those of `ids` that it does not name
    the accounting is asked. A state is one word: "CANCELLED by 1000" is CANCELLED.

    Raises
    ------
    SlurmError
        Neither answers.
    """
    states: dict[str, str] = {}
    fault: SlurmError | None = None
    try:
        states = _parsed(ask(["squeue", "--noheader", "--states=all", "--format=%i|%T",
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


def _parsed(text: str) -> dict[str, str]:
    rows = (line.split("|") for line in text.splitlines() if "|" in line)
    return {row[0].strip(): (row[1].split() or ["UNKNOWN"])[0].rstrip("+") for row in rows}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are no fault."""
    for start in range(0, len(ids), 200):
        try:
            ask(["scancel", "--quiet", *ids[start : start + 200]])
        except SlurmError as error:
            if "Invalid job id" not in str(error):
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


def _unfinished(states: Mapping[str, str]) -> set[str]:
    return {name for name, state in states.items() if state not in ENDED}
