"""Searches with filters against brute force by ``matches``, whatever the mode and the kind of dense index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.core.filters import F, Filter, check_filter, matches
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.metadata import FieldType, MetadataValue, type_of
from resrank.core.search import SearchMode
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.kept_rows import KeptRows
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import Encoder, FloatVector, HalfMatrix, Record, RecordBatch, SearchQuery
from support.metadata_strategies import NUMBERS, STRINGS, filters

D = 6
ENCODER = Encoder("f" * 64, D)
WORDS = ("zebra", "walrus", "okapi", "lynx")

OpenStore = Callable[..., LocalVectorStore]


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def some_metadata(rng: np.random.Generator) -> dict[str, MetadataValue]:
    drawn: dict[str, MetadataValue] = {
        "lang": STRINGS[rng.integers(len(STRINGS))],
        "year": NUMBERS[rng.integers(len(NUMBERS))],
        "draft": bool(rng.integers(2)),
        "tags": tuple(rng.choice(STRINGS, size=rng.integers(4)).tolist()),
        "a name": STRINGS[rng.integers(len(STRINGS))],
    }
    return {name: value for name, value in drawn.items() if rng.random() < 0.8}


def some_records(ids: list[int], seed: int) -> RecordBatch:
    rng = np.random.default_rng(seed)
    records = tuple(
        Record(f"id{number}", "", " ".join(rng.choice(WORDS, size=rng.integers(1, 6))), some_metadata(rng))
        for number in ids
    )
    # Few directions, so that many cosines are equal.
    return RecordBatch(ENCODER, records, rng.integers(-1, 3, size=(len(ids), D)).astype(np.float16) + np.float16(0.125))


@dataclass
class Filled:
    """A store with tombstones, and what it holds in the order in which it was stored."""

    store: LocalVectorStore
    records: dict[str, tuple[Record, np.ndarray]]

    def kept(self, condition: Filter) -> list[str]:
        return [id_ for id_, (record, _) in self.records.items() if matches(condition, record.metadata)]

    def cosine(self, id_: str, query: FloatVector) -> float:
        return float(unit(self.records[id_][1]).astype(np.float64) @ query)


@pytest.fixture(scope="module", params=["Flat", "HNSW8"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    store = LocalVectorStore.open(tmp_path_factory.mktemp("filtered") / "index", dense_index=request.param)
    records: dict[str, tuple[Record, np.ndarray]] = {}
    for batch in (some_records(list(range(60)), 1), some_records(list(range(0, 30, 2)), 2)):
        store.upsert(batch)
        for record, vector in zip(batch.records, batch.vectors, strict=True):
            records.pop(record.id, None)
            records[record.id] = (record, vector)
    gone = [f"id{number}" for number in range(40, 50)]
    store.delete(gone)
    for id_ in gone:
        del records[id_]
    yield Filled(store, records)
    store.close()


QUERIES = st.integers(0, 50).map(lambda seed: unit(np.random.default_rng(seed).normal(size=D)))
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join)
SIZES = st.sampled_from([1, 3, 10, 100])


@settings(max_examples=30)
@given(condition=filters, query=QUERIES, k=SIZES)
def test_dense_finds_the_nearest_of_what_is_kept(filled: Filled, condition: Filter, query: FloatVector, k: int) -> None:
    kept = filled.kept(condition)
    hits = filled.store.search(SearchQuery(SearchMode.DENSE, k, query, filter=condition, include_metadata=True))
    cosines = {id_: filled.cosine(id_, query) for id_ in kept}
    assert len(hits.ids) == min(k, len(kept))
    assert set(hits.ids) <= set(kept)
    assert hits.scores == pytest.approx([cosines[id_] for id_ in hits.ids], abs=1e-6)
    assert [dict(found) for found in hits.metadata] == [filled.records[id_][0].metadata for id_ in hits.ids]
    if filled.store.describe().dense_index == "Flat":
        assert hits.scores == pytest.approx(sorted(cosines.values(), reverse=True)[:k], abs=1e-6)
        longer = filled.store.search(SearchQuery(SearchMode.DENSE, 1000, query, filter=condition))
        assert hits.ids == longer.ids[:k]


@settings(max_examples=25)
@given(condition=filters, text=TEXTS, k=SIZES)
def test_lexical_finds_the_best_of_what_is_kept(filled: Filled, condition: Filter, text: str, k: int) -> None:
    everything = filled.store.search(SearchQuery(SearchMode.LEXICAL, 1000, text=text))
    kept = set(filled.kept(condition))
    expected = [(id_, score) for id_, score in zip(everything.ids, everything.scores, strict=True) if id_ in kept]
    hits = filled.store.search(SearchQuery(SearchMode.LEXICAL, k, text=text, filter=condition))
    assert list(zip(hits.ids, hits.scores, strict=True)) == expected[:k]
    assert hits.best_bm25 == pytest.approx(max((score for _, score in expected), default=0.0))


@settings(max_examples=30)
@given(condition=filters, query=QUERIES, text=TEXTS, k=SIZES, weight=st.sampled_from([0.0, 0.3, 5.0]))
def test_hybrid_by_weighted_scores_is_over_what_is_kept(
    filled: Filled, condition: Filter, query: FloatVector, text: str, k: int, weight: float
) -> None:
    kept = filled.kept(condition)
    cosine_map = CosineMap(2.0, 0.5, 0.25)
    hits = filled.store.search(
        SearchQuery(
            SearchMode.HYBRID,
            k,
            query,
            text,
            fusion=Fusion.WEIGHTED,
            lexical_weight=weight,
            cosine_map=cosine_map,
            filter=condition,
        )
    )
    words = filled.store.word_scores(text, kept).scores if kept else {}
    best = max(words.values(), default=0.0)
    scores = {
        id_: cosine_map.apply(filled.cosine(id_, query)) + (weight * words[id_] / best if best else 0.0) for id_ in kept
    }
    assert len(hits.ids) == min(k, len(kept))
    assert set(hits.ids) <= set(kept)
    assert hits.best_bm25 == pytest.approx(best)
    assert hits.scores == pytest.approx([scores[id_] for id_ in hits.ids], abs=1e-5)
    if filled.store.describe().dense_index == "Flat":
        assert hits.scores == pytest.approx(sorted(scores.values(), reverse=True)[:k], abs=1e-5)


@settings(max_examples=25)
@given(condition=filters, query=QUERIES, text=TEXTS, k=SIZES)
def test_hybrid_by_ranks_joins_both_lists_of_what_is_kept(
    filled: Filled, condition: Filter, query: FloatVector, text: str, k: int
) -> None:
    def ids(mode: SearchMode) -> list[str]:
        return filled.store.search(SearchQuery(mode, 1000, query, text, filter=condition)).ids

    hits = filled.store.search(SearchQuery(SearchMode.HYBRID, k, query, text, fusion=Fusion.RRF, filter=condition))
    expected: dict[str, float] = {}
    for ranking in (ids(SearchMode.DENSE), ids(SearchMode.LEXICAL)):
        for rank, id_ in enumerate(ranking, start=1):
            expected[id_] = expected.get(id_, 0.0) + 1 / (60 + rank)
    assert len(hits.ids) == min(k, len(filled.kept(condition)))
    assert hits.scores == pytest.approx(sorted(expected.values(), reverse=True)[:k])
    assert hits.scores == pytest.approx([expected[id_] for id_ in hits.ids])


def indexes(vectors: HalfMatrix) -> Mapping[str, FaissDenseIndex]:
    table = VectorTable(np.arange(1, len(vectors) + 1), VectorSegment.of(vectors))
    rows = np.stack([unit(vector) for vector in vectors])
    made = {}
    for factory in ("Flat", "HNSW8", "IVF8,Flat", "HNSW8_SQ8", "IVF8,PQ2x4fs", "PCA4,IVF8,SQ8", "SQ8", "PQ2x4"):
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        made[factory] = FaissDenseIndex(factory, "", table, None if factory == "Flat" else index)
    return made


INDEXES = indexes(np.random.default_rng(0).normal(size=(400, 8)).astype(np.float16))


@pytest.mark.parametrize("factory", INDEXES)
@settings(max_examples=15)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.003, 0.04, 0.1, 0.5, 1.0]), k=st.integers(1, 500))
def test_no_kind_of_index_finds_fewer_than_there_are(factory: str, seed: int, share: float, k: int) -> None:
    dense = INDEXES[factory]
    rng = np.random.default_rng(seed)
    mask = rng.random(400) < share
    kept = KeptRows(mask, dense.table.keys[mask])
    query = unit(rng.normal(size=8))
    keys, cosines = dense.search(query, k, kept)
    true = {
        key: float(unit(dense.table.base.vectors[key - 1]).astype(np.float64) @ query) for key in kept.keys.tolist()
    }
    assert len(set(keys.tolist())) == len(keys) == min(k, len(true))
    assert cosines == pytest.approx([true[key] for key in keys.tolist()], abs=1e-6)
    assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    if factory in ("Flat", "PQ2x4") or share <= 0.003 or (factory.startswith("HNSW") and share <= 0.04):
        assert cosines == pytest.approx(sorted(true.values(), reverse=True)[:k], abs=1e-6)


def test_approximate_kinds_find_most_of_what_is_nearest_among_the_kept() -> None:
    rng = np.random.default_rng(7)
    for factory in ("HNSW8", "IVF8,Flat"):
        dense = INDEXES[factory]
        right = asked = 0
        for _ in range(30):
            mask = rng.random(400) < 0.3
            kept = KeptRows(mask, dense.table.keys[mask])
            query = unit(rng.normal(size=8))
            exact, _ = INDEXES["Flat"].search(query, 10, kept)
            found, _ = dense.search(query, 10, kept)
            right += len(np.intersect1d(exact, found))
            asked += 10
        # Without a filter IVF's one probe of eight lists finds about half, and so it must not be less here.
        assert right / asked > 0.5, factory


def batch_of(metadata: Mapping[str, Mapping[str, MetadataValue]]) -> RecordBatch:
    records = tuple(Record(id_, "", "zebra", dict(held)) for id_, held in metadata.items())
    return RecordBatch(ENCODER, records, np.ones((len(records), D), np.float16))


def ids_where(store: LocalVectorStore, condition: Filter) -> list[str]:
    return store.search(SearchQuery(SearchMode.LEXICAL, 10, text="zebra", filter=condition)).ids


def test_a_field_has_the_type_of_its_first_record_until_its_last_one_goes(open_store: OpenStore) -> None:
    store = open_store()
    store.upsert(batch_of({"a": {"year": 2020.0, "lang": "en"}, "b": {"year": 2021.0}}))
    assert store.describe().fields == {"year": FieldType.NUMBER, "lang": FieldType.STRING}
    sentence = r"^records\[1\]: metadata 'year' of id 'd' is of type string, and of type number in records that have it"
    with pytest.raises(InvalidInputError, match=sentence):
        store.upsert(batch_of({"c": {"new": True}, "d": {"year": "2022"}}))
    assert store.describe().record_count == 2
    assert "new" not in store.describe().fields
    with pytest.raises(
        InvalidInputError, match=r"^records\[1\]: metadata 'x' of id 'd' is of type bool, and of type number"
    ):
        store.upsert(batch_of({"c": {"x": 1.0}, "d": {"x": True}}))

    store.upsert(batch_of({"a": {"lang": "en"}}))
    assert store.describe().fields["year"] is FieldType.NUMBER  # b has it still
    store.upsert(batch_of({"b": {"year": ("2021", "2022")}}))  # the last that has it may have it otherwise
    assert store.describe().fields == {"year": FieldType.STRINGS, "lang": FieldType.STRING}
    assert ids_where(store, F("year") == "2022") == ["b"]
    store.delete(["b"])
    assert store.describe().fields == {"lang": FieldType.STRING}
    with pytest.raises(InvalidInputError, match=r"no record has the field year: there are lang \(string\)"):
        ids_where(store, F("year") == "2022")
    store.close()
    store = open_store()
    assert store.describe().fields == {"lang": FieldType.STRING}
    store.delete(["a"])
    assert store.describe().fields == {}
    assert ids_where(store, F("anything").exists()) == []  # an empty index answers with no results


def test_fields_are_counted_again_after_a_restart(open_store: OpenStore) -> None:
    store = open_store()
    store.upsert(batch_of({"a": {"tags": ("x", "x", "y"), "lang": "en"}, "b": {"tags": ()}}))
    store.close()
    store = open_store()
    store.upsert(batch_of({"c": {"place": 1.0}}))
    store.delete(["a"])
    assert store.describe().fields == {"tags": FieldType.STRINGS, "place": FieldType.NUMBER}
    assert ids_where(store, F("tags").exists()) == ["b"]
    assert ids_where(store, F("tags") == "x") == []
    store.delete(["b"])
    assert store.describe().fields == {"place": FieldType.NUMBER}


def test_what_was_stored_is_given_back_with_its_types(open_store: OpenStore) -> None:
    store = open_store()
    held: dict[str, MetadataValue] = {"s": "1", "n": 1.0, "b": True, "l": ("1", "")}
    store.upsert(batch_of({"a": held}))
    (found,) = store.search(SearchQuery(SearchMode.LEXICAL, 1, text="zebra", include_metadata=True)).metadata
    stored = store.get(["a"], include_texts=True, include_embeddings=False)["a"].record.metadata
    for metadata in (found, stored):
        assert metadata == held
        assert {name: type_of(value) for name, value in metadata.items()} == {
            name: type_of(value) for name, value in held.items()
        }
    assert store.search(SearchQuery(SearchMode.LEXICAL, 1, text="zebra")).metadata == []
    for condition in (F("s") == "1", F("n") == 1, F("b") == True, F("l") == "1", F("l") == ""):  # noqa: E712
        check_filter(condition, store.describe().fields)
        assert ids_where(store, condition) == ["a"]


def test_a_filter_takes_a_stage_of_its_own(open_store: OpenStore) -> None:
    store = open_store()
    store.upsert(batch_of({"a": {"n": 1.0}}))
    hits = store.search(SearchQuery(SearchMode.DENSE, 1, unit(np.ones(D)), filter=F("n") > 0))
    assert set(hits.stage_ms) == {"filter", "dense", "gather"}


def test_a_filter_that_keeps_nothing_finds_nothing(open_store: OpenStore) -> None:
    store = open_store()
    store.upsert(batch_of({"a": {"n": 1.0}}))
    query = SearchQuery(SearchMode.HYBRID, 3, unit(np.ones(D)), "zebra", filter=F("n") > 1, include_embeddings=True)
    hits = store.search(query)
    assert (hits.ids, hits.scores.tolist(), hits.best_bm25, hits.encoder) == ([], [], 0.0, ENCODER)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """1200 records, of which a filter keeps few or many."""
    records = {
        f"id{n}": Record(
            f"id{n}",
            "",
            "zebra " * (n % 7 + 1) + "lynx " * (n % 3),
            {"n": float(n), "odd": n % 2 == 1, "tags": ("x", f"t{n % 10}")[: 1 + n % 3]},
        )
        for n in range(1200)
    }
    vectors = np.random.default_rng(0).normal(size=(len(records), D)).astype(np.float16)
    store = LocalVectorStore.open(tmp_path_factory.mktemp("many") / "index")
    store.upsert(RecordBatch(ENCODER, tuple(records.values()), vectors))
    yield Filled(store, {id_: (record, vectors[0]) for id_, record in records.items()})
    store.close()


@pytest.mark.parametrize("k", [3, 1000])
@pytest.mark.parametrize("bound", [1, 119, 121, 1199])
def test_words_are_joined_alike_with_few_and_with_many(many: Filled, bound: int, k: int) -> None:
    everything = many.store.search(SearchQuery(SearchMode.LEXICAL, 1200, text="lynx zebra"))
    assert len(everything.ids) == 800  # zebras stand nearly everywhere, and are left out
    scores = dict(zip(everything.ids, everything.scores.tolist(), strict=True))
    hits = many.store.search(SearchQuery(SearchMode.LEXICAL, k, text="lynx zebra", filter=F("n") < bound))
    expected = [id_ for id_ in everything.ids if int(id_[2:]) < bound][:k]
    assert hits.ids == expected
    assert hits.scores.tolist() == [scores[id_] for id_ in expected]


def test_words_that_the_best_of_all_do_not_keep_are_looked_for_further_down(many: Filled) -> None:
    """The filter keeps what stands last in the ranking: more than twice its share has to be fetched."""
    last = F("n").is_in(*(n for n in range(1200) if n % 7 == 0))
    hits = many.store.search(SearchQuery(SearchMode.LEXICAL, 5, text="zebra", filter=last))
    everything = many.store.search(SearchQuery(SearchMode.LEXICAL, 1200, text="zebra"))
    assert hits.ids == [id_ for id_ in everything.ids if int(id_[2:]) % 7 == 0][:5]


@pytest.mark.parametrize(
    "condition",
    [
        (F("odd") == True) & (F("n") < 20),  # noqa: E712  # the second decides for which rows the first is looked up
        (F("n") < 20) & F("tags").is_in("t3", "t4", "t5") & (F("odd") != True),  # noqa: E712
        (F("n") < 20) & ((F("tags") == "t3") | ~(F("n") < 10)) & F("tags").exists(),
        (F("n") >= 1190) & ~((F("tags") == "x") & (F("odd") == False)),  # noqa: E712
        (F("n") < 0) & (F("odd") == True),  # noqa: E712
        ~(F("n") < 20) & (F("odd") == True) & (F("n") < 40),  # noqa: E712
    ],
)
def test_conditions_that_few_meet_narrow_the_others(many: Filled, condition: Filter) -> None:
    hits = many.store.search(SearchQuery(SearchMode.LEXICAL, 1000, text="zebra", filter=condition))
    assert sorted(hits.ids) == sorted(many.kept(condition))


def test_what_is_remembered_of_a_filter_is_forgotten_with_a_write(open_store: OpenStore) -> None:
    store = open_store()
    records = tuple(Record(f"id{n}", "", "zebra", {"n": float(n)}) for n in range(1100))
    store.upsert(RecordBatch(ENCODER, records, np.ones((len(records), D), np.float16)))
    query = SearchQuery(SearchMode.DENSE, 1200, unit(np.ones(D)), filter=F("n") >= 10)
    for _ in range(2):
        assert len(store.search(query).ids) == 1090
    store.upsert(batch_of({"id3": {"n": 10.0}, "id20": {"n": 1.0}, "id21": {}}))
    found = store.search(query).ids
    assert len(found) == 1089
    assert set(found) >= {"id3"}
    assert not set(found) & {"id20", "id21"}
    store.delete(["id3"])
    assert len(store.search(query).ids) == 1088
