#!/usr/bin/env python3
"""Measures what one passage of a corpus costs each part of a build, for the plan in docs/scale.md.

    scripts/measure_bulk.py corpus.jsonl.gz /tmp/index
    scripts/measure_bulk.py corpus.jsonl.gz postgresql://…

The store must be empty. Seconds are those of the processor, in which neighbours on the machine count little; vectors
are drawn. With a PostgreSQL, what its server spends is not in them.
"""

from __future__ import annotations

import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import psycopg
import typer

from resrank.client.sidecar import in_blocks
from resrank.core.checkpoint import read_spec
from resrank.core.corpus import Passage, check_corpus, read_passages
from resrank.core.tokenization import EncoderTokenizer
from resrank.retrieval.records import Encoder, Record, RecordBatch
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import LOCAL, StoreUrl
from resrank.retrieval.stores import open_store

BATCH = 256
DIMENSION = 384

T = TypeVar("T")


def main(
    corpus: Path,
    store: Annotated[str, typer.Argument(metavar="URL|DIR")],
    checkpoint: Path = Path("var/checkpoint"),
) -> None:
    """Prints a line for each figure."""
    before = _resident()
    (ids, _), seconds = _timed(lambda: check_corpus(corpus))
    count = len(ids)
    print(
        f"checking the file        {1e6 * seconds / count:.0f} µs, {(_resident() - before) / count:.0f} bytes of memory"
    )
    passages, seconds = _timed(lambda: list(read_passages(corpus)))
    print(f"reading it               {1e6 * seconds / count:.0f} µs")
    text = sum(len(passage.encoder_text.encode()) for passage in passages) / count
    print(f"passages                 {count} of {text:.0f} bytes of text")

    spec = read_spec(checkpoint).encoder
    tokenizer = EncoderTokenizer(checkpoint / "encoder", spec, for_queries=False)
    texts = [passage.encoder_text.encode() for passage in passages]
    rows, seconds = _timed(lambda: [tokenizer.encode(block, truncate=True) for block in in_blocks(texts, 64)])
    tokens = sum(int(row.attention_mask.sum()) for row in rows) / count
    print(f"tokenizing               {1e6 * seconds / count:.0f} µs, {tokens:.0f} tokens")

    vectors = np.random.default_rng(0).normal(size=(count, DIMENSION)).astype(np.float16)
    blocks = [(block, vectors[:BATCH]) for block in in_blocks(passages, BATCH)]
    rows_there, seconds = _timed(lambda: [pickle.loads(pickle.dumps(block)) for block in blocks])
    size = sum(len(pickle.dumps(block)) for block in blocks) / count
    print(f"a hop between processes  {1e6 * seconds / count:.0f} µs, {size:.0f} bytes")
    assert len(rows_there) == len(blocks)

    url = StoreUrl.read(store)
    catalog = open_store(SidecarSettings(url))
    with catalog.collection("default") as held:
        _, seconds = _timed(lambda: _fill(held.store, passages, vectors))
    catalog.close()
    print(f"storing                  {1e6 * seconds / count:.0f} µs, {_stored(url) / count:.0f} bytes on the disk")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    done = work()
    return done, time.process_time() - started


def _fill(store: object, passages: list[Passage], vectors: np.ndarray) -> None:
    for start in range(0, len(passages), BATCH):
        block = passages[start : start + BATCH]
        records = tuple(Record(one.id, one.title, one.text, one.metadata) for one in block)
        store.upsert(RecordBatch(Encoder("a" * 64, DIMENSION), records, vectors[start : start + len(block)]))
        store.maintain()


def _stored(url: StoreUrl) -> float:
    if url.scheme == LOCAL:
        return sum(file.stat().st_size for file in url.folder.rglob("*") if file.is_file())
    with psycopg.connect(url.secret) as connection:
        query = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace::regnamespace"
        )
        (size,) = connection.execute(f"{query}::text LIKE 'resrank%'").fetchone()
        return float(size)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
