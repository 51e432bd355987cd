"""Every way to install Tomoline installs what the lock pins; what cannot be built here is read."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from needed import absent
from tiny_project import make_project

from tomoline.errors import InputError
from tomoline.settings import Config, EnvmodulesSettings, validated
from tomoline.stages.project import init_project

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"
FILES = sorted(ENVS.glob("*.yaml"))
MODULEFILE = next((ENVS / "modulefiles" / "tomoline").iterdir())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Pins of requirements.lock by normal name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version for name, version in pins}


def named(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert name
    return normal(name.group())


def test_lock_pins_every_requirement_and_nothing_local() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"^-|://|@|\+", text, re.MULTILINE)
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert {named(requirement) for requirement in wanted} <= locked().keys()


def test_there_is_a_file_for_each_kind_of_job() -> None:
    assert [path.stem for path in FILES] == ["gpu", "imod", "runtime"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_environment_pins_all_that_the_package_needs_as_the_lock_does(path: Path) -> None:
    environment = yaml.safe_load(path.read_text())
    *conda, pip = environment["dependencies"]
    pins = {normal(name): version for name, version in (line.split("==") for line in pip["pip"])}
    assert pins.items() <= locked().items()
    assert {named(requirement) for requirement in PROJECT["dependencies"]} <= pins.keys()
    assert {"snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep"} <= set(
        pins
    )
    assert not {"pytest", "ruff", "mypy", "hypothesis"} & pins.keys()
    assert [name for name, _ in (line.split("=") for line in conda)] == ["python", "pip"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_pins_are_those_that_make_lock_writes(path: Path) -> None:
    renewed = runpy.run_path(str(ENVS / "renew.py"))["renewed"]
    assert path.read_text() == renewed(path.read_text()), "run `.venv/bin/python envs/renew.py`"


def pythons() -> dict[str, str]:
    """The Python that each way of installing has."""
    found = {}
    for path in FILES:
        found[path.name] = yaml.safe_load(path.read_text())["dependencies"][0].split("=")[1]
    base = re.search(r"^From: python:([\d.]+)-slim-bookworm$", definition(), re.MULTILINE)
    assert base, "the container starts from a pinned Debian with Python"
    return found | {"tomoline.def": base[1]}


def test_all_have_the_same_python_and_it_is_one_the_package_allows() -> None:
    (version,) = set(pythons().values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), "pinned to the patch release"
    least = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert least and [int(n) for n in version.split(".")[:2]] >= [int(n) for n in least.groups()]


def test_library_is_installed_from_the_repository_wherever_the_run_is(tmp_path: Path) -> None:
    scripts = {path.with_suffix(".post-deploy.sh") for path in FILES}
    assert {path.read_text() for path in scripts} == {(ENVS / "runtime.post-deploy.sh").read_text()}
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    python.chmod(0o755)
    init_project(tmp_path / "run", root=ROOT)
    path = f"{python.parent}:{os.environ['PATH']}"
    for folder in (ROOT, tmp_path / "run"):
        words = subprocess.run(
            ["bash", str(ENVS / "runtime.post-deploy.sh")],
            cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert words[:3] == ["-m", "pip", "install"]
        assert Path(words[-1]) == ROOT


# --- modules ----------------------------------------------------------------------------------


def test_modules_of_a_job_are_its_own_and_then_those_of_all() -> None:
    settings = EnvmodulesSettings(runtime=["tomoline/0.1.0"], gpu=["cuda/12.6"], imod=["imod"])
    assert settings.of("runtime") == ["tomoline/0.1.0"]
    assert settings.of("gpu") == ["cuda/12.6", "tomoline/0.1.0"]
    assert settings.of("imod") == ["imod", "tomoline/0.1.0"]
    assert [EnvmodulesSettings().of(kind) for kind in ("runtime", "gpu", "imod")] == [[], [], []]


@pytest.mark.parametrize("name", ["cuda; rm -rf ~", "$(id)", "a b", "-f", "", "a\nb"])
def test_module_name_is_no_place_for_shell_code(name: str) -> None:
    with pytest.raises(InputError, match=r"names of modules such as cuda/12\.6"):
        validated(Config, {"envmodules": {"gpu": [name]}}, source="config.yaml")


def modules(
    command: str, modulefiles: Path, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run bash with Debian's environment-modules set up and one folder of modulefiles."""
    init = Path("/usr/share/modules/init/bash")
    if not init.is_file():
        absent("environment-modules is not installed here")
    script = f'. {init}; module purge; module use "$1"; {command}'
    return subprocess.run(
        ["bash", "-c", script, "bash", str(modulefiles)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(modulefiles), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def laid_out(folder: Path, text: str) -> Path:
    """A repository with an environment, and the modulefile in its place."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    program = folder / ".venv" / "bin" / "snakemake"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    place = folder / "envs" / "modulefiles" / "tomoline" / MODULEFILE.name
    place.parent.mkdir(parents=True)
    place.write_text(text)
    return place.parents[1]


def test_modulefile_is_of_this_version() -> None:
    assert MODULEFILE.name == PROJECT["version"]
    assert f"Tomoline {PROJECT['version']}" in MODULEFILE.read_text()


def test_module_load_puts_the_environment_on_path(tmp_path: Path) -> None:
    root = tmp_path / "soft ware"
    folder = laid_out(root, MODULEFILE.read_text())
    done = modules("module load tomoline; which snakemake; echo $PYTHONNOUSERSITE; "
                   "module unload tomoline; which snakemake || echo gone", folder)  # fmt: skip
    assert done.stdout.splitlines() == [str(root / ".venv" / "bin" / "snakemake"), "1", "gone"]


def test_modulefile_kept_elsewhere_is_told_where_the_repository_is(tmp_path: Path) -> None:
    laid_out(tmp_path / "software", MODULEFILE.read_text())
    site = tmp_path / "site" / "tomoline" / MODULEFILE.name
    site.parent.mkdir(parents=True)
    site.write_text(MODULEFILE.read_text())
    refused = modules("module load tomoline || echo refused", site.parents[1])
    assert refused.stdout.splitlines() == ["refused"]
    assert f"correct `root` in {site}" in refused.stderr
    site.write_text(site.read_text().replace("set root {}", f"set root {tmp_path}/software"))
    done = modules("module load tomoline && which snakemake", site.parents[1])
    assert done.stdout.strip() == f"{tmp_path}/software/.venv/bin/snakemake"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_jobs_load_the_modules_of_their_kind_and_run_with_the_python_of_them(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path / "project", {"one": [(12, 12, 14)]})
    project.configure(envmodules={"runtime": ["site/1"], "gpu": ["cuda/12.6"], "imod": ["imod"]})
    folder = tmp_path / "modulefiles"
    for name in ("site/1", "cuda/12.6"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"#%Module1.0\nprepend-path PATH {tmp_path / name}\n")
    # A Python that says which module's programs are on PATH.
    seen = tmp_path / "seen"
    program(tmp_path / "site/1" / "python", f'echo "$PATH" >> {seen}\nexec {sys.executable} "$@"')
    target = "results/tiny/one/segment/1-of-1.h5"
    command = (
        f"{Path(sys.executable).with_name('snakemake')} --cores 2 --snakefile {ROOT}/Snakefile "
        f"--workflow-profile {ROOT}/profiles/default {target} --sdm env-modules"
    )
    done = modules(command, folder, project.folder)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"Activating environment modules: (.*)", done.stderr)
    assert set(said) == {"site/1", "cuda/12.6, site/1"}
    paths = seen.read_text().splitlines()
    assert [str(tmp_path / "cuda/12.6") in path for path in paths[::2]] == [False, False, True]


# --- container --------------------------------------------------------------------------------


def definition() -> str:
    return (ENVS / "tomoline.def").read_text()


def section(name: str) -> list[str]:
    """Lines of a section of the definition, without indent, comments and blanks."""
    found = re.search(rf"^%{name}\n((?:(?!%).*\n)*)", definition(), re.MULTILINE)
    assert found, f"tomoline.def has no %{name}"
    lines = [line.strip() for line in found[1].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_container_has_its_sections_once() -> None:
    names = re.findall(r"^%(\w+)$", definition(), re.MULTILINE)
    assert sorted(names) == sorted({*names}) == sorted(
        ["files", "post", "environment", "runscript", "test", "labels", "help"]
    )  # fmt: skip
    assert definition().count("Bootstrap: docker\n") == 1


def test_container_copies_files_that_exist_and_all_that_a_run_links_to(tmp_path: Path) -> None:
    copied = dict(line.split() for line in section("files"))
    for source, target in copied.items():
        assert (ROOT / source).exists(), source
        assert target == f"/opt/tomoline/{source}"
    # Of the repository as copied, and nothing more, a project can be made and the library be found.
    image = tmp_path / "image"
    image.mkdir()
    for source in copied:
        (image / source).symlink_to(ROOT / source)
    made = init_project(tmp_path / "run", root=image)
    links = [line.split(" -> ")[0] for line in made if " -> " in line]
    assert links == ["Snakefile", "workflow", "resources", "envs", "slurm"]
    assert {PROJECT["readme"], "pyproject.toml", "requirements.lock", "src"} <= copied.keys()


def test_container_installs_the_lock_and_nothing_beside_it() -> None:
    installs = [line for line in section("post") if "pip install" in line]
    first, second = (line.split(" install ")[1] for line in installs)
    assert first == "--no-cache-dir --requirement requirements.lock"
    assert second == "--no-cache-dir --no-deps --no-build-isolation --editable ."
    assert section("post")[0] == "set -eu"
    assert "export PYTHONNOUSERSITE=1" in section("environment")


def test_container_says_which_version_it_holds() -> None:
    labels = dict(line.split(maxsplit=1) for line in section("labels"))
    assert labels["Version"] == PROJECT["version"]
    assert labels["License"] == PROJECT["license"]["text"]


def shell(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a section's commands here, with this environment's programs first on PATH."""
    text = "\n".join(section(name))
    programs = Path(sys.executable).parent
    return subprocess.run(
        ["sh", "-c", text, "sh", *arguments],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_what_the_container_runs() -> None:
    assert shell("runscript", "snakemake", "--version").stdout.strip() == locked()["snakemake"]
    assert "usage: tomoline" in shell("runscript", "tomoline", "--help").stdout
    assert "usage: tomoline" in shell("runscript", "--help").stdout
    assert shell("runscript", "no-such-command").returncode != 0


def test_the_containers_own_test_passes_and_cleans_up(tmp_path: Path) -> None:
    done = shell("test", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_jobs_work_in_the_image_and_snakemake_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project", {"one": [(12, 12, 14)]})
    calls = tmp_path / "calls"
    # Runs here what it is told to run in the image.
    program(
        tmp_path / "bin" / "apptainer",
        f'[ "$1" = --version ] && echo "apptainer version 1.3.4" && exit\necho "$*" >> {calls}\n'
        'while [ "${1%.sif}" = "$1" ]; do shift; done\nshift\nexec "$@"',
    )
    programs = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}"
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    done = project.snakemake(
        "--sdm", "apptainer", "--apptainer-args=--nv --bind /data", "results/tiny/one/plan.json"
    )
    assert done.returncode == 0, done.stderr
    assert project.file("one", "plan.json").is_file()
    words = [line.split() for line in calls.read_text().splitlines()]
    assert len(words) == 2  # prepare and tile
    for line in words:
        assert line[:6] == ["exec", "--home", str(project.folder), "--nv", "--bind", "/data"]
        image = line.index("envs/tomoline.sif")
        assert line[image + 1 : image + 3] == ["bash", "-c"]
