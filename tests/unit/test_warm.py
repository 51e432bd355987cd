"""Stages handed to a process that keeps networks: same results, and nothing lost with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from fake_slurm import wait_until
from tiny_project import balls, save_threshold_network

from tomoline import infer, warm
from tomoline.errors import InputError
from tomoline.infer import make_runner
from tomoline.io.mrc import write_volume
from tomoline.io.subtomograms import write_subtomograms
from tomoline.io.warm_folder import VARIABLE, socket_path, warm_folder
from tomoline.networks.cards import load_card
from tomoline.ops.tiles import plan_tiles
from tomoline.settings import SegmentSettings
from tomoline.stages import Failure, execute, served

KEPT = "is kept from an earlier tomogram"
NOT_USED = "the process that keeps networks is not used"
LONG_S = 120.0


@pytest.fixture(autouse=True)
def modest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers leave the processors to others."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a prepared volume, its plan, and subtomograms of it."""
    folder = tmp_path_factory.mktemp("data")
    save_threshold_network(folder / "localizer", "localizer", ["background", "particle"])
    save_threshold_network(folder / "classifier", "classifier", ["background", "ball"])
    volume = 10.0 * balls([(20, 20, 20)], seed=1)
    write_volume(folder / "prepared.mrc", volume, 10.0)
    plan_tiles(volume.shape, size_vox=48, halo_vox=4).save(folder / "plan.json")
    boxes = [volume[12:28, 12:28, k : k + 16] for k in (10, 12)]
    write_subtomograms(
        folder / "boxes.h5", boxes, candidate_id=np.arange(2),
        centre_zyx=np.array([[20, 20, 18], [20, 20, 20]]), box_vox=16, voxel_size_angstrom=10.0,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder in which what a killed server has left lies; its server is the tests' own."""
    with warm_folder() as folder:
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(socket_path(folder)))
        left.close()
        yield folder
    assert not folder.exists()
    assert not servers(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder without a server."""
    with warm_folder() as folder:
        yield folder


def servers(folder: Path) -> list[psutil.Process]:
    """The servers of a folder that are at work."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and "tomoline.warm" in words and str(folder) in words[-1]:
            found.append(process)
    return found


def segment(data: Path, place: Path, **changed: Any) -> dict[str, Any]:
    """The arguments for `execute`; what is made goes to `place`."""
    inputs = {"volume": data / "prepared.mrc", "plan": data / "plan.json",
              "card": data / "localizer" / "card.yaml"}  # fmt: skip
    return {
        "stage": "segment",
        "inputs": {key: str(changed.get(key, path)) for key, path in inputs.items()},
        "outputs": {"probability": str(place / "probability.h5")},
        "settings": {"kernel": "plain", "precision": "float32"},
        "params": {"shard": changed.get("shard", "1-of-1")},
        "log": place / "segment.log",
    }


def classify(data: Path, place: Path) -> dict[str, Any]:
    return {
        "stage": "classify",
        "inputs": {"subtomograms": str(data / "boxes.h5"), "card": str(data / "classifier")},
        "outputs": {"classes": str(place / "classes.h5")},
        "settings": {"kernel": "plain", "precision": "float32"},
        "log": place / "classify.log",
    }


def failed(arguments: dict[str, Any]) -> tuple[object, str]:
    """How a stage fails: the exit status, and its log without times."""
    with pytest.raises(SystemExit) as ended:
        execute(**arguments)
    lines = Path(arguments["log"]).read_text().splitlines()
    return ended.value.code, lines[-1].partition(" ERROR ")[2]


class Held:
    """A file for a stage to read, which keeps it waiting."""

    def __init__(self, path: Path) -> None:
        self.path, self.writer = path, -1
        os.mkfifo(path)

    def wait(self) -> None:
        """Wait until a process is reading."""
        wait_until(self._is_read, LONG_S)

    def _is_read(self) -> bool:
        with contextlib.suppress(OSError):
            self.writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        return self.writer >= 0

    def release(self, data: bytes) -> None:
        """Let whoever reads it from now on read this."""
        whole = self.path.with_name("whole")
        whole.write_bytes(data)
        whole.replace(self.path)


def in_background(arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A client of its own, as a rule's script is one; at its end it says what it has imported."""
    text = json.dumps(arguments, default=str)
    code = f"""
import json, sys
from tomoline.stages import execute
execute(**json.loads({text!r}))
print("torch" in sys.modules, "tomoline.stages.segment" in sys.modules, flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("stage", [segment, classify])
def test_results_are_those_of_the_plain_process_and_the_network_is_kept(
    data: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    execute(**stage(data, tmp_path / "plain"))
    monkeypatch.setenv(VARIABLE, str(shared))
    for name in ("first", "second"):
        execute(**stage(data, tmp_path / name))
    results = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/*.h5")}
    assert results["first"] == results["second"] == results["plain"]
    logs = {path.parent.name: path.read_text() for path in tmp_path.glob("*/*.log")}
    assert [KEPT in logs[name] for name in ("plain", "first", "second")] == [False, False, True]
    assert NOT_USED not in "".join(logs.values())
    assert all(text.splitlines()[-1].endswith(f"finished {stage.__name__}")
               for text in logs.values())  # fmt: skip
    assert len(servers(shared)) == 1


@pytest.mark.parametrize(
    "wrong", [{"plan": "nowhere.json"}, {"card": "nowhere"}, {"shard": "nonsense"}]
)
def test_a_stage_fails_as_in_a_process_of_its_own(
    data: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], wrong: dict[str, str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # paths of the request are relative to where the client is
    plain = failed(segment(data, tmp_path / "plain", **wrong))
    monkeypatch.setenv(VARIABLE, str(shared))
    capsys.readouterr()
    assert failed(segment(data, Path("served"), **wrong)) == plain == (1, plain[1])
    log = Path("served/segment.log").read_text()
    assert capsys.readouterr().err == log
    execute(**segment(data, tmp_path / "again"))  # the server goes on
    assert len(servers(shared)) == 1


def test_who_waits_loads_no_torch_and_its_output_is_the_log(
    data: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(VARIABLE, str(shared))
    client = in_background(segment(data, tmp_path))
    assert client.communicate(timeout=LONG_S)[0] == b"False False\n"
    assert capfd.readouterr().err == (tmp_path / "segment.log").read_text()


def test_a_server_that_is_killed_at_work_is_not_needed(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    plan = Held(tmp_path / "plan.json")

    def disturb() -> None:
        plan.wait()
        plan.release((data / "plan.json").read_bytes())
        (server,) = servers(folder)
        server.kill()

    thread = threading.Thread(target=disturb)
    thread.start()
    execute(**segment(data, tmp_path, plan=plan.path))
    thread.join(LONG_S)
    os.close(plan.writer)
    log = (tmp_path / "segment.log").read_text()
    assert (log.count("WARNING"), log.count(NOT_USED)) == (1, 1)
    assert log.endswith("finished segment\n")


def test_a_client_that_is_ended_leaves_no_work_behind_and_others_are_served(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    plan = Held(tmp_path / "plan.json")
    ended = in_background(segment(data, tmp_path / "ended", plan=plan.path))
    plan.wait()
    (first,) = servers(folder)
    log = tmp_path / "waiting" / "segment.log"
    waiting = in_background(segment(data, log.parent))
    wait_until(log.exists, LONG_S)
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(LONG_S) == -signal.SIGTERM
    assert waiting.wait(LONG_S) == 0
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert NOT_USED not in log.read_text()
    os.close(plan.writer)
    for client in (ended, waiting):
        client.communicate()


def test_where_no_server_can_be_started_the_stage_runs_by_itself(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(served, "START_S", 0.2)
    for name, text in (("broken", "echo no such module >&2; exit 3"), ("slow", "exec sleep 60")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        execute(**segment(data, tmp_path))
        log = (tmp_path / "segment.log").read_text()
        assert log.count(NOT_USED) == log.count("WARNING") == 1
        assert log.endswith("finished segment\n")
        assert {"broken": "ended with 3 as it started: no such module",
                "slow": "not ready within"}[name] in log  # fmt: skip


def test_a_folder_that_others_could_enter_is_not_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    tmp_path.chmod(0o755)
    execute(**segment(data, tmp_path))
    assert "not a folder of this user alone" in (tmp_path / "segment.log").read_text()


@pytest.mark.parametrize("nonsense", [b"hello\n", b"[]\n", b'{"failed": ""}\n', b""])
def test_nonsense_is_no_answer(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: bytes
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(folder)))
        listener.listen()

        def talk() -> None:
            for _ in range(1 if nonsense else served.TRIES):
                connection, _ = listener.accept()
                with connection:
                    served.receive(connection)
                    connection.sendall(nonsense)

        thread = threading.Thread(target=talk)
        thread.start()
        execute(**segment(data, tmp_path))
        thread.join(LONG_S)
    log = (tmp_path / "segment.log").read_text()
    assert log.count(NOT_USED) == 1
    assert log.endswith("finished segment\n")


def test_the_processor_is_used_by_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/somewhere")
    assert served.folder_for("segment", {}) == Path("/somewhere")
    assert served.folder_for("segment", {"device": "cpu"}) is None
    assert served.folder_for("cluster", {}) is None
    monkeypatch.setenv(VARIABLE, "")
    assert served.folder_for("segment", {}) is None


# -- when a server ends -------------------------------------------------------------------------


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A server that listens."""
    process = subprocess.Popen([sys.executable, "-m", "tomoline.warm", str(socket_path(folder))])
    wait_until(socket_path(folder).exists, LONG_S)
    return process


def test_a_server_ends_with_its_folder_or_when_asked(folder: Path) -> None:
    process = start(folder)
    process.terminate()
    assert process.wait(LONG_S) == -signal.SIGTERM
    socket_path(folder).unlink()
    process = start(folder)
    shutil.rmtree(folder)
    assert process.wait(LONG_S) == 0


def test_a_server_ends_with_a_runner_that_was_killed_and_clears_up() -> None:
    code = """
from tomoline.io.warm_folder import warm_folder
with warm_folder() as folder:
    print(folder, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout is not None
        folder = Path(runner.stdout.readline().strip())
        process = start(folder)
        runner.kill()
    assert process.wait(LONG_S) == 0
    assert not folder.exists()


def test_another_installation_is_not_served(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm.main(str(folder / "other.socket")) == 1
    assert "another installation" in capsys.readouterr().err


@pytest.fixture
def listener(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """For a server in this process."""
    monkeypatch.setattr(infer, "KEPT", None)
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(folder)))
        listener.listen()
        yield listener


def test_a_server_that_is_idle_ends(
    folder: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "IDLE_S", 0.1)
    warm.Server(listener, folder).serve()


def gpu_fails() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("late", [False, True])
def test_a_server_whose_gpu_fails_answers_and_ends(
    folder: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """At once, or when all is said and done and memory is given back."""
    import torch  # noqa: PLC0415

    cause = RuntimeError("CUDA error: device-side assert triggered")
    failure = None if late else Failure(InputError("a", expected="b", found="c", remedy="d"), True)
    if failure is not None:
        failure.error.__cause__ = cause
    monkeypatch.setattr(warm, "attempt", lambda **_: failure)
    cuda = SimpleNamespace(
        is_initialized=lambda: late, synchronize=gpu_fails, is_available=lambda: False
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    server = threading.Thread(target=warm.Server(listener, folder).serve)
    server.start()
    answer = served.hand_over(folder, {"stage": "segment", "log": None})
    assert answer == (failure.text if failure else "", True)
    server.join(LONG_S)
    assert not server.is_alive()


# -- networks that are kept ---------------------------------------------------------------------

PLAIN = SegmentSettings(kernel="plain", precision="float32")


def test_an_ordinary_process_keeps_no_network(data: Path) -> None:
    networks = [make_runner(data / "localizer", PLAIN).network for _ in range(2)]
    assert infer.KEPT is None
    assert networks[0] is not networks[1]


def test_a_network_is_kept_as_long_as_nothing_of_it_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "KEPT", {})
    model = shutil.copytree(data / "localizer", tmp_path / "model")
    first = make_runner(model, PLAIN)
    flipped = make_runner(model / "card.yaml", PLAIN.model_copy(update={"test_time_flips": 8}))
    assert flipped.network is first.network
    assert (first.flips, flipped.flips) == (4, 8)
    card = load_card(model).model_copy(update={"threshold": 0.25})
    (model / "card.yaml").write_text(card.model_dump_json())
    assert make_runner(model, PLAIN).card.threshold == 0.25
    assert (
        make_runner(model, PLAIN.model_copy(update={"precision": "bfloat16"})).dtype.itemsize == 2
    )
    with (model / "weights.safetensors").open("ab") as file:
        file.write(b"damage")
    with pytest.raises(InputError, match="SHA-256"):
        make_runner(model, PLAIN)


def test_few_networks_are_kept_those_used_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "KEPT", {})
    models = [shutil.copytree(data / "localizer", tmp_path / str(n)) for n in range(5)]
    first, second = (make_runner(model, PLAIN).network for model in models[:2])
    for model in [*models[2:4], models[0], models[4]]:
        make_runner(model, PLAIN)
    assert make_runner(models[0], PLAIN).network is first
    assert make_runner(models[1], PLAIN).network is not second


def test_a_network_whose_kernel_failed_its_trial_is_tried_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "KEPT", {})
    found = iter(["plain", "triton", "never"])
    monkeypatch.setattr(infer, "speed_up", lambda *_: next(found))
    settings = SegmentSettings(precision="float32")
    kernels = [make_runner(data / "localizer", settings).kernel for _ in range(3)]
    assert kernels == ["plain", "triton", "triton"]
