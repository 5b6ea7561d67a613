from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import Encoder, Record, RecordBatch

ENCODER = Encoder(sha256="a" * 64, dimension=8)


def make_batch(
    ids: Iterable[str], *, seed: int = 0, text: str = "text of {id}", encoder: Encoder = ENCODER
) -> RecordBatch:
    records = tuple(Record(id=id_, title=f"title {id_}", text=text.format(id=id_), metadata={"n": id_}) for id_ in ids)
    vectors = np.random.default_rng(seed).normal(size=(len(records), encoder.dimension)).astype(np.float16)
    return RecordBatch(encoder, records, vectors)


@pytest.fixture
def encoder() -> Encoder:
    return ENCODER


@pytest.fixture
def batch_of() -> Callable[..., RecordBatch]:
    """``batch_of(ids, seed=…)`` makes records with random vectors."""
    return make_batch


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., LocalVectorStore]]:
    """``open_store(**options)`` opens the test's index folder; what is still open is closed at the end."""
    opened: list[LocalVectorStore] = []

    def open_(folder: Path = tmp_path / "index", **options: str) -> LocalVectorStore:
        store = LocalVectorStore.open(folder, **options)
        close = store.close

        def close_once() -> None:
            opened.remove(store)
            close()

        store.close = close_once  # type: ignore[method-assign]
        opened.append(store)
        return store

    yield open_
    while opened:  # closing takes it out
        opened[-1].close()
