"""Fixtures of the workflow's tests."""

from pathlib import Path

import pytest
from tiny_project import Project, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh project for a test."""
    return make_project(tmp_path)
