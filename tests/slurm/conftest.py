"""One real SLURM for all tests of this folder, and where they are left out.

In CI (CI=true) they always run, and fail where SLURM is not installed. Elsewhere they are left out
of a run of all tests where the cluster cannot be started, and fail where they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, missing
from facility import Facility
from needed import in_ci

HERE = Path(__file__).parent
LEFT_OUT = pytest.StashKey[str]()


def required(config: pytest.Config) -> bool:
    """Whether these tests have to run here: in CI, or where this folder was named."""
    named = (Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args)
    asked = any(path.resolve().is_relative_to(HERE) for path in named)
    return asked or in_ci()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out of a run of all tests where they cannot work."""
    own = [item for item in items if item.path.is_relative_to(HERE)]
    reason = missing()
    if own and reason and not required(config):
        config.stash[LEFT_OUT] = f"tests/slurm: {len(own)} tests left out: {reason}"
        config.hook.pytest_deselected(items=own)
        items[:] = [item for item in items if item not in own]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say at the end what was left out."""
    if line := config.stash.get(LEFT_OUT, ""):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of two CPU nodes and two GPU nodes, with accounting."""
    started, reason = None, ""
    try:
        started = Cluster.start()
    except ClusterError as error:
        reason = str(error)
    if started is None:
        pytest.fail(reason, pytrace=False)
    with pytest.MonkeyPatch.context() as patch:
        # Also for programs that tests start without more ado, such as `tomoline status`.
        for name, value in started.environment.items():
            patch.setenv(name, value)
        yield started
    started.stop()


@pytest.fixture(scope="module")
def facility(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """The cluster with an empty folder for a project; at its end nothing of it runs any more."""
    facility = Facility(cluster, tmp_path_factory.mktemp("project"))
    yield facility
    facility.end()
