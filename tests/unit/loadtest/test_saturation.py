"""The search for the highest rate, on servers whose limit is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from resrank.core.config_file import validate
from resrank.core.errors import InvalidInputError
from resrank.loadtest.saturation import Search, find_saturation


def search(**fields: float) -> Search:
    return validate(Search, {"low": 1, "high": 256, "tolerance": 0.05, "warmup_s": 1, "probe_s": 5, **fields})


def up_to(limit: float, tried: list[float]) -> Any:
    """A server that keeps every objective up to a rate."""

    def run(rate: float) -> Any:
        tried.append(rate)
        return SimpleNamespace(kept=rate <= limit)

    return run


@pytest.mark.parametrize("limit", [1.0, 1.7, 3.0, 36.6, 100.0, 255.0])
@pytest.mark.parametrize("tolerance", [0.02, 0.05, 0.3])
def test_the_rate_found_is_within_the_tolerance_in_no_more_probes_than_announced(
    limit: float, tolerance: float
) -> None:
    asked, tried = search(tolerance=tolerance), []
    found = find_saturation(asked, up_to(limit, tried))
    assert found.rate is not None
    assert found.missed is not None
    assert found.rate <= limit < found.missed <= found.rate * (1 + tolerance)
    assert [probe.rate for probe in found.probes] == tried
    assert len(tried) <= asked.most_probes


def test_a_server_below_the_lowest_rate_and_one_above_the_highest() -> None:
    tried: list[float] = []
    found = find_saturation(search(), up_to(0.5, tried))
    assert (found.rate, found.missed, tried) == (None, 1, [1])
    tried.clear()
    found = find_saturation(search(high=100), up_to(1e9, tried))
    assert (found.rate, found.missed) == (100, None)
    assert tried == [1, 2, 4, 8, 16, 32, 64, 100]
    assert len(tried) <= search(high=100).most_probes


def test_a_probe_lasts_until_it_has_calls_enough_but_not_for_ever() -> None:
    asked = search(probe_s=10)
    assert [asked.probe_seconds(rate) for rate in (200, 20, 10, 1)] == [10, 10, 20, 40]
    assert asked.longest_s(2) == asked.most_probes * (1 + 40 + 2)


def test_a_search_that_cannot_be() -> None:
    with pytest.raises(InvalidInputError, match="low: 9 is above high, 3"):
        search(low=9, high=3)
    with pytest.raises(InvalidInputError, match=r"tolerance: must be greater than or equal to 0\.01"):
        search(tolerance=0)
