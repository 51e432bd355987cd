"""The SLURM executor: the plugin's, with packs, and with a driver that nothing leaves waiting.

Seen with snakemake-executor-plugin-slurm 2.4.0 to 2.8.0 and done otherwise here:

- a job ended by `scancel` has the state "CANCELLED by 1000", which the plugin does not know: the
  driver waited for ever;
- a status query that failed dropped all active jobs: the driver waited for ever;
- a job in the state PREEMPTED or NODE_FAIL that SLURM does not start again was waited for, as was
  one that SLURM has forgotten;
- with accounting switched off but `sacct` installed no state was ever found;
- each job started two nested snakemakes; here it is one, and small tomograms share a submission.

Jobs report their end by a file, so that SLURM is asked only for what ended without one.
"""

from __future__ import annotations

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
    job_states,
    time_limit,
)
from tomoline_slurm.packs import Pack, Request, bundled, limit

# Seconds between two looks at the files that jobs leave, and between two questions to SLURM.
LOOK_S = 5.0
ASK_S = (20.0, 120.0)
# How long a job may be in a state before that is believed: a file on its way through a network
# share; a job that SLURM puts back into its queue; a job that SLURM does not name.
ENDED_S, RETURN_S, UNKNOWN_S = 30.0, 300.0, 600.0
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
        self._gathered: list[tuple[Any, float]] = []
        self._gate = threading.Lock()
        self._limits: dict[str, int | None] = {}
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        super().__post_init__(test_mode)
        driver.note_run(self.run_uuid)

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
        """Gather jobs that are ready; those that span nodes go the plugin's own way."""
        spanning = [job for job in jobs if job.resources.get("mpi")]
        super().run_jobs(spanning)
        for job in jobs:
            if job not in spanning:
                self.run_job_pre(job)
                with self._gate:
                    self._gathered.append((job, time.monotonic()))

    def _send(self) -> None:
        """Submit what has gathered: of each kind a full pack at once, others after a little while.

        Jobs become ready one by one, as those before them end; together they cost less.
        """
        now = time.monotonic()
        with self._gate:
            gathered, self._gathered = dict(self._gathered), []
            for members in bundled(gathered):
                full = len(members) >= limit(members[-1])
                if full or now - min(gathered[job] for job in members) >= 2 * self._look_s:
                    self._job_submission_executor.submit(self._submit, Pack.of(members))
                else:
                    self._gathered += [(job, gathered[job]) for job in members]

    def _submit(self, pack: Pack) -> None:
        """Submit a pack, in a thread of its own; whatever goes wrong, its jobs have failed."""
        try:
            job_id, logs = self._submitted(pack)
        except Exception as error:
            for job, task in zip(pack.jobs, pack.tasks, strict=True):
                records.note(task, run=self.run_uuid, job="", state="REFUSED", reason=str(error))
                self._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}")
            return
        self.logger.info(f"SLURM job {job_id}: {', '.join(task.label for task in pack.tasks)}")
        for number, (job, log) in enumerate(zip(pack.jobs, logs, strict=True)):
            aux = {"slurm_logfile": log, "pack": pack, "member": number}
            info = SubmittedJobInfo(job, external_jobid=job_id, aux=aux)
            self._note(info, "SUBMITTED")
            self._report_job_submission_threadsafe(info)

    def _submitted(self, pack: Pack) -> tuple[str, list[Path]]:
        """Call sbatch; returns SLURM's job id and each member's log."""
        request = self._within_limits(pack.request)
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
                "partition": self.get_partition_arg(request),
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
        return job_id, [path.with_name(path.name.replace("%j", job_id)) for path in own]

    def _within_limits(self, request: Request) -> Request:
        """Ask for no more time than the partition gives: SLURM would let the job wait for ever."""
        partition = str(request.resources.get("slurm_partition") or "")
        if partition not in self._limits:
            self._limits[partition] = time_limit(partition)
        limit, wanted = self._limits[partition], request.resources.get("runtime")
        if limit and isinstance(wanted, int) and wanted > limit:
            self.logger.warning(
                f"a job may take {limit} minutes in partition {partition}, not {wanted}"
            )
            return Request({**request.resources, "runtime": limit}, request.threads)
        return request

    # --- watching

    async def sleep(self) -> None:
        """Look for ended jobs often: that costs SLURM nothing."""
        self.next_seconds_between_status_checks = self._look_s
        await super().sleep()

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Submit what is ready; report those that ended; yield the others."""
        self._send()
        packed = [info for info in active_jobs if "pack" in (info.aux or {})]
        async for info in super().check_active_jobs([i for i in active_jobs if i not in packed]):
            yield info
        left = [info for info in packed if not self._has_ended(info)]
        answered = self._ask(left)
        for info in left:
            if not (answered and self._is_given_up(info)):
                yield info

    def _has_ended(self, info: SubmittedJobInfo) -> bool:
        """Report a job that has left its exit code."""
        code = info.aux["pack"].exit_code(info.aux["member"])
        if code is None:
            return False
        self._pause_s = self._ask_s[0]
        log = Path(info.aux["slurm_logfile"])
        if code == 0:
            self._note(info, "COMPLETED")
            self.report_job_success(info)
            if not self.workflow.executor_settings.keep_successful_logs:
                log.unlink(missing_ok=True)
        else:
            self._fail(info, "FAILED", f"exit code {code}")
        return True

    def _ask(self, infos: Sequence[SubmittedJobInfo]) -> bool:
        """Ask SLURM for the states of jobs when it is time to; whether it answered now."""
        now = time.monotonic()
        if not infos or now - self._asked < self._pause_s:
            return False
        self._asked = now
        self._pause_s = min(self._pause_s * 1.5, self._ask_s[1])
        driver.beat()
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
        known, key = self._state(info), f"{info.external_jobid}.{info.aux['member']}"
        state = known.state
        if known.hopeless:
            return self._end(info, state, f"SLURM would never start it ({known.reason})")
        if not known.ended and state != "UNKNOWN":
            self._doubtful.pop(key, None)
            return False
        first, since = self._doubtful.setdefault(key, (state, time.monotonic()))
        if first != state:
            self._doubtful[key] = (state, time.monotonic())
            return False
        if time.monotonic() - since < self._patience(state):
            return False
        # SLURM might start it again after all, beside the one that takes its place.
        if state in MAY_RETURN or state == "UNKNOWN":
            return self._end(info, state, "it did not come back")
        self._fail(info, state, "it ended without an exit code")
        return True

    def _end(self, info: SubmittedJobInfo, state: str, reason: str) -> bool:
        """Cancel a job and report it; not now where SLURM does not answer."""
        try:
            cancel([info.external_jobid])
        except SlurmError:
            return False
        self._fail(info, state, reason)
        return True

    def _state(self, info: SubmittedJobInfo) -> JobState:
        return self._states.get(info.external_jobid) or JobState()

    def _patience(self, state: str) -> float:
        """How long a state is doubted; less where polling is fast, as it is in tests."""
        waiting = self.workflow.executor_settings.requeue and state in MAY_RETURN
        seconds = RETURN_S if waiting else UNKNOWN_S if state == "UNKNOWN" else ENDED_S
        return float(seconds * self._look_s / LOOK_S)

    def _fail(self, info: SubmittedJobInfo, state: str, reason: str) -> None:
        log = str(info.aux["slurm_logfile"])
        self._note(info, state, reason=reason, log=log)
        message = f"SLURM job {info.external_jobid} is {state}: {reason}. "
        self.report_job_error(info, msg=message, aux_logs=[log] if Path(log).exists() else [])

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
