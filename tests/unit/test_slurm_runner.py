"""The runner in SLURM's allocation: members that fail alone, and a job that is ended or goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_jobs import FakeJob
from fake_slurm import wait_until

from tomoline.io.warm_folder import VARIABLE
from tomoline_slurm import runner
from tomoline_slurm.packs import Pack
from tomoline_slurm.runner import Runner

FOR_LONG = "exec sleep 60"


class Haste:
    """The runner's `time`: it looks at its members more often."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds / 20)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder in a job of SLURM; failures are noted at once, members ended soon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(runner, "SETTLE_S", 0.0)
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "time", Haste)
    return tmp_path


def make_pack(*commands: str, processes: int = 4) -> Pack:
    jobs = [FakeJob(tomogram=f"t{number}", wanted={"bundle_processes": processes})
            for number in range(len(commands))]  # fmt: skip
    pack = Pack.of(jobs)
    pack.save(commands, [Path("logs", f"t{number}", "%j.log") for number in range(len(commands))])
    return pack


def until(test: str) -> str:
    """A command that waits for a test of the shell."""
    return f"while ! test {test}; do sleep 0.02; done"


def run(pack: Pack) -> int:
    return Runner(pack.folder).run()


def stop_when(ready: Callable[[], object], runner: Runner) -> threading.Thread:
    """SLURM ends the job as soon as something is so."""

    def stop() -> None:
        wait_until(ready)
        runner.stop(signal.SIGTERM, None)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_all_members_end_well(project: Path) -> None:
    pack = make_pack("touch a", "touch b")
    assert run(pack) == 0
    assert pack.exit_codes() == {0: 0, 1: 0}
    assert {"a", "b"} <= {path.name for path in project.iterdir()}


def test_a_member_that_fails_fails_alone() -> None:
    pack = make_pack("exit 3", "true", "kill -KILL $$", "true", processes=2)
    assert run(pack) == 1
    assert pack.exit_codes() == {0: 3, 1: 0, 2: -9, 3: 0}


def test_each_member_has_a_log(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(make_pack("echo first; echo fault >&2", "echo second"))
    assert Path("logs/t0/4711.log").read_text() == "first\nfault\n"
    assert Path("logs/t1/4711.log").read_text() == "second\n"
    told = capfd.readouterr().out
    assert "prepare_d_t0: started, log logs/t0/4711.log" in told
    assert "prepare_d_t1: ended with 0" in told
    assert "second\n" not in told


def test_what_a_restarted_job_says_is_added_to_its_log() -> None:
    Path("logs/t0").mkdir(parents=True)
    Path("logs/t0/4711.log").write_text("before\n")
    run(make_pack("echo after", "true"))
    assert Path("logs/t0/4711.log").read_text() == "before\nafter\n"


def test_a_member_alone_writes_to_the_jobs_log(capfd: pytest.CaptureFixture[str]) -> None:
    run(make_pack("echo here"))
    assert "here\n" in capfd.readouterr().out
    assert not Path("logs").exists()


def test_a_member_is_run_without_its_log(capfd: pytest.CaptureFixture[str]) -> None:
    Path("logs").mkdir()
    Path("logs/t0").touch()  # where a folder should be
    pack = make_pack("echo all the same", "true")
    assert run(pack) == 0
    told = capfd.readouterr().out
    assert "all the same" in told
    assert "prepare_d_t0: started, without a log of its own" in told


def test_as_many_at_a_time_as_the_pack_says(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(make_pack(*["true"] * 5, processes=2)) == 0
    told = capfd.readouterr().out
    steps = [1 if "started" in line else -1 for line in told.splitlines()]
    at_work = [sum(steps[: count + 1]) for count in range(len(steps))]
    assert (max(at_work), at_work[-1], len(steps)) == (2, 0, 10)


def test_members_know_their_share() -> None:
    run(make_pack("echo $TOMOLINE_SHARE $CUDA_VISIBLE_DEVICES", *["true"] * 5, processes=3))
    assert Path("logs/t0/4711.log").read_text() == "3\n"


def devices(count: int) -> list[str]:
    return [Path(f"logs/t{number}/4711.log").read_text().strip() for number in range(count)]


def test_members_are_spread_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    run(make_pack(*["echo $CUDA_VISIBLE_DEVICES"] * 4))
    assert devices(4) == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]


def test_a_gpu_that_is_free_is_taken_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    say = "echo $CUDA_VISIBLE_DEVICES"
    run(make_pack(f"{say}; {until('-e go')}", say, f"{say}; touch go", processes=2))
    assert devices(3) == ["0", "1", "1"]


@pytest.mark.parametrize(("visible", "processes"), [("0", 2), ("0,1", 1)])
def test_all_gpus_are_for_those_that_are_alone_on_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, processes: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run(make_pack(*["echo $CUDA_VISIBLE_DEVICES"] * 2, processes=processes))
    assert devices(2) == [visible, visible]


# What members say of the folder for a warm server: its place and its mode.
SAY_WARM = f'echo "$CUDA_VISIBLE_DEVICES:${VARIABLE}" $(stat -c %a "${VARIABLE}" 2>&1)'


def test_members_share_a_private_folder_which_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv(VARIABLE, "/of/another/job")
    run(make_pack(*[SAY_WARM] * 3))
    said = [text.split(":")[1].split() for text in devices(3)]
    (place,) = {place for place, _ in said}
    assert {mode for _, mode in said} == {"700"}
    assert not Path(place).exists()


@pytest.mark.parametrize("visible", [None, "", "-1", "NoDevFiles"])
def test_there_is_no_such_folder_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    monkeypatch.setenv(VARIABLE, "/of/another/job")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run(make_pack(*[f"echo .${VARIABLE}."] * 2))
    assert devices(2) == ["..", ".."]


def test_nor_where_it_is_not_wanted_or_cannot_be_made(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv(VARIABLE, "")
    run(make_pack(*[f"echo .${VARIABLE}."] * 2))
    assert devices(2) == ["..", ".."]
    monkeypatch.delenv(VARIABLE)
    with monkeypatch.context() as full:  # pytest itself needs temporary files
        full.setattr(tempfile, "tempdir", str(project / "nowhere"))
        assert run(make_pack(f"test -z ${VARIABLE}")) == 0
    assert "networks are not kept" in capfd.readouterr().out


def test_a_long_path_is_no_place_for_a_socket(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = project / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with monkeypatch.context() as place:
        place.setattr(tempfile, "tempdir", str(long))
        run(make_pack(*[SAY_WARM] * 2))
    said = devices(1)[0]
    assert len(said) < 80
    assert said.endswith("700")
    assert not list(long.iterdir())


def test_the_folder_goes_with_a_job_that_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    pack = make_pack(f"echo ${VARIABLE} > part; mv part place; {FOR_LONG}", "true")
    going = Runner(pack.folder)
    thread = stop_when(Path("place").exists, going)
    assert going.run() == 128 + signal.SIGTERM
    thread.join()
    assert not Path(Path("place").read_text().strip()).exists()


def test_the_runner_loads_no_torch() -> None:
    code = "import sys, tomoline_slurm.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("earlier", "result"), [("0", 0), ("2", 1)])
def test_a_restarted_job_goes_on_with_the_rest(earlier: str, result: int) -> None:
    pack = make_pack("touch again", "touch rest")
    (pack.folder / "0.rc").write_text(earlier)
    assert run(pack) == result
    assert pack.exit_codes() == {0: int(earlier), 1: 0}
    assert (Path("again").exists(), Path("rest").exists()) == (False, True)


def test_the_result_is_kept_though_the_driver_removes_the_pack() -> None:
    pack = make_pack("exit 1", until("! -d pack"), processes=2)
    Path("pack").symlink_to(pack.folder)

    def report() -> None:
        wait_until(pack.exit_codes)
        pack.remove()

    thread = threading.Thread(target=report)
    thread.start()
    assert run(pack) == 1
    thread.join()


def test_an_exit_code_that_finds_no_room_is_tried_again() -> None:
    # The second member makes room when the first is no zombie any more: after the first try.
    first_try = f"{until('-s pid')}; while kill -0 $(cat pid); do sleep 0.02; done"
    pack = make_pack("echo $$ > pid", f"{first_try}; rmdir pack/0.rc")
    (pack.folder / "0.rc").mkdir()
    Path("pack").symlink_to(pack.folder)
    assert run(pack) == 0
    assert pack.exit_codes() == {0: 0, 1: 0}


def test_an_exit_code_that_cannot_be_left_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "WRITE_S", 0.0)
    pack = make_pack("true", "true")
    (pack.folder / "0.rc").mkdir()
    assert run(pack) == 1
    assert "the exit code could not be left" in capfd.readouterr().out
    assert pack.exit_codes() == {1: 0}


def test_a_job_that_is_ended_leaves_no_exit_codes() -> None:
    pack = make_pack("touch begun; trap 'exit 0' TERM; sleep 60 & wait", "touch never", processes=1)
    going = Runner(pack.folder)
    thread = stop_when(Path("begun").exists, going)
    assert going.run() == 128 + signal.SIGTERM
    thread.join()
    assert pack.exit_codes() == {}
    assert not Path("never").exists()
    pack.save(["true", "touch never"], [Path("a.log"), Path("b.log")])
    assert run(pack) == 0
    assert pack.exit_codes() == {0: 0, 1: 0}


def test_a_job_that_is_ended_as_it_starts_starts_nothing() -> None:
    going = Runner(make_pack("touch never").folder)
    going.stop(signal.SIGTERM, None)
    assert going.run() == 128 + signal.SIGTERM
    assert not Path("never").exists()


def test_members_that_end_before_the_signal_comes_have_not_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "SETTLE_S", 12.0)
    pack = make_pack("exit 9", "exit 1")
    going = Runner(pack.folder)

    def seen() -> bool:
        return any(process.returncode is not None for process, _ in list(going.running.values()))

    thread = stop_when(seen, going)
    assert going.run() == 128 + signal.SIGTERM
    thread.join()
    assert pack.exit_codes() == {}


def running(folder: Path) -> list[psutil.Process]:
    """Processes that work in a folder."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        here = process.info["cwd"] == str(folder) and process.pid != os.getpid()
        if here and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_all_that_members_started_ends_with_the_job(project: Path) -> None:
    stubborn = f"trap '' TERM; ({FOR_LONG}) & touch stubborn; wait; {FOR_LONG}"
    pack = make_pack(f"sh -c '{FOR_LONG}' & touch begun; wait", stubborn)
    going = Runner(pack.folder)
    thread = stop_when(lambda: Path("begun").exists() and Path("stubborn").exists(), going)
    began = time.monotonic()
    assert going.run() == 128 + signal.SIGTERM
    assert time.monotonic() - began > runner.GRACE_S  # members may tidy up first
    thread.join()
    wait_until(lambda: not running(project))


def test_the_program(project: Path) -> None:
    pack = make_pack("cat; exit 4", "touch begun; trap 'touch asked; exit' TERM; sleep 60 & wait")
    process = subprocess.Popen(
        [sys.executable, "-m", "tomoline_slurm.runner", str(pack.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: pack.exit_codes() == {0: 4} and Path("begun").exists(), 20.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert Path("asked").exists()
    assert pack.exit_codes() == {0: 4}


def test_a_job_that_was_given_up_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "PLAN_S", 0.0)
    pack = make_pack("touch done")
    pack.remove()
    assert runner.main(str(pack.folder)) == 1
    assert "given this job up" in capsys.readouterr().out
    assert not Path("done").exists()


def test_a_share_may_show_the_pack_late(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack("true")
    hidden = pack.folder.rename("hidden")
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: hidden.rename(pack.folder))
    with monkeypatch.context() as share:
        share.setattr(runner, "time", clock)
        late = Runner(pack.folder)
    assert late.run() == 0
