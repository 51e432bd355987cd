"""What every test may ask for."""

import os
from pathlib import Path

import pytest
from needed import absent

# No test needs a GPU: Triton's kernels run in its interpreter, which has to be chosen before
# anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


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
