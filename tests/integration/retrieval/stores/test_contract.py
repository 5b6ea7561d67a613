"""What every kind of store promises, against brute force and against the local kind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    QuotaExceededError,
)
from resrank.core.filters import F, Filter, matches
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.metadata import FieldType, Metadata
from resrank.core.passage import content_sha256
from resrank.core.search import SearchMode
from resrank.retrieval.catalog import Alias, Catalog
from resrank.retrieval.errors import CollectionExistsError, CollectionInUseError, StoreUnavailableError
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.milvus.names import Names
from resrank.retrieval.postgres.catalog import PostgresCatalog
from resrank.retrieval.quota import NO_QUOTA, Quota
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery
from resrank.retrieval.store import VectorStore
from support.metadata_strategies import NUMBERS, STRINGS, TYPES, filters

ENCODER = Encoder("a" * 64, 8)
OTHER = Encoder("b" * 64, 8)

words_are_kept = pytest.mark.parametrize("kind", ["local", "postgresql"], indirect=True)
"""Milvus is searched by vector alone."""


@pytest.fixture
def store(catalog: Catalog) -> VectorStore:
    with catalog.collection("default") as held:
        return held.store


def vectors(count: int, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=(count, ENCODER.dimension)).astype(np.float16)


def batch(
    ids: Sequence[str],
    *,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    metadata: Sequence[Metadata] | None = None,
    encoder: Encoder = ENCODER,
) -> RecordBatch:
    records = tuple(
        Record(id_, f"title {id_}", texts[place] if texts else "walrus", metadata[place] if metadata else {})
        for place, id_ in enumerate(ids)
    )
    return RecordBatch(encoder, records, vectors(len(ids), seed))


def unit(vector: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def dense(query: NDArray[np.float32], k: int, condition: Filter | None = None) -> SearchQuery:
    return SearchQuery(SearchMode.DENSE, k, embedding=query, include_embeddings=True, filter=condition)


def test_records_come_back_as_they_were_stored_to_the_bit(store: VectorStore) -> None:
    # Subnormal, largest, negative zero, and one that is only subnormal.
    odd = np.array([[6e-8, -6e-8, 1e-5, 65504, -65504, -0.0, 0.1, 1], [6e-8, 0, 0, 0, 0, 0, 0, 0]], np.float16)
    metadata: list[Metadata] = [
        {"lang": "zh", "year": 2020.0, "draft": True, "tags": ("a", "ü b"), "tiny": 5e-324},
        {"lang": "", "year": -1.5e300, "draft": False, "tags": ()},
    ]
    records = (
        Record("ä/1", "Größe", "漢字 \n\t “quoted” \\ % {} \x01", metadata[0]),
        Record("b" * 512, "", "", metadata[1]),
    )
    assert store.upsert(RecordBatch(ENCODER, records, odd)).inserted == 2
    found = store.get(["ä/1", "absent", "b" * 512], include_texts=True, include_embeddings=True)
    assert sorted(found) == ["b" * 512, "ä/1"]
    for record, vector in zip(records, odd, strict=True):
        stored = found[record.id]
        assert stored.record == record
        assert stored.vector is not None
        assert stored.vector.astype("<f2").tobytes() == vector.astype("<f2").tobytes()
        assert stored.content_sha256 == content_sha256(record.title, record.text, record.metadata)
    hits = store.search(
        SearchQuery(
            SearchMode.DENSE,
            5,
            embedding=unit(odd[1]),
            include_texts=True,
            include_embeddings=True,
            include_metadata=True,
        )
    )
    assert hits.ids[0] == "b" * 512
    assert hits.scores[0] == pytest.approx(1.0, abs=1e-6)
    place = hits.ids.index("ä/1")
    assert (hits.titles[place], hits.texts[place], hits.metadata[place]) == ("Größe", records[0].text, metadata[0])
    assert hits.vectors is not None
    assert hits.vectors[place].tobytes() == odd[0].tobytes()
    assert store.describe().fields == {
        "draft": FieldType.BOOL,
        "lang": FieldType.STRING,
        "tags": FieldType.STRINGS,
        "tiny": FieldType.NUMBER,
        "year": FieldType.NUMBER,
    }
    ((exported),) = store.export()
    assert (exported.encoder, exported.records) == (ENCODER, records[::-1])


def test_an_empty_store_finds_nothing_and_belongs_to_nobody(store: VectorStore) -> None:
    hits = store.search(dense(unit(vectors(1)[0]), 10))
    assert (hits.ids, hits.encoder) == ([], None)
    assert store.get(["x"], include_texts=True, include_embeddings=True) == {}
    assert store.delete(["x", "y"]) == ["x", "y"]
    assert store.list_ids("", 10) == []
    assert list(store.export()) == []
    assert (store.describe().record_count, store.describe().encoder) == (0, None)


def test_dense_search_is_brute_force_through_replacing_and_deleting(store: VectorStore) -> None:
    model: dict[str, NDArray[np.float16]] = {}
    generator = np.random.default_rng(5)
    for step in range(4):
        ids = [f"id{number}" for number in generator.permutation(60)[:25]]
        stored = batch(ids, seed=step)
        counts = store.upsert(stored)
        assert counts.updated == len(model.keys() & set(ids))
        assert counts.inserted == len(ids) - counts.updated
        model.update(zip(ids, stored.vectors, strict=True))
        gone = [f"id{number}" for number in generator.permutation(60)[:10]]
        assert store.delete(gone) == [id_ for id_ in gone if id_ not in model]
        for id_ in gone:
            model.pop(id_, None)
    assert store.describe().record_count == len(model)
    assert store.list_ids("", 1000) == sorted(model)
    assert store.list_ids("id3", 5) == [id_ for id_ in sorted(model) if id_ > "id3"][:5]
    query = unit(vectors(1, seed=99)[0])
    cosines = {id_: float(unit(vector).astype(np.float64) @ query) for id_, vector in model.items()}
    ranked = sorted(model, key=lambda id_: -cosines[id_])
    for k in (1, 7, 1000):
        hits = store.search(dense(query, k))
        assert hits.ids == ranked[:k]
        assert hits.scores == pytest.approx([cosines[id_] for id_ in ranked[:k]], abs=1e-5)
        assert (hits.cosines == hits.scores).all()
        assert hits.vectors is not None
        assert [row.tobytes() for row in hits.vectors] == [model[id_].tobytes() for id_ in hits.ids]


def test_equal_scores_stand_in_the_order_of_storing(store: VectorStore) -> None:
    vector = vectors(1)[0]
    for part in (["d", "a"], ["c", "b"]):
        records = tuple(Record(id_, "", "walrus") for id_ in part)
        store.upsert(RecordBatch(ENCODER, records, np.array([vector, vector])))
    store.upsert(batch([f"other{number}" for number in range(20)], seed=1))
    assert store.search(dense(unit(vector), 4)).ids == ["d", "a", "c", "b"]
    assert store.search(dense(unit(vector), 2)).ids == ["d", "a"]  # ties beyond k, too
    store.upsert(RecordBatch(ENCODER, (Record("d", "", "walrus"),), vector[np.newaxis]))  # a new version comes last
    assert store.search(dense(unit(vector), 4)).ids == ["a", "c", "b", "d"]


def test_another_encoder_is_refused_by_digest_and_by_dimension(store: VectorStore) -> None:
    store.upsert(batch(["a"]))
    with pytest.raises(EncoderMismatchError, match=OTHER.sha256):
        store.upsert(batch(["b"], encoder=OTHER))
    short = RecordBatch(Encoder(ENCODER.sha256, 4), (Record("b", "", ""),), np.ones((1, 4), np.float16))
    with pytest.raises(EncoderMismatchError, match="dimension 4"):
        store.upsert(short)
    query = unit(vectors(1)[0])
    with pytest.raises(EncoderMismatchError, match=OTHER.sha256):
        store.search(SearchQuery(SearchMode.DENSE, 1, embedding=query, encoder_sha256=OTHER.sha256))
    with pytest.raises(InvalidInputError, match=r"dimension .*limit 8, got 4"):
        store.search(dense(unit(np.ones(4, np.float16)), 1))
    assert store.list_ids("", 10) == ["a"]


ODD = 'odd "name\\ /\n\x01'
FILTERED: list[Metadata] = [
    {
        **({"lang": ["en", "de", "fr", "é", ""][number % 5]} if number % 7 else {}),
        **({"year": float(2000 + number % 30)} if number % 3 else {}),
        **({"draft": number % 2 == 0} if number % 5 else {}),
        **({"tags": (("a", "b c", "ü")[: number % 4])} if number % 4 else {}),
        **({ODD: "\x01\r\n'"} if number == 11 else {}),
    }
    for number in range(90)
]
FILTERS: list[Filter] = [
    F("lang") == "en",
    F("lang") != "en",
    F("lang") == "",
    F("lang") == "no such",
    F("lang").is_in("de", "é"),
    F("lang") > "de",
    F("lang") <= "é",
    F("year") == 2010,
    F("year") != 2010,
    F("year") >= 2020.5,
    F("year") < 2002,
    F("year").is_in(2001, 2002.0, 1.5),
    F("draft") == True,  # noqa: E712
    F("draft") != False,  # noqa: E712
    F("draft").exists(),
    ~F("draft").exists(),
    F("tags") == "a",
    F("tags") != "ü",
    F("tags").is_in("b c", "ü"),
    F("tags").exists(),
    F(ODD) == "\x01\r\n'",
    F(ODD).is_in('" or "" == "', "\\"),
    (F("lang") == "de") & (F("year") > 2010),
    (F("lang") == "de") | (F("year") > 2025) | (F("tags") == "ü"),
    ~((F("lang") == "de") & ~(F("year") > 2010)),
]


def test_filters_mean_what_the_reference_says(store: VectorStore) -> None:
    ids = [f"id{number:02}" for number in range(len(FILTERED))]
    store.upsert(batch(ids, metadata=FILTERED))
    query = unit(vectors(1, seed=4)[0])
    ranked = store.search(dense(query, 1000)).ids
    for condition in FILTERS:
        kept = {id_ for id_, metadata in zip(ids, FILTERED, strict=True) if matches(condition, metadata)}
        expected = [id_ for id_ in ranked if id_ in kept]
        assert store.search(dense(query, 1000, condition)).ids == expected, condition
        assert store.search(dense(query, 3, condition)).ids == expected[:3], condition
    for condition, problem in ((F("langs") == "x", "langs"), (F("year") == "2010", "year"), (F("tags") > "a", "tags")):
        with pytest.raises(InvalidInputError, match=f"filter: .*{problem}"):
            store.search(dense(query, 3, condition))


def test_any_filter_means_what_the_reference_says(store: VectorStore) -> None:
    generator = np.random.default_rng(3)
    known: list[Metadata] = [
        {
            name: [
                STRINGS[generator.integers(len(STRINGS))],
                NUMBERS[generator.integers(len(NUMBERS))],
                bool(generator.integers(2)),
                tuple(generator.choice(STRINGS, generator.integers(3)).tolist()),
            ][list(FieldType).index(kind)]
            for name, kind in TYPES.items()
            if generator.random() < 0.8
        }
        for _ in range(60)
    ]
    ids = [f"id{number:02}" for number in range(len(known))]
    store.upsert(batch(ids, metadata=known))
    query = unit(vectors(1, seed=4)[0])

    @settings(max_examples=30)
    @given(condition=filters)
    def check(condition: Filter) -> None:
        kept = {id_ for id_, metadata in zip(ids, known, strict=True) if matches(condition, metadata)}
        assert set(store.search(dense(query, 1000, condition)).ids) == kept

    check()


def test_a_field_has_one_type_and_a_refused_batch_leaves_nothing(store: VectorStore) -> None:
    store.upsert(batch(["a"], metadata=[{"year": 2020.0}]))
    with pytest.raises(InvalidInputError, match=r"records\[1\]: .*'year'.*'c'.*string.*number"):
        store.upsert(batch(["b", "c", "d"], metadata=[{"lang": "de"}, {"year": "2020"}, {}]))
    assert store.list_ids("", 10) == ["a"]
    assert store.describe().fields == {"year": FieldType.NUMBER}


@words_are_kept
def test_a_field_is_forgotten_with_its_last_record(store: VectorStore) -> None:
    store.upsert(batch(["a", "b"], metadata=[{"year": 2020.0}, {"year": 2021.0, "lang": "de"}]))
    store.delete(["b"])
    assert store.describe().fields == {"year": FieldType.NUMBER}
    store.upsert(batch(["a"], metadata=[{"year": "MMXX"}]))
    assert store.describe().fields == {"year": FieldType.STRING}


VOCABULARY = [
    "walrus",
    "walruses",
    "running",
    "run",
    "okapi",
    "Ärger",
    "café",
    "cafe",
    "the",
    "x1",
    "漢字",
    "東京都",
    "ไทย",
    "中",
]


def random_texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(VOCABULARY, generator.integers(1, 30))) for _ in range(count)]
    return [*texts[:-3], "", "y" * 3000 + " okapi", "don't-stop; e.g. naïve_words"]


@words_are_kept
def test_words_score_as_in_a_local_store(store: VectorStore, tmp_path: Path) -> None:
    reference = LocalVectorStore.open(tmp_path / "reference")
    with closing(reference):
        texts = random_texts(120, seed=1)
        ids = [f"id{number:03}" for number in range(120)]
        metadata: list[Metadata] = [{"part": float(number % 3)} for number in range(120)]
        for each in (store, reference):
            each.upsert(batch(ids[:80], texts=texts[:80], metadata=metadata[:80]))
            each.upsert(batch(ids[60:], seed=1, texts=texts[60:], metadata=metadata[60:]))
            each.delete(ids[:120:11])
        queries = ["walrus", "runs the okapi", "Café ärger", "中", "東京 the the", "naïve", "absent", "y" * 3000]
        query = unit(vectors(1, seed=6)[0])
        for text in queries:
            for condition in (None, F("part") == 1):
                shapes = [
                    SearchQuery(SearchMode.LEXICAL, 1000, text=text, filter=condition),
                    SearchQuery(SearchMode.LEXICAL, 4, text=text, filter=condition),
                    *(
                        SearchQuery(
                            SearchMode.HYBRID,
                            k,
                            embedding=query,
                            text=text,
                            filter=condition,
                            fusion=fusion,
                            lexical_weight=0.7,
                            cosine_map=CosineMap(2.0, 0.1, 0.3),
                        )
                        for k in (5, 1000)
                        for fusion in Fusion
                    ),
                ]
                for shape in shapes:
                    expected, found = reference.search(shape), store.search(shape)
                    assert found.ids == expected.ids, shape
                    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
                    assert found.bm25 == pytest.approx(expected.bm25, abs=1e-5)
                    assert found.cosines == pytest.approx(expected.cosines, abs=1e-5)
                    assert found.best_bm25 == pytest.approx(expected.best_bm25, abs=1e-5)
            expected_words, words = (each.word_scores(text, [*ids[:30], "absent"]) for each in (reference, store))
            assert words.scores == pytest.approx(expected_words.scores, abs=1e-5)
            assert words.best == pytest.approx(expected_words.best, abs=1e-5)


@pytest.mark.parametrize("kind", ["milvus"], indirect=True)
def test_a_store_without_words_says_so(store: VectorStore) -> None:
    store.upsert(batch(["a"]))
    with pytest.raises(InvalidInputError, match=r"mode: .*use DENSE"):
        store.search(SearchQuery(SearchMode.LEXICAL, 1, text="walrus"))
    with pytest.raises(InvalidInputError, match=r"text: .*no BM25"):
        store.word_scores("walrus", ["a"])


def test_collections_are_apart_and_aliases_move(catalog: Catalog) -> None:
    catalog.create("docs@v1", NO_QUOTA)
    catalog.create("docs@v2", Quota(records=3))
    with catalog.collection("docs@v1") as first, catalog.collection("docs@v2") as second:
        first.store.upsert(batch(["a", "b"], metadata=[{"n": 1.0}, {}]))
        second.store.upsert(batch(["a", "c"], encoder=OTHER, metadata=[{"n": "one"}, {}]))
        with pytest.raises(QuotaExceededError, match=r"records \(limit 3, got 4\)"):
            second.store.upsert(batch(["d", "e"], encoder=OTHER))
        assert second.store.upsert(batch(["c", "d"], encoder=OTHER)).inserted == 1
        assert first.store.list_ids("", 9) == ["a", "b"]
        assert second.store.list_ids("", 9) == ["a", "c", "d"]
        assert first.store.delete(["c"]) == ["c"]
        assert sorted(second.store.search(dense(unit(vectors(1)[0]), 9)).ids) == ["a", "c", "d"]
    with catalog.collection("default") as default:
        assert default.store.describe().record_count == 0
    assert [(info.name, info.usage.record_count) for info in catalog.collections()] == [
        ("default", 0),
        ("docs@v1", 2),
        ("docs@v2", 3),
    ]
    assert [info.usage.encoder for info in catalog.collections()] == [None, ENCODER, OTHER]
    with pytest.raises(CollectionExistsError):
        catalog.create("docs@v1", NO_QUOTA)

    assert catalog.set_alias(Alias("docs", "docs@v1", "host:1"), ENCODER.sha256) is None
    assert catalog.resolve("docs") == "docs@v1"
    with pytest.raises(EncoderMismatchError, match="stays as it was"):
        catalog.set_alias(Alias("docs", "docs@v2"), ENCODER.sha256)
    assert catalog.set_alias(Alias("docs", "docs@v2"), OTHER.sha256) == Alias("docs", "docs@v1", "host:1")
    assert catalog.aliases() == [Alias("docs", "docs@v2")]
    with catalog.collection("docs") as held:
        assert (held.name, held.store.describe().record_count) == ("docs@v2", 3)
    with pytest.raises(InvalidInputError, match="is an alias itself"):
        catalog.set_alias(Alias("latest", "docs"), None)
    with pytest.raises(CollectionExistsError):
        catalog.set_alias(Alias("docs@v1", "docs@v2"), None)
    with pytest.raises(CollectionExistsError):
        catalog.create("docs", NO_QUOTA)
    for name in ("docs@v2", "docs", "default"):
        with pytest.raises(CollectionInUseError):
            catalog.drop(name)

    catalog.drop("docs@v1")
    catalog.create("docs@v1", NO_QUOTA)
    with catalog.collection("docs@v1") as held:
        assert held.store.describe().encoder is None
    catalog.delete_alias("docs")
    for unknown in ("docs", "nothing"):
        with pytest.raises(CollectionNotFoundError), catalog.collection(unknown):
            pass
    with pytest.raises(CollectionNotFoundError):
        catalog.delete_alias("docs")
    with pytest.raises(CollectionNotFoundError):
        catalog.drop("nothing")


def test_of_a_collection_that_was_dropped_nothing_is_left_to_the_next(catalog: Catalog) -> None:
    catalog.create("docs", NO_QUOTA)
    with catalog.collection("docs") as held:
        held.store.upsert(batch(["a"], metadata=[{"year": "old"}]))
    catalog.drop("docs")
    catalog.create("docs", NO_QUOTA)
    with catalog.collection("docs") as held:
        assert dict(held.store.describe().fields) == {}
        held.store.upsert(batch(["b"], metadata=[{"year": 2020.0}]))


@pytest.mark.parametrize("kind", ["milvus"], indirect=True)
def test_a_drop_that_was_cut_short_can_be_repeated(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.create("docs", NO_QUOTA)
    with catalog.collection("docs") as held:
        held.store.upsert(batch(["a"], metadata=[{"year": "old"}]))
    delete = Names.delete

    def gone(names: Names, *path: str) -> None:
        raise StoreUnavailableError("the server went away")

    monkeypatch.setattr(Names, "delete", gone)
    with pytest.raises(StoreUnavailableError):
        catalog.drop("docs")
    monkeypatch.setattr(Names, "delete", delete)
    catalog.drop("docs")
    catalog.create("docs", NO_QUOTA)
    with catalog.collection("docs") as held:
        assert dict(held.store.describe().fields) == {}


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_what_another_sidecar_has_dropped_is_forgotten(store_url: str, open_catalog: Callable[[str], Catalog]) -> None:
    one, other = open_catalog(store_url), open_catalog(store_url)
    assert isinstance(other, PostgresCatalog)
    for number in range(3):
        one.create(f"docs@{number}", NO_QUOTA)
        with other.collection(f"docs@{number}") as held:
            assert held.store.describe().record_count == 0
        one.drop(f"docs@{number}")
    with other.collection("default"):
        assert len(other._stores) == 1


@pytest.mark.parametrize("kind", ["milvus"], indirect=True)
def test_an_alias_gives_way_to_a_first_batch_that_binds_its_collection_meanwhile(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus has nothing to hold it off with, as the others do."""
    from resrank.retrieval.milvus.names import Names

    catalog.create("v1", NO_QUOTA)
    catalog.create("v2", NO_QUOTA)
    catalog.set_alias(Alias("docs", "v2"), None)
    write = Names.write

    def after_a_batch(self: Names, facts: dict[str, Any], kind: str, *name: str) -> None:
        if facts == {"collection": "v1", "triton": "h:1"}:
            with catalog.collection("v1") as held:
                held.store.upsert(batch(["a"], encoder=OTHER))
        write(self, facts, kind, *name)

    monkeypatch.setattr(Names, "write", after_a_batch)
    for name in ("docs", "new"):
        with pytest.raises(EncoderMismatchError, match=f"belongs to encoder {OTHER.sha256}"):
            catalog.set_alias(Alias(name, "v1", "h:1"), ENCODER.sha256)
    assert catalog.aliases() == [Alias("docs", "v2")]


def test_everything_is_exported_in_the_order_of_ids(store: VectorStore) -> None:
    names = [f"id{number}" for number in range(120)]
    stored = batch(names, metadata=FILTERED + FILTERED[:30])
    store.upsert(stored)
    parts = list(store.export())
    records = [record for part in parts for record in part.records]
    by_id = {
        record.id: (record, vector.tobytes()) for record, vector in zip(stored.records, stored.vectors, strict=True)
    }
    assert [record.id for record in records] == sorted(names)
    assert all(record == by_id[record.id][0] for record in records)
    exported = [vector.tobytes() for part in parts for vector in part.vectors]
    assert exported == [by_id[record.id][1] for record in records]


@words_are_kept
def test_an_export_is_of_one_moment(store: VectorStore) -> None:
    names = [f"id{number:04}" for number in range(1100)]
    store.upsert(batch(names))
    with closing(store.export()) as parts:
        found = list(next(parts).records)
        assert len(found) < len(names)
        store.upsert(batch(["id1050", "later"], seed=2, texts=["changed", "new"]))
        store.delete(["id1060"])
        found += [record for part in parts for record in part.records]
    assert [record.id for record in found] == names
    assert {record.text for record in found} == {"walrus"}


@pytest.mark.parametrize("kind", ["postgresql", "milvus"], indirect=True)
def test_two_that_serve_one_store_write_and_read_at_once(
    store_url: str, open_catalog: Callable[[str], Catalog]
) -> None:
    first, second = open_catalog(store_url), open_catalog(store_url)
    catalogs = {0: first, 1: second}
    failures: list[Exception] = []

    def fill(which: int) -> None:
        try:
            with catalogs[which].collection("default") as held:
                for number in range(6):
                    ids = [f"{which}-{number}-{row}" for row in range(10)]
                    held.store.upsert(batch([*ids, "shared"], seed=number))
                    with catalogs[1 - which].collection("default") as other:
                        assert len(other.store.get(ids, include_texts=False, include_embeddings=False)) == 10
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=fill, args=(which,)) for which in catalogs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for each in catalogs.values():
        with each.collection("default") as held:
            assert held.store.describe().record_count == 121
            assert len(held.store.search(dense(unit(vectors(1)[0]), 1000)).ids) == 121
            assert len(held.store.list_ids("", 1000)) == 121
    second.create("new", NO_QUOTA)
    second.set_alias(Alias("name", "new"), None)
    assert first.resolve("name") == "new"
