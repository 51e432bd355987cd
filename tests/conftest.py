"""What every test may ask for."""

import os
from pathlib import Path

import pytest
from needed import absent

# No test needs a GPU: Triton's kernels run in its interpreter, which has to be chosen before
# anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
# What takes longest begins first, so that two processes that share the tests end together.
FIRST = ("slurm", "workflow", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and keep together what shares a cluster or a run (`pytest -n`).

    A file's tests share the fixtures of its module, which may be whole runs of the workflow; those
    of tests/slurm all share one cluster.
    """

    def rank(item: pytest.Item) -> int:
        room = room_of(item)
        return FIRST.index(room) if room in FIRST else len(FIRST)

    items.sort(key=rank)
    for item in items:
        room = room_of(item)
        group = room if room == "slurm" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def room_of(item: pytest.Item) -> str:
    """The folder of tests/ that a test is in."""
    return item.path.relative_to(REPOSITORY / "tests").parts[0]


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
