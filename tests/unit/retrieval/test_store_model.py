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

from resrank.core.errors import InvalidInputError
from resrank.core.filters import Comparison, Filter, Not, matches
from resrank.core.metadata import FieldType, MetadataValue, type_of
from resrank.core.search import SearchMode
from resrank.retrieval.local.snapshot import SNAPSHOT_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.verification import verify
from resrank.retrieval.records import Encoder, FloatVector, Record, RecordBatch, SearchQuery, UpsertCounts
from support.metadata_strategies import filters, metadata


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def names(condition: Filter) -> list[str]:
    if isinstance(condition, Comparison):
        return [condition.field]
    inner = (condition.filter,) if isinstance(condition, Not) else condition.filters
    return [name for each in inner for name in names(each)]


class StoreMachine(RuleBasedStateMachine):
    IDS = st.lists(st.sampled_from([f"id{number}" for number in range(12)]), min_size=1, max_size=6, unique=True)
    ENCODER = Encoder("c" * 64, 4)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="resrank-store-"))
        self.store = LocalVectorStore.open(self.folder)
        self.model: dict[str, tuple[str, np.ndarray]] = {}
        self.metadata: dict[str, dict[str, MetadataValue]] = {}

    @rule(
        ids=IDS,
        word=st.sampled_from(["zebra", "walrus", "okapi"]),
        seed=st.integers(0, 1000),
        drawn=st.lists(metadata, min_size=6, max_size=6),
        place=st.sampled_from([1.0, 1.0, 2.0, "1"]),
    )
    def upsert(
        self, ids: list[str], word: str, seed: int, drawn: list[dict[str, MetadataValue]], place: MetadataValue
    ) -> None:
        """Now and then with another type of ``place`` than the records that stay have."""
        vectors = np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float16)
        held = [{**each, "place": place} for each in drawn[: len(ids)]]
        records = tuple(Record(id_, "", word, each) for id_, each in zip(ids, held, strict=True))
        batch = RecordBatch(self.ENCODER, records, vectors)
        if any(type_of(self.metadata[id_]["place"]) is not type_of(place) for id_ in self.metadata.keys() - set(ids)):
            with pytest.raises(InvalidInputError, match="metadata 'place' of id"):
                self.store.upsert(batch)
            return
        counts = self.store.upsert(batch)
        known = sum(id_ in self.model for id_ in ids)
        assert counts == UpsertCounts(inserted=len(ids) - known, updated=known)
        self.model.update((id_, (word, vector)) for id_, vector in zip(ids, vectors, strict=True))
        self.metadata.update(zip(ids, held, strict=True))

    @rule(ids=IDS)
    def delete(self, ids: list[str]) -> None:
        assert self.store.delete(ids) == [id_ for id_ in ids if id_ not in self.model]
        for id_ in ids:
            self.model.pop(id_, None)
            self.metadata.pop(id_, None)

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

    @precondition(lambda self: self.model)
    @rule(condition=filters)
    def search_filtered(self, condition: Filter) -> None:
        query = SearchQuery(SearchMode.DENSE, 100, embedding=unit(np.ones(4)), filter=condition, include_metadata=True)
        if not set(names(condition)) <= set(self.fields()):
            with pytest.raises(InvalidInputError, match="filter: no record has the field"):
                self.store.search(query)
            return
        hits = self.store.search(query)
        assert sorted(hits.ids) == sorted(id_ for id_, held in self.metadata.items() if matches(condition, held))
        assert hits.metadata == [self.metadata[id_] for id_ in hits.ids]

    @rule(word=st.sampled_from(["zebra", "walrus", "okapi"]))
    def search_lexical(self, word: str) -> None:
        hits = self.store.search(SearchQuery(SearchMode.LEXICAL, 100, text=word))
        assert sorted(hits.ids) == sorted(id_ for id_, (text, _) in self.model.items() if text == word)

    @invariant()
    def same_records(self) -> None:
        assert self.store.describe().record_count == len(self.model)
        assert self.store.describe().fields == self.fields()
        stored = self.store.get([f"id{n}" for n in range(12)], include_texts=True, include_embeddings=True)
        assert {id_: record.record.text for id_, record in stored.items()} == {
            id_: text for id_, (text, _) in self.model.items()
        }

    def fields(self) -> dict[str, FieldType]:
        return {name: type_of(value) for held in self.metadata.values() for name, value in held.items()}

    def teardown(self) -> None:
        self.store.close()
        assert verify(self.folder).problems == ()
        shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase
