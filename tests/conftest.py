"""Marks every test by the folder it stands in, keeps long ones for ``--full``, makes property tests repeatable."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

# As in the Makefile: what one process compiled, the servers and commands of all tests import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

# Shared machines stall for longer than hypothesis allows an example, so time is no failure here. In CI the examples
# are the same in every run: a red build must be red again when somebody looks into it.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full, which `make test` leaves out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])
    if not config.getoption("full"):
        full = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in full]
        config.hook.pytest_deselected(items=full)


@pytest.fixture(autouse=True)
def log_set_up_anew() -> Iterator[None]:
    """What a command called in a test's own process sets up of that process's log ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers).difference(handlers):
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def shared_traces(pytestconfig: pytest.Config) -> Iterator[None]:
    """One tracing for each graph; see :mod:`support.shared_traces`."""
    if pytestconfig.getoption("full"):
        yield
        return
    from support.shared_traces import share_traces

    with pytest.MonkeyPatch.context() as patch:
        share_traces(patch.setattr)
        yield
