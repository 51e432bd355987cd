"""Whatever is killed or fills up: an output is whole or absent, and the next run mends it.

Each story ends with the same command run in peace and results that equal, byte for byte, those of a
run that nothing happened to. On the way every output that is there is whole already.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from needed import absent
from tiny_project import ROOT, Project, make_project

CENTRES = {"one": [(12, 12, 14), (28, 30, 40)]}
KEEP = ["prepared", "shards", "probability", "mask", "subtomograms", "classes"]
Done = subprocess.CompletedProcess[str]

# Sees every process of a run just before an output gets its name. Where the folder of orders has
# one for that name, the file is cut to half, as if the writing had come that far, and the process
# is killed or stays where it is for ever.
SITE = """
import os, signal, sys, time

def hook(event, arguments):
    if event != "os.rename" or ".part-" not in str(arguments[0]):
        return
    order = os.path.join(os.environ["ORDERS"], os.path.basename(str(arguments[1])))
    if not os.path.exists(order):
        return
    with open(order) as stream:
        what = stream.read()
    os.unlink(order)
    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

sys.addaudithook(hook)
"""

# An output of each rule that writes, where it has several one of the last that it writes.
OUTPUT = {
    "prepare": "prepared.json",
    "tile": "plan.json",
    "segment": "1-of-1.h5",
    "merge": "mask.mrc",
    "cluster": "candidates.csv",
    "extract": "subtomograms.h5",
    "classify": "classes.h5",
    "vote": "segmentation.mrc.gz",
    "export": "relion4.star",
    "evaluate": "confusion.csv",
    "report_tomogram": "tomogram.html",
    "combine": "import.star",
    "report_dataset": "summary.html",
}


def new_project(folder: Path) -> Project:
    project = make_project(folder, CENTRES)
    project.configure(keep=KEEP)
    return project


def outputs(project: Project) -> dict[str, bytes]:
    """Bytes of every output; pages show how long the run took, so of them only the end."""
    folder = project.file()
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        beside = {"logs", "benchmarks"} & {*name.parts} or any(p[0] == "." for p in name.parts)
        if path.is_file() and not beside:
            content = path.read_bytes().replace(str(project.folder).encode(), b"PROJECT")
            found[str(name)] = content[-8:] if path.suffix == ".html" else content
    return found


def unfinished(project: Project) -> list[str]:
    """Names of files half written, and of folders to work in, that have been left."""
    hidden = (project.folder / "results").rglob(".*")
    # Snakemake notes in a folder that is an output when it was made.
    return [str(path) for path in hidden if path.name != ".snakemake_timestamp"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    project = new_project(tmp_path_factory.mktemp("undisturbed"))
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    found = outputs(project)
    names = {Path(name).name for name in found}
    assert set(OUTPUT.values()) <= names
    assert unfinished(project) == []
    return found


def assert_whole(project: Project, undisturbed: dict[str, bytes]) -> None:
    """Every output of the tomogram that is there is as it should be."""
    found = {name: content for name, content in outputs(project).items() if name[:4] == "one/"}
    assert {name for name in found if found[name] != undisturbed.get(name)} == set()


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of orders, which the processes of a run obey (see SITE)."""
    site, folder = tmp_path / "site", tmp_path / "orders"
    site.mkdir()
    folder.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("ORDERS", str(folder))
    return folder


def test_kill_9_of_each_job_in_the_middle_of_its_writing(
    tmp_path: Path, orders: Path, undisturbed: dict[str, bytes]
) -> None:
    project = new_project(tmp_path / "project")
    for name in OUTPUT.values():
        (orders / name).write_text("kill")
    done = project.snakemake("--retries", "1")
    assert list(orders.iterdir()) == [], "every rule's first job was killed"
    assert done.returncode == 0, done.stderr
    # The second attempt says what the first has left.
    for rule, name in OUTPUT.items():
        text = "".join(p.read_text() for p in project.file().rglob(f"logs/{rule}*.log"))
        assert f".{name}.part-" in text, rule
    assert outputs(project) == undisturbed
    assert unfinished(project) == []


def begun(project: Project) -> subprocess.Popen[bytes]:
    """The same command as `Project.snakemake`, in a session of its own, not waited for."""
    command = [
        str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"),
        "--cores", "2", "--workflow-profile", str(ROOT / "profiles" / "default"),
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=project.folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_until_obeyed(order: Path, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while order.exists():
        assert driver.poll() is None, "the run has ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)


@pytest.fixture
def sessions() -> Iterator[list[int]]:
    """Sessions begun by a test, ended with all that is in them."""
    begun: list[int] = []
    yield begun
    for session in begun:
        try:
            os.killpg(session, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_kill_9_of_the_driver_and_then_of_the_machine(
    tmp_path: Path, orders: Path, sessions: list[int], undisturbed: dict[str, bytes]
) -> None:
    project = new_project(tmp_path / "project")
    # The driver alone: its job is still there, half way through its output.
    (orders / "1-of-1.h5").write_text("wait")
    driver = begun(project)
    sessions.append(driver.pid)
    wait_until_obeyed(orders / "1-of-1.h5", driver)
    driver.kill()
    driver.wait()
    assert_whole(project, undisturbed)
    prepared = project.file("one", "prepared.mrc").stat().st_mtime_ns
    # The same command; then the machine loses power: nothing lives, and of what Snakemake had
    # written of its own only the names have reached the disk.
    (orders / "mask.mrc").write_text("wait")
    driver = begun(project)
    sessions.append(driver.pid)
    wait_until_obeyed(orders / "mask.mrc", driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert_whole(project, undisturbed)
    for record in (project.folder / ".snakemake" / "metadata").iterdir():
        os.truncate(record, 0)
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    assert outputs(project) == undisturbed
    assert unfinished(project) == []
    assert project.file("one", "prepared.mrc").stat().st_mtime_ns == prepared, "kept all along"


class SmallDisk:
    """A file system in memory whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", folder], check=True)

    def leave(self, free_kb: int) -> None:
        """Change its size so that this much is free."""
        used = shutil.disk_usage(self.folder).used // 1024
        size = f"remount,size={used + free_kb}k"
        subprocess.run(["mount", "-o", size, self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        absent("only root can mount a small disk")
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=True)


def refused(project: Project, output: str) -> None:
    """Run on a disk too small for `output`: the run says so and what to do, and so does status."""
    done = project.snakemake()
    assert done.returncode != 0
    (line,) = {
        line.split("InputError: ")[1]
        for line in done.stderr.splitlines()
        if "tomoline: InputError: results/tiny/one/" in line
    }
    assert output in line.split(": ")[0]
    assert "expected room to write this file; found no space left on device" in line
    assert "then give the same command again" in line
    status = project.run("tomoline", "status", "--dataset", "tiny").stdout
    assert f"failed: InputError: {line.split(': ')[0]}" in status


def test_full_disk(small_disk: SmallDisk, undisturbed: dict[str, bytes]) -> None:
    project = new_project(small_disk.folder / "project")
    small_disk.leave(0)  # not even Snakemake's own files have room
    assert project.snakemake().returncode != 0
    small_disk.leave(24)  # some of them have
    assert project.snakemake().returncode != 0
    assert_whole(project, undisturbed)
    small_disk.leave(560)  # HDF5
    refused(project, "segment/1-of-1.h5")
    assert_whole(project, undisturbed)
    assert unfinished(project) == []
    small_disk.leave(500)  # a memory map
    refused(project, "mask.mrc")
    assert_whole(project, undisturbed)
    assert unfinished(project) == []
    small_disk.leave(20_000)
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    assert outputs(project) == undisturbed
    assert unfinished(project) == []
