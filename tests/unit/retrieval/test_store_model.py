"""The store against a dictionary and brute force, across restarts and lost snapshots."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resrank.core.search import SearchMode
from resrank.retrieval.local_store import LocalVectorStore
from resrank.retrieval.records import Encoder, FloatVector, Record, RecordBatch, SearchQuery, UpsertCounts
from resrank.retrieval.snapshot import SNAPSHOT_FILE


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


class StoreMachine(RuleBasedStateMachine):
    IDS = st.lists(st.sampled_from([f"id{number}" for number in range(12)]), min_size=1, max_size=6, unique=True)
    ENCODER = Encoder("c" * 64, 4)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="resrank-store-"))
        self.store = LocalVectorStore.open(self.folder)
        self.model: dict[str, tuple[str, np.ndarray]] = {}

    @rule(ids=IDS, word=st.sampled_from(["zebra", "walrus", "okapi"]), seed=st.integers(0, 1000))
    def upsert(self, ids: list[str], word: str, seed: int) -> None:
        vectors = np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float16)
        records = tuple(Record(id_, "", word) for id_ in ids)
        counts = self.store.upsert(RecordBatch(self.ENCODER, records, vectors))
        known = sum(id_ in self.model for id_ in ids)
        assert counts == UpsertCounts(inserted=len(ids) - known, updated=known)
        self.model.update((id_, (word, vector)) for id_, vector in zip(ids, vectors, strict=True))

    @rule(ids=IDS)
    def delete(self, ids: list[str]) -> None:
        assert self.store.delete(ids) == [id_ for id_ in ids if id_ not in self.model]
        for id_ in ids:
            self.model.pop(id_, None)

    @rule(lose_snapshot=st.booleans())
    def restart(self, lose_snapshot: bool) -> None:
        self.store.close()
        if lose_snapshot:
            (self.folder / SNAPSHOT_FILE).unlink(missing_ok=True)
        self.store = LocalVectorStore.open(self.folder)

    @rule()
    def maintain(self) -> None:
        self.store.maintain()

    @precondition(lambda self: self.model)
    @rule(seed=st.integers(0, 1000), k=st.integers(1, 15))
    def search_dense(self, seed: int, k: int) -> None:
        query = unit(np.random.default_rng(seed).normal(size=4))
        hits = self.store.search(SearchQuery(SearchMode.DENSE, k, embedding=query, include_embeddings=True))
        cosine = {id_: float(unit(vector).astype(np.float64) @ query) for id_, (_, vector) in self.model.items()}
        best = sorted(cosine.values(), reverse=True)[:k]
        assert hits.scores == pytest.approx(best, abs=1e-5)
        assert [cosine[id_] for id_ in hits.ids] == pytest.approx(best, abs=1e-5)
        assert hits.vectors is not None
        assert [row.tobytes() for row in hits.vectors] == [self.model[id_][1].tobytes() for id_ in hits.ids]

    @rule(word=st.sampled_from(["zebra", "walrus", "okapi"]))
    def search_lexical(self, word: str) -> None:
        hits = self.store.search(SearchQuery(SearchMode.LEXICAL, 100, text=word))
        assert sorted(hits.ids) == sorted(id_ for id_, (text, _) in self.model.items() if text == word)

    @invariant()
    def same_records(self) -> None:
        assert self.store.describe().record_count == len(self.model)
        stored = self.store.get([f"id{n}" for n in range(12)], include_texts=True, include_embeddings=True)
        assert {id_: record.record.text for id_, record in stored.items()} == {
            id_: text for id_, (text, _) in self.model.items()
        }

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase
