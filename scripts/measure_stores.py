#!/usr/bin/env python3
"""Measures a store: filling it, searching it, and what it finds of the nearest.

    scripts/measure_stores.py local:///tmp/index --vectors 100000
    RESRANK_STORE=postgresql://… scripts/measure_stores.py --vectors 100000

The store must be empty. Vectors are clustered as those of texts are, texts are 60 words drawn by Zipf's law, and one
record in a hundred has `part` = 0. Searches run one after the other through the store's own interface, without gRPC;
memory is this process's, and that of the server processes named by --server-pid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import psutil
import typer

from resrank.benchmarks.clustered_vectors import clustered_vectors, nearest, recall
from resrank.core.errors import InvalidInputError
from resrank.core.filters import F
from resrank.core.search import SearchMode
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store import VectorStore
from resrank.retrieval.store_url import STORE_VARIABLE, StoreUrl
from resrank.retrieval.stores import open_store

BATCH = 1000
WORDS = 60
VOCABULARY = 50_000
K = 100
WARM_UP = 3


def main(
    store: Annotated[str, typer.Argument(envvar=STORE_VARIABLE, metavar="URL|DIR")],
    vectors: int = 100_000,
    dimension: int = 384,
    queries: int = 100,
    wait_s: Annotated[float, typer.Option(help="How long an index may be built after the last record.")] = 600,
    server_pid: Annotated[list[int] | None, typer.Option(help="First process of the store's server.")] = None,
) -> None:
    """Fills and asks a store, and prints a line for each figure."""
    drawn = clustered_vectors(vectors, dimension, queries)
    catalog = open_store(SidecarSettings(StoreUrl.read(store)))
    with catalog.collection("default") as held:
        index = held.store
        print(f"records/s            {vectors / _fill(index, drawn.passages):.0f}")
        built = _wait(index, wait_s)
        print(f"index                {index.describe().dense_index}, ready {built:.0f} s after the last record")
        shapes: dict[str, Callable[[int], SearchQuery]] = {
            "dense": lambda row: SearchQuery(SearchMode.DENSE, K, embedding=drawn.queries[row]),
            "dense, 1 % kept": lambda row: SearchQuery(
                SearchMode.DENSE, K, embedding=drawn.queries[row], filter=F("part") == 0
            ),
            "lexical": lambda row: SearchQuery(SearchMode.LEXICAL, K, text=_words(np.random.default_rng(row), 6)),
            "hybrid": lambda row: SearchQuery(
                SearchMode.HYBRID, K, embedding=drawn.queries[row], text=_words(np.random.default_rng(row), 6)
            ),
        }
        for name, shape in shapes.items():
            try:
                found, spent = _ask(index, [shape(row) for row in range(queries)])
            except InvalidInputError as error:
                print(f"{name:<20} {error}")
                continue
            figures = f"p50 {np.median(spent):.1f} ms, p95 {np.quantile(spent, 0.95):.1f} ms"
            if name == "dense":
                places = [np.array([int(id_[2:]) for id_ in ids], np.int64) for ids in found]
                share = recall(places, nearest(drawn, K))
                figures += f", recall@{K} {share:.4f}"
            print(f"{name:<20} {figures}")
    print(f"memory here          {psutil.Process().memory_info().rss / 2**20:.0f} MiB")
    if server_pid:
        print(f"memory of the server {sum(map(_memory, server_pid)) / 2**20:.0f} MiB")
    catalog.close()


def _fill(index: VectorStore, passages: np.ndarray) -> float:
    generator = np.random.default_rng(1)
    encoder = Encoder("a" * 64, passages.shape[1])
    spent = 0.0
    for start in range(0, len(passages), BATCH):
        part = passages[start : start + BATCH]
        records = tuple(
            Record(f"id{place}", "", _words(generator, WORDS), {"part": float(place % 100)})
            for place in range(start, start + len(part))
        )
        started = time.perf_counter()
        index.upsert(RecordBatch(encoder, records, part))
        index.maintain()
        spent += time.perf_counter() - started
    return spent


def _words(generator: np.random.Generator, count: int) -> str:
    # Zipf's law with exponent 1: of uniform u, V^u.
    return " ".join(f"w{int(rank)}x" for rank in VOCABULARY ** generator.random(count))


def _wait(index: VectorStore, wait_s: float) -> float:
    """Seconds until the index that was asked for last is ready; all of them where none is."""
    started = time.perf_counter()
    while "HNSW" not in index.describe().dense_index and time.perf_counter() - started < wait_s:
        time.sleep(0.2)
    return time.perf_counter() - started


def _ask(index: VectorStore, asked: list[SearchQuery]) -> tuple[list[list[str]], list[float]]:
    for query in asked[:WARM_UP]:
        index.search(query)
    found, spent = [], []
    for query in asked:
        started = time.perf_counter()
        found.append(index.search(query).ids)
        spent.append(1e3 * (time.perf_counter() - started))
    return found, spent


def _memory(pid: int) -> int:
    """Proportional set size of a process and its children: what they share counts once."""
    process = psutil.Process(pid)
    return sum(int(each.memory_full_info().pss) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    typer.run(main)
