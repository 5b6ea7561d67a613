"""Searches beside an index build: what happens when there is none."""

from __future__ import annotations

import sys
import time

import pytest

from resrank.benchmarks import priority
from resrank.benchmarks.measurement import BenchmarkError


def test_a_build_that_fails_ends_the_wait_for_it() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no space left')"]
    with pytest.raises(BenchmarkError, match="could not be built: no space left"), priority._building(command) as check:
        priority._wait_until_it_encodes(lambda: 0, check)


def test_a_build_that_never_encodes_ends_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "_BEGINS_S", 0.5)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.monotonic()
    with pytest.raises(BenchmarkError, match="encoded nothing"), priority._building(command) as check:
        priority._wait_until_it_encodes(lambda: 0, check)
    assert time.monotonic() - began < 30


def test_a_build_that_encodes_is_not_waited_for() -> None:
    encoded = iter((3, 3, 4))
    with priority._building([sys.executable, "-c", ""]) as check:
        priority._wait_until_it_encodes(lambda: next(encoded), check)
    assert list(encoded) == []
