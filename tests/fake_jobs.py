"""Stand-ins for Snakemake's jobs and workflow: what its executors read of them, and no more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_interface_executor_plugins.settings import SharedFSUsage

from tomoline_slurm.packs import Resources

_NUMBERS = itertools.count(1)


@dataclass(eq=False)
class FakeJob:
    """A job of one rule; what is reported of it is kept in lists."""

    name: str = "prepare"
    tomogram: str = "TS_01"
    dataset: str = "d"
    threads: int = 1
    attempt: int = 1
    group: str | None = None
    wanted: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    slurm: list[str] = field(default_factory=list)
    jobid: int = field(default_factory=lambda: next(_NUMBERS))
    is_local: bool = False
    is_updated: bool = False

    @property
    def rule(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name)

    @property
    def rules(self) -> list[str]:
        return [self.name]

    @property
    def resources(self) -> Resources:
        return Resources(self.wanted)

    @property
    def wildcards_dict(self) -> dict[str, str]:
        named = {"dataset": self.dataset, "tomogram": self.tomogram}
        return {key: value for key, value in named.items() if value}

    @property
    def wildcards(self) -> list[str]:
        return list(self.wildcards_dict.values())

    def is_group(self) -> bool:
        return False

    def get_wait_for_files(self) -> list[str]:
        return []

    def get_target_spec(self) -> list[Any]:
        return [SimpleNamespace(rulename=self.name, wildcards_dict=self.wildcards_dict)]

    def log_info(self) -> None:
        pass

    def log_error(self, msg: str, **more: Any) -> None:
        self.errors.append(msg)
        self.logs.extend(more.get("aux_logs") or [])

    def register(self, external_jobid: str | None = None) -> None:
        self.slurm.append(str(external_jobid))


@dataclass(eq=False)
class FakeGroup:
    """Jobs that Snakemake submits as one."""

    jobs: Sequence[FakeJob]
    wanted: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    attempt: int = 1

    @property
    def resources(self) -> Resources:
        return Resources(self.wanted)

    def is_group(self) -> bool:
        return True


class FakeScheduler:
    """Which jobs were reported to Snakemake, and how."""

    def __init__(self) -> None:
        self.finished: list[Any] = []
        self.failed: list[Any] = []
        self.submitted: list[Any] = []
        self.finish_callback = self.finished.append
        self.error_callback = self.failed.append
        self.submit_callback = self.submitted.append


class FakeLogger:
    """Lines by their level."""

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.info = self.infos.append
        self.warning = self.warnings.append
        self.error = self.warnings.append

    def debug(self, text: str, **more: Any) -> None:
        pass


class FakeWorkflow:
    """A workflow in a folder, run with these options of the plugin."""

    def __init__(self, folder: Path, **options: Any) -> None:
        options = {"status_command": "squeue", "delete_logfiles_older_than": 0, **options}
        self.executor_settings = ExecutorSettings(**options)
        self.scheduler = FakeScheduler()
        self.dag = SimpleNamespace(get_unneeded_temp_files=lambda job: [], ready_jobs=list)
        self.main_snakefile = str(folder / "Snakefile")
        self.workdir_init = str(folder)
        self.executor_plugin = SimpleNamespace(common_settings=common_settings)
        self.storage_settings = SimpleNamespace(shared_fs_usage=SharedFSUsage.all())
        self.execution_settings = SimpleNamespace(latency_wait=60)
        self.resource_settings = SimpleNamespace(cores=None)
        self.group_settings = SimpleNamespace(local_groupid="local")
        self.remote_execution_settings = SimpleNamespace(
            max_status_checks_per_second=100, jobname="snakejob.{jobid}.sh", jobscript=None,
            immediate_submit=False, seconds_between_status_checks=10,
        )  # fmt: skip
        self.spawned_job_args_factory = SimpleNamespace(
            general_args=lambda executor_common_settings: "--general",
            precommand=lambda executor_common_settings: "",
            envvars=dict,
        )
