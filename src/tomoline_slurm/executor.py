"""The SLURM executor: the plugin's, with packs, and with a driver that nothing leaves waiting.

Seen with snakemake-executor-plugin-slurm 2.4.0 to 2.8.0 and done otherwise here:

- a job ended by `scancel` has the state "CANCELLED by 1000", which the plugin does not know: the
  driver waited for ever;
- a status query that failed dropped all active jobs: the driver waited for ever;
- a job in the state PREEMPTED or NODE_FAIL that SLURM does not start again was waited for, as was
  one that SLURM has forgotten;
- a job that could not be submitted because the controller was away, or because the site allows no
  more at a time, had failed;
- Ctrl-C missed the jobs that were being submitted or looked at;
- with accounting switched off but `sacct` installed no state was ever found;
- each job started two nested snakemakes; here it is one, and small tomograms share a submission.

Jobs report their end by a file, so that SLURM is asked only for what ended without one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import (
    validate_or_get_slurm_job_id,
    validate_slurm_extra,
)
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from tomoline_slurm import driver, records
from tomoline_slurm.commands import (
    MAY_RETURN,
    JobState,
    SlurmError,
    ask,
    cancel,
    cancel_run,
    is_passing,
    job_states,
    time_limit,
)
from tomoline_slurm.packs import Pack, Request, bundled, limit, remove_old

# Seconds between two looks at the files that jobs leave, at least, and the most looks a second.
LOOK_S, LOOKS_A_SECOND = 5.0, 200
# Seconds between two questions to SLURM, and two signs of life.
ASK_S = (20.0, 120.0)
BEAT_S = 60.0
# How long a job may be in a state before that is believed: a file on its way through a network
# share (and the profile's latency-wait); a job that SLURM puts back into its queue, or that waits
# for what seems not to come; a job that SLURM does not name.
ENDED_S, RETURN_S, UNKNOWN_S = 30.0, 300.0, 600.0
# How long jobs are offered to a SLURM that takes none at present, and how often.
OFFER_S, OFFER_EVERY_S = 12 * 3600.0, 30.0
# How long Ctrl-C waits for jobs to end, which write the same files as those of the next start.
CANCEL_S = 60.0
POLL_VARIABLE = "TOMOLINE_SLURM_POLL_SECONDS"
COMMENT_LENGTH = 200


class Executor(SlurmExecutor):  # type: ignore[misc]
    """Submits packs of jobs with sbatch and watches over them until each has ended."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before all else: the plugin's own constructor starts the thread that watches.
        poll = os.environ.get(POLL_VARIABLE)
        self._look_s = float(poll) if poll else LOOK_S
        self._ask_s = (self._look_s, self._look_s) if poll else ASK_S
        self._pause_s = self._ask_s[0]
        self._asked = time.monotonic()
        self._states: dict[str, JobState] = {}
        # When a job was first seen in a state that it cannot stay in.
        self._doubtful: dict[str, tuple[str, float]] = {}
        self._noted: dict[tuple[str, int], str] = {}
        # Jobs that are ready but not submitted, and since when; they come from several threads.
        self._gathered: dict[Any, float] = {}
        self._gate = threading.Lock()
        self._closed = threading.Event()
        # Nothing is submitted before this time: SLURM does not take jobs.
        self._resume = 0.0
        # Members of each pack in SLURM that have not been reported.
        self._open: dict[Path, dict[int, SubmittedJobInfo]] = {}
        self._failed_packs: set[Path] = set()
        self._limits: dict[str, int | None] = {}
        self._beaten = time.monotonic()
        # In a SLURM job the plugin clears the environment, also of where this SLURM is to be found.
        place = os.environ.get("SLURM_CONF")
        super().__init__(workflow, logger)
        if place:
            os.environ["SLURM_CONF"] = place

    def __post_init__(self, test_mode: bool = False) -> None:
        super().__post_init__(test_mode)
        # An array's members would all do the first one's work: only the nested snakemake that is
        # left out here (see additional_general_args) knows which of them it is.
        self.array_jobs: set[str] = set()
        driver.note_run(self.run_uuid)
        remove_old()

    # --- submission

    def additional_general_args(self) -> str:
        """The members of a pack are run by Snakemake's local executor, in the allocation."""
        return ""

    def get_account_arg(self, job: Any) -> Iterator[str]:
        """Leave the account to SLURM where none is given; the plugin guesses, with warnings."""
        if job.resources.get("slurm_account"):
            yield from super().get_account_arg(job)
        else:
            yield ""

    def run_jobs(self, jobs: list[Any]) -> None:
        """Gather jobs that are ready; those of several nodes or clusters go the plugin's way."""
        own = [job for job in jobs if not _is_for_the_plugin(job)]
        super().run_jobs([job for job in jobs if _is_for_the_plugin(job)])
        for job in own:
            self.run_job_pre(job)
        with self._gate:
            self._gathered |= dict.fromkeys(own, time.monotonic())

    def _send(self) -> None:
        """Submit what has gathered: of each kind a full pack at once, others after a little while.

        Jobs become ready one by one, as those before them end; together they cost less.
        """
        now = time.monotonic()
        with self._gate:
            if self._closed.is_set() or now < self._resume:
                return
            for members in bundled(list(self._gathered)):
                full = len(members) >= limit(members[-1])
                since = min(self._gathered[job] for job in members)
                if full or now - since >= 2 * self._look_s:
                    for job in members:
                        del self._gathered[job]
                    self._job_submission_executor.submit(self._submit, members, since)

    def _submit(self, members: Sequence[Any], since: float) -> None:
        """Submit jobs as a pack, in a thread of its own; if SLURM refuses them they have failed."""
        if self._closed.is_set():
            return
        if time.monotonic() < self._resume:
            self._put_back(members, since)
            return
        pack = Pack.of(members)
        try:
            job_id, log, logs = self._submitted(pack)
        except Exception as error:
            # The call may have been obeyed all the same: without its pack that job does nothing.
            pack.remove()
            if not is_passing(error) or time.monotonic() - since > OFFER_S:
                self._refuse(pack, error)
                return
            self.logger.warning(f"SLURM takes no jobs at present, they wait: {error}")
            self._resume = time.monotonic() + OFFER_EVERY_S * self._look_s / LOOK_S
            self._put_back(members, since)
        else:
            self._follow(pack, job_id, log, logs)

    def _put_back(self, members: Sequence[Any], since: float) -> None:
        with self._gate:
            self._gathered |= dict.fromkeys(members, since)

    def _refuse(self, pack: Pack, error: Exception) -> None:
        for job, task in zip(pack.jobs, pack.tasks, strict=True):
            records.note(task, run=self.run_uuid, job="", state="REFUSED", reason=str(error))
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}")

    def _follow(self, pack: Pack, job_id: str, shared: Path, logs: Sequence[Path]) -> None:
        """Hand a submitted pack to the thread that watches."""
        self.logger.info(f"SLURM job {job_id}: {', '.join(task.label for task in pack.tasks)}")
        members = {}
        for number, (job, log) in enumerate(zip(pack.jobs, logs, strict=True)):
            aux = {"slurm_logfile": log, "shared_log": shared, "pack": pack, "member": number}
            members[number] = SubmittedJobInfo(job, external_jobid=job_id, aux=aux)
        self._open[pack.folder] = dict(members)
        for info in members.values():
            self._note(info, "SUBMITTED")
            self._report_job_submission_threadsafe(info)

    def _submitted(self, pack: Pack) -> tuple[str, Path, list[Path]]:
        """Call sbatch; returns SLURM's job id, the job's log and each member's."""
        partition = self.get_partition_arg(pack.request)
        request = self._within_limits(pack.request, "".join(shlex.split(partition)[1:]))
        validate_slurm_extra(request)
        folder = self.slurm_logdir / pack.tasks[0].name
        own = [folder / task.label / "%j.log" for task in pack.tasks]
        for path in own:
            path.parent.mkdir(parents=True, exist_ok=True)
        several = len(pack.jobs) > 1
        output = folder / "%j.log" if several else own[0]
        labels = [task.tomogram or task.label for task in pack.tasks]
        comment = f"{pack.tasks[0].name}: {' '.join(labels)}"[:COMMENT_LENGTH]
        call = get_submit_command(
            request,
            {
                "run_uuid": self.run_uuid,
                "slurm_logfile": output,
                "comment_str": comment,
                "account": next(self.get_account_arg(request)),
                "partition": partition,
                "workdir": self.workflow.workdir_init,
            },
            settings=self.workflow.executor_settings,
            failed_nodes=self._failed_nodes,
        )
        pack.save([self.format_job_exec(job) for job in pack.jobs], own)
        runner = [sys.executable, "-m", "tomoline_slurm.runner", str(pack.folder.resolve())]
        answer = ask(
            [*shlex.split(call + set_gres_string(request)), "--open-mode=append"],
            text=f"#!/bin/sh\nexec {shlex.join(runner)}\n",
        )
        job_id = validate_or_get_slurm_job_id(answer.strip().split(";")[0], answer)
        log, *logs = [p.with_name(p.name.replace("%j", job_id)) for p in (output, *own)]
        return job_id, log, logs

    def _within_limits(self, request: Request, partition: str) -> Request:
        """Ask for no more time than the partition gives: SLURM would let the job wait for ever."""
        if partition not in self._limits:
            try:
                self._limits[partition] = time_limit(partition)
            except SlurmError as error:
                self.logger.warning(f"the time limit of partition {partition} is unknown: {error}")
                return request
        limit, wanted = self._limits[partition], request.resources.get("runtime")
        if limit and isinstance(wanted, int) and wanted > limit:
            self.logger.warning(
                f"a job may take {limit} minutes in partition {partition}, not {wanted}"
            )
            return Request({**request.resources, "runtime": limit}, request.threads, request.name)
        return request

    # --- the end

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Ctrl-C: end all jobs of this run, those being submitted and looked at among them."""
        self._close()
        spanning = [info for info in active_jobs if "pack" not in (info.aux or {})]
        if spanning:
            super().cancel_jobs(spanning)

    def shutdown(self) -> None:
        """The end of the run. Jobs are left only where the watching was ended by a fault."""
        if self._open or self._gathered:
            self._close()
        super().shutdown()

    def _close(self) -> None:
        """Submit nothing more, end what was submitted, and wait until it writes no more."""
        with self._gate:
            if self._closed.is_set():
                return
            self._closed.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        try:
            ended = cancel_run(self.run_uuid, patience_s=CANCEL_S)
        except (SlurmError, KeyboardInterrupt) as error:
            driver.leave()
            self.logger.warning(
                f"SLURM jobs of this run may be left; the next run here ends them, or "
                f"`scancel --name={self.run_uuid}`. {error}"
            )
            return
        self.logger.info(f"{len(ended)} SLURM jobs cancelled")
        for members in list(self._open.values()):
            for info in list(members.values()):
                self._note(info, "CANCELLED", reason="the run was stopped")
                self._is_reported(info)

    # --- watching

    async def sleep(self) -> None:
        """Look for ended jobs often: that costs SLURM nothing, and a share little."""
        self.next_seconds_between_status_checks = max(
            self._look_s, len(self._open) / LOOKS_A_SECOND
        )
        await super().sleep()

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Submit what is ready; report those that ended; yield the others."""
        if self._closed.is_set():
            for info in active_jobs:
                yield info
            return
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            driver.beat()
        self._send()
        packed: list[SubmittedJobInfo] = []
        spanning: list[SubmittedJobInfo] = []
        for info in active_jobs:
            (packed if "pack" in (info.aux or {}) else spanning).append(info)
        async for info in super().check_active_jobs(spanning):
            yield info
        left = self._not_ended(packed)
        answered = self._ask(left)
        for info in left:
            if not (answered and self._is_given_up(info)):
                yield info

    def _not_ended(self, infos: Sequence[SubmittedJobInfo]) -> list[SubmittedJobInfo]:
        """Report the jobs that have left their exit codes; return the others."""
        packs = {info.aux["pack"].folder: info.aux["pack"] for info in infos}
        codes = {folder: pack.exit_codes() for folder, pack in packs.items()}
        left = []
        for info in infos:
            code = codes[info.aux["pack"].folder].get(info.aux["member"])
            if code is None:
                left.append(info)
            else:
                self._report(info, code)
        return left

    def _report(self, info: SubmittedJobInfo, code: int) -> None:
        """Report a job by its exit code."""
        self._pause_s = self._ask_s[0]
        if code:
            self._fail(info, "FAILED", f"exit code {code}")
            return
        self._note(info, "COMPLETED")
        self._is_reported(info)
        self.report_job_success(info)
        self._remove_log(info.aux["slurm_logfile"])

    def _is_reported(self, info: SubmittedJobInfo) -> None:
        """Remove a pack when the last of its members is reported."""
        pack = info.aux["pack"]
        members = self._open.get(pack.folder, {})
        members.pop(info.aux["member"], None)
        if not members:
            self._open.pop(pack.folder, None)
            pack.remove()
            if pack.folder not in self._failed_packs:
                self._remove_log(info.aux["shared_log"])

    def _remove_log(self, path: Path) -> None:
        if not self.workflow.executor_settings.keep_successful_logs:
            with contextlib.suppress(OSError):
                path.unlink()

    def _ask(self, infos: Sequence[SubmittedJobInfo]) -> bool:
        """Ask SLURM for the states of jobs when it is time to; whether it answered now."""
        now = time.monotonic()
        if not infos or now - self._asked < self._pause_s:
            return False
        self._asked = now
        self._pause_s = min(self._pause_s * 1.5, self._ask_s[1])
        try:
            self._states = job_states(self.run_uuid, sorted({i.external_jobid for i in infos}))
        except SlurmError as error:
            self.logger.warning(f"SLURM does not answer, its jobs are waited for: {error}")
            return False
        for info in infos:
            known = self._state(info)
            if not known.ended and known.state != "UNKNOWN":
                self._note(info, known.state)
        records.note_queue(self.run_uuid, {i.external_jobid: asdict(self._state(i)) for i in infos})
        return True

    def _is_given_up(self, info: SubmittedJobInfo) -> bool:
        """Report a job that SLURM says will not leave an exit code any more."""
        known = self._state(info)
        if not self._is_believed(info, known):
            return False
        code = info.aux["pack"].exit_code(info.aux["member"])
        if code is None and known.state == "COMPLETED":
            code = 0  # the runner ends well only if all its members have
        if code is not None:
            self._report(info, code)
            return True
        if known.hopeless:
            return self._end(info, "CANCELLED", f"SLURM would never start it ({known.reason})")
        # SLURM might start it again after all, beside the one that takes its place.
        if known.state in MAY_RETURN or known.state == "UNKNOWN":
            return self._end(info, known.state, "it did not come back")
        self._fail(info, known.state, "it ended without an exit code")
        return True

    def _is_believed(self, info: SubmittedJobInfo, known: JobState) -> bool:
        """Whether a job has been for long enough in a state that it cannot stay in."""
        key, now = f"{info.external_jobid}.{info.aux['member']}", time.monotonic()
        if not (known.ended or known.hopeless or known.state == "UNKNOWN"):
            self._doubtful.pop(key, None)
            return False
        first, since = self._doubtful.setdefault(key, (known.state, now))
        if first != known.state:
            self._doubtful[key] = (known.state, now)
            return False
        return now - since >= self._patience(known)

    def _end(self, info: SubmittedJobInfo, state: str, reason: str) -> bool:
        """Cancel a job and report it; not now where SLURM does not answer."""
        try:
            cancel([info.external_jobid])
        except SlurmError as error:
            self.logger.warning(f"SLURM job {info.external_jobid} is {state}: {reason}; {error}")
            return False
        self._fail(info, state, reason)
        return True

    def _state(self, info: SubmittedJobInfo) -> JobState:
        return self._states.get(info.external_jobid) or JobState()

    def _patience(self, known: JobState) -> float:
        """How long a state is doubted; less where polling is fast, as it is in tests."""
        seconds = ENDED_S + float(self.workflow.execution_settings.latency_wait)
        if known.state == "UNKNOWN":
            seconds = UNKNOWN_S
        elif known.hopeless:
            seconds = RETURN_S
        elif known.state in MAY_RETURN and not self.workflow.executor_settings.no_requeue:
            seconds = RETURN_S  # without either setting most sites requeue
        return seconds * self._look_s / LOOK_S

    def _fail(self, info: SubmittedJobInfo, state: str, reason: str) -> None:
        log = str(info.aux["slurm_logfile"])
        self._note(info, state, reason=reason, log=log)
        self._failed_packs.add(info.aux["pack"].folder)
        self._is_reported(info)
        message = f"SLURM job {info.external_jobid} is {state}: {reason}. "
        self.report_job_error(info, msg=message, aux_logs=[log] if _is_there(log) else [])

    def _note(self, info: SubmittedJobInfo, state: str, **more: Any) -> None:
        pack, member = info.aux["pack"], info.aux["member"]
        key = (info.external_jobid, member)
        if self._noted.get(key) == state:
            return
        self._noted[key] = state
        more.setdefault("log", str(info.aux["slurm_logfile"]))
        records.note(
            pack.tasks[member], run=self.run_uuid, job=str(info.external_jobid), state=state, **more
        )


def _is_for_the_plugin(job: Any) -> bool:
    """Whether a job spans nodes or goes to another cluster, which is left to the plugin."""
    return any(job.resources.get(name) for name in ("mpi", "cluster", "clusters", "slurm_cluster"))


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a share that cannot be read just now
        return False
