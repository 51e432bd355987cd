"""`tomoline init`: a folder of one's own to run the workflow in, without touching its code."""

from __future__ import annotations

import shutil
from pathlib import Path

import tomoline
from tomoline.errors import InputError

# What is the user's to edit is copied, what is the program's is linked: an update reaches all
# projects, and paths such as resources/models mean the same in each of them.
COPIED = ("config", "profiles")
LINKED = ("Snakefile", "workflow", "resources", "envs")


def workflow_root() -> Path:
    """Return the folder that holds Snakefile, config and profiles.

    Raises
    ------
    InputError
        Where only the library was installed, without the workflow around it.
    """
    root = Path(tomoline.__file__).resolve().parents[2]
    if not (root / "Snakefile").is_file():
        raise InputError(
            root,
            expected="the workflow's Snakefile beside the library",
            found="none; only the library is installed",
            remedy="clone the repository and install it with `pip install -e .`",
        )
    return root


def init_project(folder: str | Path, *, root: Path | None = None) -> list[str]:
    """Make `folder` a project; returns what was made. What is there already is left alone.

    Raises
    ------
    InputError
        The workflow cannot be found, or `folder` is the repository itself or cannot be written.
    """
    root = workflow_root() if root is None else root
    target = Path(folder).resolve()
    if target == root.resolve():
        raise InputError(
            folder,
            expected="a folder of your own",
            found="the workflow's own repository, which is a project already",
            remedy="use it as it is, or name another folder: tomoline init FOLDER",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        return _copy(root, target) + _link(root, target)
    except OSError as error:
        raise InputError(
            folder,
            expected="a folder that can be written",
            found=f"{error.strerror} ({error.filename})",
            remedy="choose another folder",
        ) from error


def _copy(root: Path, target: Path) -> list[str]:
    made = []
    for name in COPIED:
        for source in sorted((root / name).rglob("*")):
            copy = target / source.relative_to(root)
            if source.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                made.append(copy.relative_to(target).as_posix())
    return made


def _link(root: Path, target: Path) -> list[str]:
    made = []
    for name in LINKED:
        link = target / name
        if (root / name).exists() and not link.exists() and not link.is_symlink():
            link.symlink_to(root.resolve() / name)
            made.append(f"{name} -> {root / name}")
    slurm = target / "slurm"  # so that `snakemake --profile slurm` finds the project's own copy
    if (target / "profiles" / "slurm").is_dir() and not slurm.is_symlink():
        slurm.symlink_to("profiles/slurm")
        made.append("slurm -> profiles/slurm")
    return made
