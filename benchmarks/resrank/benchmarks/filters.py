"""Dense search with filters, by the share of the passages that they keep, beside the same search without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.clustered_vectors import ClusteredVectors, clustered_vectors, nearest, recall
from resrank.benchmarks.corpora import DIMENSION, QUERIES, K, index_kinds
from resrank.benchmarks.index_sides import SidecarSide
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.study import Study
from resrank.core.filters import F
from resrank.core.metadata import MetadataValue
from resrank.core.progress import Notify

SIZE = 100_000
SHARES = (0.9, 0.5, 0.1, 0.05, 0.01, 0.001)

TARGET = 2.0
"""How much longer than without a filter a search may take with one that keeps a hundredth."""

JUDGED = 0.01

_WARM_UP = 10

Rows = NDArray[np.int64]


def run(*, size: int = SIZE, d: int = DIMENSION, notify: Notify = lambda _: None) -> Study:
    """Measures latency and recall of Flat, HNSW and IVF with filters.

    Args:
        size: Vectors.
        d: Their dimension.
        notify: Called with one line per step.

    Returns:
        One row a kind of index and filter.

    Raises:
        BenchmarkError: An index could not be built.
        StackError: The sidecar cannot be started.
    """
    vectors = clustered_vectors(size, d, QUERIES)
    places = np.random.default_rng(1).permutation(size)  # what a filter keeps is spread over all topics
    kept = {1.0: np.arange(size)} | {share: np.flatnonzero(places < share * size) for share in SHARES}
    exact = {share: _nearest_of(vectors, rows) for share, rows in kept.items()}
    found: dict[tuple[str, float], tuple[Side, float]] = {}
    for kind in index_kinds(size):
        notify(f"{size} vectors, {kind.name}: building")
        metadata: list[dict[str, MetadataValue]] = [{"place": float(place)} for place in places]
        with SidecarSide(vectors.passages, vectors.queries, kind, metadata) as sidecar:
            notify(f"{kind.name}: searching")
            spent, rows = _measure(sidecar, size)
        for share in kept:
            label = f"{kind.name}, {_kept(share)}"
            found[kind.name, share] = Side.of(label, spent[share]), recall(rows[share], exact[share])
    return Study(
        name="filters",
        title=f"Dense search with filters in the sidecar, {size:,} vectors, k = {K} with the vectors found, d = {d}",
        columns=("index", "passages kept", "p50, ms", "p95, ms", "p50 / without a filter", f"recall@{K} among them"),
        rows=tuple(
            (
                name,
                _kept(share),
                side.median,
                side.p95,
                side.median / found[name, 1.0][0].median,
                right,
            )
            for (name, share), (side, right) in found.items()
        ),
        measurements=tuple(
            Measurement(
                f"{name}, a filter that keeps {_kept(JUDGED)}",
                "ms",
                found[name, JUDGED][0],
                found[name, 1.0][0],
                Bound.AT_MOST,
                TARGET,
            )
            for name in dict.fromkeys(name for name, _ in found)
        ),
        notes=(
            "The filter is a range of a number, `place < …`, whose order has nothing to do with the vectors. All are "
            "asked in turn.",
        ),
        facts={"queries": QUERIES},
    )


def _measure(sidecar: SidecarSide, size: int) -> tuple[dict[float, list[float]], dict[float, list[Rows]]]:
    shares = (1.0, *SHARES)
    spent: dict[float, list[float]] = {share: [] for share in shares}
    rows: dict[float, list[Rows]] = {share: [] for share in shares}
    for number in range(-_WARM_UP, QUERIES):
        first = number % len(shares)
        for share in shares[first:] + shares[:first]:
            condition = None if share == 1.0 else F("place") < share * size
            took, found = sidecar.search(max(0, number), K, condition)
            if number >= 0:
                spent[share].append(took)
                rows[share].append(found)
    return spent, rows


def _nearest_of(vectors: ClusteredVectors, rows: Rows) -> Rows:
    """Int64 [q, k] of the rows that are kept, by comparing with all of them."""
    best = nearest(replace(vectors, passages=vectors.passages[rows]), min(K, len(rows)))
    return rows[best]


def _kept(share: float) -> str:
    return "all, no filter" if share == 1.0 else f"{100 * share:g} %"
