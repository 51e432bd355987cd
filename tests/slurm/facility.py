"""A user's project at a facility: `snakemake --profile slurm`, and what sacct says of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from cluster import FINAL, PATIENCE_SECONDS, Cluster, ClusterError, Job, wait_for
from tiny_project import ROOT, Project, make_project

SITE = Path(__file__).parent / "site"

PROFILES = ROOT / "profiles"
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))

SHIPPED = str(PROFILES / "slurm")

# Only times differ from the shipped profile: files need not cross a network share here.
TIMES = ("--latency-wait", "10")
POLL_SECONDS = "2"
# The rules of which the others of their groups follow.
GROUP_RULES = ("prepare", "tile", "export", "report_tomogram", "evaluate")
# A place for one ball in each of the tests' small tomograms.
PLACE = [(20, 24, 28)]


@dataclass
class Driver:
    """A snakemake at work: its process and what it has said."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        """All it has said so far."""
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; its return code. ClusterError where it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"the run did not end in {seconds:.0f} s:\n{self.text()}") from None

    def kill(self) -> None:
        """kill -9, as by an administrator or for lack of memory: no word to its children."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Facility:
    """A folder with a project, run on the cluster."""

    cluster: Cluster
    folder: Path
    drivers: list[Driver] = field(default_factory=list)

    @cached_property
    def project(self) -> Project:
        """The folder as a project of `tiny_project`, once `make` was called."""
        return Project(self.folder)

    def make(self, names: Iterable[str]) -> Project:
        """Make tomograms of these names, with one ball each, and the tests' networks."""
        return make_project(self.folder, {name: PLACE for name in names})

    # -- hindrances -----------------------------------------------------------------------------

    def hinder(self, *entries: Mapping[str, Any]) -> None:
        """Say which stages wait or use more memory (see site/sitecustomize.py)."""
        (self.folder / "hindrances.json").write_text(json.dumps(entries))

    def hold(self, name: str = "hold") -> Path:
        """The file that keeps stages waiting while it exists; made here."""
        path = self.folder / name
        path.touch()
        return path

    def wait_for_held(
        self, name: str, hold: str = "hold", seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until a held stage of a tomogram (or the stage itself) says that it waits."""
        mark, process = self.folder / f"{hold}.{name}", self.drivers[-1].process
        what = f"{name} to be at work; the run said\n"
        wait_for(lambda: mark.exists() or process.poll() is not None, what, seconds)
        if not mark.exists():
            raise ClusterError(f"not at work: {name}; the run said\n{self.drivers[-1].text()}")

    # -- runs -----------------------------------------------------------------------------------

    def start(self, *arguments: str, profile: str = SHIPPED) -> Driver:
        """Start snakemake with the repository's own profiles, or that of a site."""
        command = [
            SNAKEMAKE, "--snakefile", str(ROOT / "Snakefile"), "--profile", profile,
            "--workflow-profile", str(PROFILES / "default"), *TIMES, *arguments,
        ]  # fmt: skip
        return self.launch(command)

    def launch(self, command: Sequence[str]) -> Driver:
        """Start any command in the folder, as a process group of its own."""
        output = self.folder / f"driver{len(self.drivers)}.txt"
        hindrances = self.folder / "hindrances.json"
        if not hindrances.exists():
            self.hinder()
        complete = {
            **os.environ, **self.cluster.environment, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]),
            "TOMOLINE_SLURM_POLL_SECONDS": POLL_SECONDS,
            "TOMOLINE_TEST_HINDRANCES": str(hindrances),
        }  # fmt: skip
        complete.pop("SNAKEMAKE_PROFILE", None)
        with output.open("wb") as handle:
            process = subprocess.Popen(
                list(command), cwd=self.folder, env=complete, stdin=subprocess.DEVNULL,
                stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        driver = Driver(process, output)
        self.drivers.append(driver)
        return driver

    def run(self, *arguments: str) -> Driver:
        """Run snakemake to its end."""
        driver = self.start(*arguments)
        driver.wait()
        return driver

    def end(self) -> None:
        """End what is still at work: drivers, and jobs of this folder."""
        for driver in self.drivers:
            if driver.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(driver.process.pid, signal.SIGKILL)
                driver.process.wait()
        self.cluster.cancel_all()

    # -- what came of it ------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Submissions from this folder so far, from sacct; a requeued job has several rows."""
        return self.cluster.jobs(self.folder)

    def ended_jobs(self, seconds: float = PATIENCE_SECONDS) -> list[Job]:
        """The same once all jobs have ended and the accounting has heard of it."""

        def told() -> bool:
            known = {job.id: job.state for job in self.jobs()}  # the last row of each
            return set(self.submitted()) <= set(known) and set(known.values()) <= FINAL

        wait_for(told, f"sacct to know the end of {self.submitted()}", seconds)
        return self.jobs()

    def submitted(self) -> list[str]:
        """Numbers of the jobs that drivers said they had submitted."""
        text = "".join(driver.text() for driver in self.drivers)
        return list(dict.fromkeys(re.findall(r"SLURM job (\d+): ", text)))

    def wait_for_job(
        self, word: str, state: str = "RUNNING", seconds: float = PATIENCE_SECONDS
    ) -> str:
        """Wait for a job in a state whose comment holds a word; its number."""
        found: list[str] = []

        def look() -> bool:
            text = self.cluster.says(
                "squeue", "--noheader", "--states=all", "--format=%A|%T|%Z|%k"
            )  # fmt: skip
            rows = (line.split("|", 3) for line in text.splitlines())
            found[:] = [
                number for number, now, place, comment in rows
                if now == state and Path(place) == self.folder.resolve() and word in comment
            ]  # fmt: skip
            return bool(found)

        wait_for(look, f"a job of {word} to be {state}", seconds)
        return found[0]

    def job_of(self, tomogram: str, kind: str) -> list[Job]:
        """Submissions of a kind (`prepare`, `network`, `results`) that hold a tomogram."""
        return [
            job for job in self.jobs() if kind_of(job) == kind and tomogram in tomograms_of(job)
        ]

    def status(self) -> dict[str, dict[str, Any]]:
        """`tomoline status --json`, by tomogram."""
        done = self.project.run("tomoline", "status", "--dataset", "tiny", "--json")
        (dataset,) = json.loads(done.stdout)["datasets"]
        return {row["tomogram"]: row for row in dataset["tomograms"]}


def kind_of(job: Job) -> str:
    """The group, or rule, that a submission ran."""
    return job.comment.partition(":")[0]


def tomograms_of(job: Job) -> set[str]:
    """The tomograms in a submission."""
    return set(job.comment.partition(":")[2].split())


def numbers(jobs: Iterable[Job]) -> set[str]:
    """The numbers of submissions, each once."""
    return {job.id for job in jobs}


def set_resources(**of_all: Any) -> list[str]:
    """`--set-resources` with what the shipped profile sets, and these for all rules in groups.

    The option replaces the profile's whole section, so that has to be said again.
    """
    shipped = yaml.safe_load(Path(SHIPPED, "config.yaml").read_text())["set-resources"]
    rules = {rule: dict(values) for rule, values in shipped.items()}
    for rule in GROUP_RULES:
        rules.setdefault(rule, {}).update(of_all)
    return ["--set-resources", *(
        f"{rule}:{key}={value}" for rule, values in rules.items() for key, value in values.items()
    )]  # fmt: skip
