"""Dense search by corpus size and kind of index: the sidecar, FAISS in one process, milvus-lite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.clustered_vectors import ClusteredVectors, clustered_vectors, nearest, recall
from resrank.benchmarks.index_sides import ChildSide, IndexKind, IndexSide, SidecarSide
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.memory_read import read_ms
from resrank.benchmarks.study import Plot, Series, Study
from resrank.core.progress import Notify
from resrank.stack.machine import usable_cores

SIZES = (10_000, 100_000)
FULL_SIZE = 1_000_000
DIMENSION = 384
K = 100
QUERIES = 200

SIDECAR, FAISS, MILVUS = "sidecar, gRPC", "FAISS in one process", "milvus-lite"
LIMIT = "limit of Flat: reading the vectors once"

Rows = NDArray[np.int64]

TARGET = 2.0
"""How much slower than FAISS in one process a sidecar's quick indexes may be."""

JUDGED = 100_000

_BYTES_OF_A_NUMBER = 2
_WARM_UP = 10
_LISTS = {10_000: 100, 100_000: 400, 1_000_000: 1600}  # about four to the square root of the size, and less at the top
_PROBES = 16
_MILVUS_BOUND = 100_000  # it inserts some thousand vectors a second


def run(
    *, full: bool = False, sizes: tuple[int, ...] = SIZES, d: int = DIMENSION, notify: Notify = lambda _: None
) -> Study:
    """Measures latency, recall, memory and build time of Flat, HNSW and IVF.

    Args:
        full: Whether to add a million vectors, which takes half an hour and some GB.
        sizes: Vectors in each corpus.
        d: Their dimension.
        notify: Called with one line per step.

    Returns:
        One row a corpus, kind and side.

    Raises:
        BenchmarkError: An index could not be built.
        StackError: The sidecar cannot be started.
    """
    found: dict[tuple[int, str, str], tuple[Side, float, float, float]] = {}
    limits: dict[int, Side] = {}
    for size in (*sizes, FULL_SIZE) if full else sizes:
        notify(f"drawing {size} vectors")
        vectors = clustered_vectors(size, d, QUERIES)
        exact = nearest(vectors, K)
        kinds = index_kinds(size)
        limits[size] = read_ms(LIMIT, size * d * _BYTES_OF_A_NUMBER, usable_cores())
        with ChildSide("faiss", vectors.passages, vectors.queries, kinds) as faiss:
            for kind in kinds:
                notify(f"{size} vectors, {kind.name}: building")
                faiss.build(kind)
                with SidecarSide(vectors.passages, vectors.queries, kind) as sidecar:
                    for label, figures in _measure({SIDECAR: sidecar, FAISS: faiss}, vectors, exact).items():
                        found[size, kind.name, label] = figures
        if size <= _MILVUS_BOUND:
            notify(f"{size} vectors: filling milvus-lite")
            with ChildSide("milvus", vectors.passages, vectors.queries, kinds) as milvus:
                for kind in kinds:
                    notify(f"{size} vectors, {kind.name}: milvus-lite")
                    milvus.build(kind)
                    found[size, kind.name, MILVUS] = _measure({MILVUS: milvus}, vectors, exact)[MILVUS]
    return Study(
        name="corpora",
        title=f"Dense search, k = {K} with the vectors found, d = {d}, one query at a time",
        columns=("vectors", "index", "side", "p50, ms", "p95, ms", f"recall@{K}", "resident, MB", "build, s"),
        rows=(
            *(
                (f"{size:,}", name, label, side.median, side.p95, share, memory, build)
                for (size, name, label), (side, share, memory, build) in found.items()
            ),
            *((f"{size:,}", "Flat", LIMIT, side.median, side.p95, "–", "–", "–") for size, side in limits.items()),
        ),
        measurements=tuple(
            Measurement(
                f"{name}, {size:,} vectors",
                "ms",
                found[size, name, SIDECAR][0],
                found[size, name, FAISS][0],
                Bound.AT_MOST,
                TARGET,
            )
            for size, name, label in found
            if label == SIDECAR and size == JUDGED and name != "Flat"
        ),
        plots=(_plot(found, limits),),
        notes=(
            "Vectors are drawn: fields on the sphere, 20 topics around each (deviation 0.8), 50 passages around each "
            "topic (deviation 0.8), queries as passages. Plain Gaussian noise has no neighbours to find.",
            "Build is from vectors in memory to an index that answers; the sidecar's and milvus-lite's include durable "
            f"storage. HNSW32 searches with efSearch 128, IVF with nprobe {_PROBES}.",
            "Sidecar and FAISS are asked in turn; milvus-lite, whose server is threads of its client's process, "
            f"afterwards, and with no more than {_MILVUS_BOUND:,} vectors.",
            "The limit is the time in which all cores read as many bytes as the vectors have in fp16.",
        ),
        facts={"queries": QUERIES},
    )


def index_kinds(size: int) -> tuple[IndexKind, ...]:
    """Flat, HNSW and IVF as they suit a corpus of a size."""
    lists = next((lists for bound, lists in _LISTS.items() if size <= bound), max(_LISTS.values()))
    return (
        IndexKind("Flat", "Flat", "", "FLAT", {}, {}),
        IndexKind("HNSW", "HNSW32", "efSearch=128", "HNSW", {"M": 32, "efConstruction": 40}, {"ef": 128}),
        IndexKind("IVF", f"IVF{lists},Flat", f"nprobe={_PROBES}", "IVF_FLAT", {"nlist": lists}, {"nprobe": _PROBES}),
    )


def _measure(
    sides: Mapping[str, IndexSide], vectors: ClusteredVectors, exact: Rows
) -> dict[str, tuple[Side, float, float, float]]:
    """Latency, recall, memory and build time of sides that are asked in turn."""
    spent: dict[str, list[float]] = {label: [] for label in sides}
    rows: dict[str, list[Rows]] = {label: [] for label in sides}
    labels = list(sides)
    for number in range(_WARM_UP):
        for side in sides.values():
            side.search(number, K)
    for number in range(len(vectors.queries)):
        first = number % len(labels)
        for label in labels[first:] + labels[:first]:
            took, found = sides[label].search(number, K)
            spent[label].append(took)
            rows[label].append(found)
    return {
        label: (
            Side.of(label, spent[label]),
            recall(rows[label], exact),
            side.memory_mb(),
            side.build_s,
        )
        for label, side in sides.items()
    }


def _plot(found: Mapping[tuple[int, str, str], tuple[Side, float, float, float]], limits: Mapping[int, Side]) -> Plot:
    series = [Series(LIMIT, tuple(limits), tuple(side.median for side in limits.values()))]
    for label in (SIDECAR, FAISS, MILVUS):
        for name in dict.fromkeys(name for _, name, _ in found):
            points = [
                (size, figures[0]) for (size, kind, side), figures in found.items() if (kind, side) == (name, label)
            ]
            if points:
                series.append(
                    Series(
                        f"{name}, {label}",
                        tuple(size for size, _ in points),
                        tuple(side.median for _, side in points),
                    )
                )
    return Plot(
        "corpora", "Dense search by size of the corpus (median)", "vectors", "ms", tuple(series), log_x=True, log_y=True
    )
