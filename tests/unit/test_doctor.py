"""The doctor says what is there, what is not, and never falls over."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from tiny_project import make_project, save_whole_network

from tomoline.stages import doctor
from tomoline.stages.doctor import Check, checks_json, examine, exit_code, format_checks

IMOD = ("trimvol", "binvol", "newstack", "point2model")


def named(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but the shell's."""
    folder = tmp_path / "imod" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("IMOD_DIR", raising=False)
    return folder


def program(folder: Path, name: str, text: str = "exit 0") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_this_machine_is_described(tmp_path: Path) -> None:
    checks = examine(tmp_path)
    names = [check.name for check in checks]
    assert {"python", "torch", "GPU", "bfloat16", "SLURM", "IMOD", "memory", "disk"} <= set(names)
    assert named(checks, "python").state == "ok"
    assert named(checks, "torch").state == "ok"
    assert "GiB free" in named(checks, "memory").found
    assert str(tmp_path) in named(checks, "disk").found
    for check in checks:
        assert check.state == "ok" or check.consequence or check.remedy or check.found


def test_missing_weights_are_broken_and_say_where(tmp_path: Path) -> None:
    checks = examine(tmp_path)
    assert named(checks, "localizer").state == "broken"
    assert "msdnet-localizer" in named(checks, "localizer").found
    assert exit_code(checks) == 1
    assert "cannot run here: mend localizer, classifier" in format_checks(checks)
    assert json.loads(checks_json(checks))["works"] is False


def test_a_classifier_that_was_not_fitted_to_the_localizer_is_weak(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    assert "sift" not in [check.name for check in examine(project.folder)]
    save_whole_network(project.folder / "models" / "dsmnet-classifier", ["background", "ball"])
    (check,) = [check for check in examine(project.folder) if check.name == "sift"]
    assert check.state == "weak"
    assert "tomoline calibrate msdnet-localizer dsmnet-classifier" in check.found


def test_only_what_is_broken_counts() -> None:
    states = ("ok", "absent", "weak")
    checks = [Check(name=state, state=state, found="x") for state in states]
    assert exit_code(checks) == 0
    assert "can run here" in format_checks(checks)


def test_bad_config_is_broken(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("models: {localiser: x}\n")
    check = named(examine(tmp_path), "config")
    assert check.state == "broken"
    assert "localizer" in check.found


def test_results_that_cannot_be_written_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    check = named(examine(tmp_path), "results")
    assert (check.state, exit_code([check])) == ("broken", 1)
    assert "Permission denied" in check.found


def test_little_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=2**29)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    assert named(examine(tmp_path), "memory").state == "weak"


def test_missing_package_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "cc3d" else find(name))
    check = named(examine(tmp_path), "packages")
    assert check.state == "broken"
    assert check.remedy == "pip install connected-components-3d"


def test_imod_and_its_version(tmp_path: Path, programs: Path) -> None:
    assert named(examine(tmp_path), "IMOD").state == "absent"
    for name in IMOD[:-1]:
        program(programs, name)
    missing = named(examine(tmp_path), "IMOD")
    assert missing.state == "absent"
    assert "point2model" in missing.found
    assert "source its IMOD-linux.sh" in missing.remedy
    program(programs, IMOD[-1])
    (programs.parent / "VERSION").write_text("4.11.25\n")
    check = named(examine(tmp_path), "IMOD")
    assert check.state == "ok"
    assert check.found.startswith("4.11.25")


def test_slurm_and_its_partitions(tmp_path: Path, programs: Path) -> None:
    program(programs, "sbatch", "echo slurm 22.05.8")
    program(programs, "sinfo", "printf 'cpu:4:(null)\\ngpu:2:gpu:h100:2\\n'")
    check = named(examine(tmp_path), "SLURM")
    assert check.state == "ok"
    assert check.found == "slurm 22.05.8; cpu (4 nodes), gpu (2 nodes, gpu:h100:2)"
    program(programs, "sinfo", "exit 1")
    check = named(examine(tmp_path), "SLURM")
    assert check.state == "weak"
    assert "does not answer" in check.found


def test_gpu_that_torch_cannot_use_is_told(tmp_path: Path, programs: Path) -> None:
    checks = examine(tmp_path)
    if named(checks, "GPU").state == "ok":  # this machine's torch has one: nothing to pretend
        return
    program(programs, "nvidia-smi", "echo 'Made Up 9000, 8 MiB'")
    check = named(examine(tmp_path), "GPU")
    assert check.state == "weak"
    assert "Made Up 9000" in check.found
