"""The tests' cluster itself: it ends what it started and nothing else, also after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import NODES, Cluster, clear_leftovers, processes, wait_for

START = """\
import sys, time
sys.path.insert(0, sys.argv[1])
from cluster import Cluster
cluster = Cluster.start()
cluster.command("sbatch", "--output=/dev/null", "--wrap=sleep 600")
print(cluster.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def left_behind(cluster: Cluster) -> Path:
    """The folder of a second cluster, with a job, whose test run was killed."""
    run = subprocess.Popen(
        [sys.executable, "-c", START, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    wait_for(lambda: any(b"SLURM_JOB_ID=" in e for e in processes(folder).values()), "its job", 30)
    run.kill()
    run.wait()
    return folder


def test_a_killed_runs_cluster_is_cleared_and_no_other(cluster: Cluster, left_behind: Path) -> None:
    before = set(processes(cluster.folder))
    assert processes(left_behind)
    assert left_behind in clear_leftovers()
    assert not processes(left_behind)
    assert not left_behind.exists()
    assert before <= set(processes(cluster.folder))
    cluster.wait_for_nodes(NODES)


def test_gpus_are_given_one_to_each_job(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "devices"
    number = cluster.command(
        "sbatch", "--parsable", "--partition=gpu", "--gres=gpu:1", f"--output={output}",
        "--wrap=echo $CUDA_VISIBLE_DEVICES",
    ).strip()  # fmt: skip
    cluster.wait_for_state(number, "COMPLETED")
    assert output.read_text().strip() in {"0", "1"}
