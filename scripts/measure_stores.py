#!/usr/bin/env python3
"""Measures a store: filling it, searching it, and what it finds of the nearest.

    scripts/measure_stores.py local:///tmp/index --vectors 100000
    RESRANK_STORE=postgresql://… scripts/measure_stores.py --vectors 100000
    scripts/measure_stores.py local:///tmp/index --vectors 100000 --filled
    scripts/measure_stores.py local:///tmp/index --vectors 100000 --filled --dense-device gpu

The store must be empty, unless `--filled` says that the same command has filled it: then it measures what opening it
takes in a new process, and what a passage takes of its memory. Last come searches beside a thread that fills it on, in
the same process. Vectors are clustered as those of texts are, texts are 60 words drawn by Zipf's law, and one
record in a hundred has `part` = 0. Searches run one after the other through the store's own interface, without gRPC;
memory is this process's, and that of the server processes named by --server-pid. "Own" memory is what nobody else can
have; what is mapped from files the kernel takes back when it needs it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from resrank.benchmarks.clustered_vectors import clustered_vectors, nearest, recall
from resrank.core.errors import InvalidInputError
from resrank.core.filters import F
from resrank.core.search import SearchMode
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery
from resrank.retrieval.settings import CPU, EXACT_INDEX, SidecarSettings
from resrank.retrieval.store import VectorStore
from resrank.retrieval.store_url import STORE_VARIABLE, StoreUrl
from resrank.retrieval.stores import open_store

BATCH = 1000
WORDS = 60
VOCABULARY = 50_000
K = 100
WARM_UP = 3
MOST_BATCHES_BESIDE = 100
LEAST_ROUNDS_BESIDE = 5


def main(
    store: Annotated[str, typer.Argument(envvar=STORE_VARIABLE, metavar="URL|DIR")],
    vectors: int = 100_000,
    dimension: int = 384,
    queries: int = 100,
    wait_s: Annotated[float, typer.Option(help="How long an index may be built after the last record.")] = 600,
    dense_index: str = EXACT_INDEX,
    dense_search_parameters: str = "",
    dense_device: str = CPU,
    filled: Annotated[bool, typer.Option("--filled", help="This command has filled the store before.")] = False,
    server_pid: Annotated[list[int] | None, typer.Option(help="First process of the store's server.")] = None,
) -> None:
    """Fills and asks a store, and prints a line for each figure."""
    drawn = clustered_vectors(vectors, dimension, queries)
    before = _resident()
    started = time.perf_counter()
    catalog = open_store(
        SidecarSettings(
            StoreUrl.read(store),
            dense_index=dense_index,
            dense_search_parameters=dense_search_parameters,
            dense_device=dense_device,
        )
    )
    with catalog.collection("default") as held:
        index = held.store
        if filled:
            index.search(SearchQuery(SearchMode.DENSE, K, embedding=drawn.queries[0]))
            print(f"start                {time.perf_counter() - started:.2f} s to the first answer")
        else:
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
        own, mapped = (now - then for now, then in zip(_resident(), before, strict=True))
        print(
            f"memory here          {own / 2**20:.0f} MiB own, {own / vectors:.0f} bytes a passage; "
            f"{mapped / 2**20:.0f} MiB mapped, {mapped / vectors:.0f}"
        )
        spent, records, seconds = _ask_beside(index, drawn.passages, shapes["dense"], queries)
        print(
            f"beside filling       dense p50 {np.median(spent):.1f} ms, p95 {np.quantile(spent, 0.95):.1f} ms, "
            f"{records / seconds:.0f} records/s"
        )
    if server_pid:
        print(f"memory of the server {sum(map(_memory, server_pid)) / 2**20:.0f} MiB")
    catalog.close()


def _fill(index: VectorStore, passages: np.ndarray) -> float:
    generator = np.random.default_rng(1)
    spent = 0.0
    for start in range(0, len(passages), BATCH):
        batch = _batch("id", start, passages[start : start + BATCH], generator)
        started = time.perf_counter()
        index.upsert(batch)
        index.maintain()
        spent += time.perf_counter() - started
    return spent


def _batch(prefix: str, first: int, passages: np.ndarray, generator: np.random.Generator) -> RecordBatch:
    records = tuple(
        Record(f"{prefix}{place}", "", _words(generator, WORDS), {"part": float(place % 100)})
        for place in range(first, first + len(passages))
    )
    return RecordBatch(Encoder("a" * 64, passages.shape[1]), records, passages)


def _ask_beside(
    index: VectorStore, passages: np.ndarray, shape: Callable[[int], SearchQuery], queries: int
) -> tuple[list[float], int, float]:
    """Milliseconds of each search, and how many records were stored meanwhile in how many seconds."""
    generator = np.random.default_rng(2)
    # Made before: to draw words is no part of it, and would take the searches' turns.
    batches = [
        _batch(f"beside{BATCH * number}-", 0, passages[:BATCH], generator) for number in range(MOST_BATCHES_BESIDE)
    ]
    stopping = threading.Event()
    stored = 0

    def fill() -> None:
        nonlocal stored
        for batch in batches:
            if stopping.is_set():
                break
            index.upsert(batch)
            index.maintain()
            stored += len(batch.records)

    thread = threading.Thread(target=fill)
    started = time.perf_counter()
    thread.start()
    spent: list[float] = []
    while thread.is_alive() and len(spent) < LEAST_ROUNDS_BESIDE * queries:
        spent += _ask(index, [shape(row) for row in range(queries)])[1]
    stopping.set()
    thread.join()
    seconds = time.perf_counter() - started
    for batch in batches:
        index.delete([record.id for record in batch.records])
    return spent, stored, seconds


def _words(generator: np.random.Generator, count: int) -> str:
    # Zipf's law with exponent 1: of uniform u, V^u.
    return " ".join(f"w{int(rank)}x" for rank in VOCABULARY ** generator.random(count))


def _wait(index: VectorStore, wait_s: float) -> float:
    """Seconds until an index has taken the place of comparing all, where that comes after the records."""
    started = time.perf_counter()
    while index.describe().dense_index == "exact" and time.perf_counter() - started < wait_s:
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


def _resident() -> tuple[int, int]:
    """Bytes of this process's own memory, and of what it has mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return values["RssAnon"], values["RssFile"]


def _memory(pid: int) -> int:
    """Proportional set size of a process and its children: what they share counts once."""
    process = psutil.Process(pid)
    return sum(int(each.memory_full_info().pss) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    typer.run(main)
