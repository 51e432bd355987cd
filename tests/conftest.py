"""What every test may ask for."""

import os
from pathlib import Path
from typing import Any

import pytest
from needed import absent
from xdist.scheduler import LoadScopeScheduling

# No test needs a GPU: Triton's kernels run in its interpreter, which has to be chosen before
# anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
# What takes longest begins first, so that two processes that share the tests end together.
FIRST = ("slurm", "workflow", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: what takes longest first."""
    rooms = [item.path.relative_to(REPOSITORY / "tests").parts[0] for item in items]
    rank = {name: k for k, name in enumerate(FIRST)}
    order = sorted(range(len(items)), key=lambda k: rank.get(rooms[k], len(FIRST)))
    items[:] = [items[k] for k in order]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep together what shares a cluster or a run (`pytest --numprocesses`)."""
    return Rooms(config, log)


class Rooms(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process a whole file, as a module's fixtures may be runs of the workflow.

    All of tests/slurm shares one cluster, so one process has it all. (xdist's groups do not work
    with pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path: str = nodeid.split("::", maxsplit=1)[0]
        return "tests/slurm" if path.startswith("tests/slurm/") else path


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data, `../shared/data` beside the repository (never trained on, not shipped).

    Where the folder is absent the test is skipped, except in CI, which has it: there it fails.
    """
    folder = REPOSITORY.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    absent(f"the evaluation data are not here ({folder})")
