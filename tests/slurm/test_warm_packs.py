"""One process runs the networks of all tomograms of a job on a GPU, and ends with the job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, processes, started, wait_for
from facility import Driver, Facility, kind_of, tomograms_of
from fake_jobs import FakeJob

from tomoline_slurm.packs import Pack

TOMOGRAMS = ["one", "two", "three"]
KEPT = "is kept from an earlier tomogram"
NOT_USED = "the process that keeps networks is not used"
# A stage without input: it fails, and leaves a server that waits for others.
LEAVE_SERVER = f"""\
{sys.executable} -c 'from tomoline.stages import execute; execute("segment", inputs=dict(), \
outputs=dict(), log="segment.log")'; sleep 300"""


def servers(facility: Facility) -> dict[int, Path]:
    """The servers at work on the cluster, and the folders that they serve."""
    found = {}
    for pid in processes(facility.cluster.folder):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if "tomoline.warm" in words and started(pid):
            found[pid] = Path(words[words.index("tomoline.warm") + 1]).parent
    return found


@pytest.fixture(scope="module")
def run(facility: Facility) -> Driver:
    facility.make(TOMOGRAMS)
    return facility.run("--until", "vote")


def test_one_server_does_it_for_all(facility: Facility, run: Driver) -> None:
    assert run.process.returncode == 0, run.text()
    (job,) = [job for job in facility.ended_jobs() if kind_of(job) == "network"]
    assert tomograms_of(job) == set(TOMOGRAMS)
    for stage in ("segment", "classify"):
        logs = [facility.project.file(name, "logs").glob(f"{stage}*.log") for name in TOMOGRAMS]
        texts = [log.read_text() for (log,) in logs]
        assert sorted(KEPT in text for text in texts) == [False, True, True], texts
        assert NOT_USED not in "".join(texts)
        assert all(text.endswith(f"finished {stage}\n") for text in texts)


def test_it_has_gone_with_the_job(facility: Facility, run: Driver) -> None:
    assert not servers(facility)


@pytest.mark.parametrize("end", [Cluster.cancel, Cluster.requeue])
def test_it_goes_with_a_job_that_is_ended(
    cluster: Cluster, facility: Facility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Cluster, str], None],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pack = Pack.of([FakeJob()])
    pack.save([LEAVE_SERVER], [Path("log")])
    number = cluster.command(
        "sbatch", "--parsable", "--partition=gpu", "--gres=gpu:1", "--mem=1000", "--requeue",
        "--output=job.log", f"--wrap=exec {sys.executable} -m tomoline_slurm.runner {pack.folder}",
    ).strip()  # fmt: skip
    wait_for(lambda: servers(facility), "a server")
    wait_for(lambda: Path("segment.log").read_text(), "an answer")
    ((first, folder),) = servers(facility).items()
    end(cluster, number)
    wait_for(lambda: first not in servers(facility) and not folder.exists(), "its end", 20.0)
    cluster.cancel(number)  # what was sent back to the queue
    wait_for(lambda: not servers(facility), "the end of all", 20.0)
