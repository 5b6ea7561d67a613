"""A real Triton for the tests that need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resrank.stack.triton_process import TritonProcess

StartTriton = Callable[..., TritonProcess]


@pytest.fixture(scope="session", autouse=True)
def no_graph_is_traced_twice(shared_traces: None) -> None:
    """No graph is traced twice."""


@pytest.fixture(scope="session")
def start_triton() -> Iterator[StartTriton]:
    """``start_triton(repository, **options)`` returns a ready :class:`TritonProcess`, stopped when the session ends."""
    with ExitStack() as servers:

        def start(repository: Path, **options: Any) -> TritonProcess:
            return servers.enter_context(TritonProcess(repository, **options))

        yield start
