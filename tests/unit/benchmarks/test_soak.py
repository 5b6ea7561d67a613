from __future__ import annotations

import pytest

from resrank.benchmarks.resources import SERVER, SIDECAR, Sample
from resrank.benchmarks.soak import soak_study


def samples(growth_mb_per_min: float = 0.0, descriptors: int = 40, leaked: int = 0) -> list[Sample]:
    """Ten minutes, the first two and a half of them with a steep rise that belongs to the warm-up."""
    made = []
    for number in range(41):
        minutes = number / 4
        warm_up = 50 * min(minutes, 2.5)
        stub = 900 + warm_up + growth_mb_per_min * minutes
        open_files = descriptors + (leaked if minutes > 5 else 0)
        made.append(
            Sample(
                60 * minutes,
                {SERVER: 200.0, "stub: encoder": stub, "stub: reranker": 700.0, SIDECAR: 150.0},
                {SERVER: 250.0, "stub: encoder": stub, "stub: reranker": 750.0, SIDECAR: 160.0},
                {SERVER: open_files, "stub: encoder": 10, "stub: reranker": 10, SIDECAR: 20},
                12,
                12.5,
            )
        )
    return made


def test_what_is_flat_after_the_warm_up_passes() -> None:
    study = soak_study(samples(growth_mb_per_min=0.4), {"rerank": 5}, {})
    assert study.passed
    assert study.measurements[0].measured.median == pytest.approx(0.4)
    groups = {row[0]: row[1:] for row in study.rows}
    assert groups["stubs"][1] == pytest.approx(900 + 125 + 4 + 700)
    assert groups[SERVER][4:] == (40, 40)


@pytest.mark.parametrize(("grown", "failing"), [({"growth_mb_per_min": 1.5}, 0), ({"leaked": 3}, 1)])
def test_growth_of_memory_or_of_descriptors_fails(grown: dict[str, float], failing: int) -> None:
    study = soak_study(samples(**grown), {"rerank": 5}, {})
    assert [measurement.passed for measurement in study.measurements].index(False) == failing
