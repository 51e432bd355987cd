"""What a test needs and a machine may lack: without it the test is skipped, in CI it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def in_ci() -> bool:
    """Whether this is continuous integration, which installs all that the tests need."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def absent(what: str) -> NoReturn:
    """Skip the test for want of something; in CI fail it."""
    if in_ci():
        pytest.fail(f"{what}, and CI must run this test")
    pytest.skip(what)
