from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrank.core.errors import EncoderMismatchError, InvalidInputError, RetrievalError
from resrank.core.fusion import IDENTITY, CosineMap, Fusion
from resrank.core.passage import content_sha256
from resrank.core.search import SearchMode
from resrank.retrieval.errors import StoreWriteError
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.snapshot import SNAPSHOT_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import Encoder, FloatVector, Record, RecordBatch, SearchQuery, UpsertCounts

OpenStore = Callable[..., LocalVectorStore]
BatchOf = Callable[..., RecordBatch]


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def dense(vector: np.ndarray, k: int = 10, **options: bool | str) -> SearchQuery:
    return SearchQuery(SearchMode.DENSE, k, embedding=unit(vector), **options)


def lexical(text: str, k: int = 10) -> SearchQuery:
    return SearchQuery(SearchMode.LEXICAL, k, text=text)


def test_empty_folder_answers_with_nothing(open_store: OpenStore) -> None:
    store = open_store()
    for query in (dense(np.ones(5)), lexical("anything"), SearchQuery(SearchMode.HYBRID, 3, unit(np.ones(5)), "any")):
        hits = store.search(query)
        assert (hits.ids, hits.scores.tolist(), hits.encoder) == ([], [], None)
    assert store.describe().record_count == 0
    assert store.delete(["a"]) == ["a"]
    assert store.get(["a"], include_texts=True, include_embeddings=True) == {}


def test_a_batch_is_found_by_vector_and_by_word(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of(["a", "b", "c"])
    assert store.upsert(batch) == UpsertCounts(inserted=3, updated=0)
    hits = store.search(dense(batch.vectors[1], 2, include_texts=True, include_embeddings=True))
    assert hits.ids[0] == "b"
    assert hits.scores[0] == pytest.approx(1, abs=1e-6)
    assert (hits.titles[0], hits.texts[0]) == ("title b", "text of b")
    assert hits.vectors is not None
    assert hits.vectors[0].tobytes() == batch.vectors[1].tobytes()
    assert store.search(lexical("c")).ids == ["c"]


def test_hybrid_is_the_fusion_of_both_lists(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of([f"doc{number}" for number in range(30)])
    store.upsert(batch)
    by_vector = store.search(dense(batch.vectors[3], 30)).ids
    hits = store.search(SearchQuery(SearchMode.HYBRID, 30, unit(batch.vectors[3]), "doc9", fusion=Fusion.RRF))
    expected = {id_: 1 / (60 + rank) for rank, id_ in enumerate(by_vector, start=1)}
    expected["doc9"] += 1 / 61
    assert dict(zip(hits.ids, hits.scores, strict=True)) == pytest.approx(expected)
    assert hits.ids[0] == "doc9"
    assert set(hits.stage_ms) == {"dense", "lexical", "fusion", "gather"}


def test_the_words_of_records_that_were_found_otherwise(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    store.upsert(batch_of(["a", "b", "c"]))
    found = store.search(lexical("b title"))
    words = store.word_scores("b title", ["c", "x", "b"])
    searched = dict(zip(found.ids, found.scores.tolist(), strict=True))
    assert words.scores == pytest.approx({"c": searched["c"], "b": searched["b"]})
    assert words.best == pytest.approx(found.best_bm25)
    assert store.word_scores("b", ["c"]).scores == {"c": 0.0}


WORDS = ("lava", "ash", "salt", "owl", "fern", "tide")


@given(st.data())
@settings(max_examples=40)
def test_hybrid_is_the_best_of_the_whole_index_with_the_parts_of_each_score(data: st.DataObject) -> None:
    """Against a computation over every record: cosines here, BM25 from a search by words alone, joined by the rule."""
    texts = data.draw(st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=30))
    directions = data.draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    distinct = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float16)
    records = tuple(Record(f"r{place:02}", "", text) for place, text in enumerate(texts))
    query = unit(np.random.default_rng(6).normal(size=8))
    words = " ".join(data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)))
    weight = data.draw(st.sampled_from([0.0, 0.3, 2.0]))
    cosine_map = data.draw(st.sampled_from([IDENTITY, CosineMap(4.84, 0.72, 0.05)]))
    k = data.draw(st.integers(1, 35))
    with tempfile.TemporaryDirectory() as folder, closing(LocalVectorStore.open(Path(folder))) as store:
        store.upsert(RecordBatch(Encoder("a" * 64, 8), records, distinct[directions]))
        by_word = store.search(lexical(words, 100))
        options = {"lexical_weight": weight, "cosine_map": cosine_map}
        hits = store.search(SearchQuery(SearchMode.HYBRID, k, query, words, **options))
        longer = store.search(SearchQuery(SearchMode.HYBRID, 40, query, words, **options))
        by_rank = store.search(SearchQuery(SearchMode.HYBRID, k, query, words, fusion=Fusion.RRF))
    wide = distinct[directions].astype(np.float64)
    cosines = dict(zip([record.id for record in records], wide @ query / np.linalg.norm(wide, axis=1), strict=True))
    bm25 = dict(zip(by_word.ids, by_word.scores.tolist(), strict=True))
    best = max(bm25.values(), default=0.0)
    joint = {
        id_: cosine_map.slope * (cosine - cosine_map.center)
        + cosine_map.offset
        + (weight * bm25.get(id_, 0) / best if best else 0)
        for id_, cosine in cosines.items()
    }
    assert hits.scores.tolist() == pytest.approx(sorted(joint.values(), reverse=True)[:k], abs=1e-5)
    assert [joint[id_] for id_ in hits.ids] == pytest.approx(hits.scores.tolist(), abs=1e-5)
    assert hits.cosines.tolist() == pytest.approx([cosines[id_] for id_ in hits.ids], abs=1e-6)
    for found in (hits, by_rank):
        assert found.bm25.tolist() == pytest.approx([bm25.get(id_, 0) for id_ in found.ids], rel=1e-6)
        assert found.best_bm25 == pytest.approx(best, rel=1e-6)
        assert len(found.cosines) == len(found.ids) == min(k, len(records))
    assert hits.ids == longer.ids[:k]
    ties = zip(longer.ids, longer.scores.tolist(), strict=True)
    assert longer.ids == [id_ for id_, _ in sorted(ties, key=lambda tie: (-tie[1], tie[0]))], "ties go by key"


@pytest.mark.parametrize("mode", list(SearchMode))
@pytest.mark.parametrize("fusion", list(Fusion))
def test_what_k_finds_among_equals_is_the_beginning_of_what_more_finds(
    open_store: OpenStore, mode: SearchMode, fusion: Fusion
) -> None:
    vector = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float16)
    records = tuple(Record(f"d{number:03}", "", "same words") for number in range(300))
    store = open_store()
    store.upsert(RecordBatch(Encoder("a" * 64, 32), records, np.repeat(vector, 300, 0)))
    for k in (5, 10, 100, 150, 300):
        hits = store.search(SearchQuery(mode, k, unit(vector[0]), "words", fusion=fusion))
        assert hits.ids == [record.id for record in records[:k]]


def test_an_approximate_index_reports_the_cosines_of_what_is_stored(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store(dense_index="SQ4")
    batch = batch_of([str(number) for number in range(10_000)])
    store.upsert(batch)
    store.maintain()
    query = unit(batch.vectors[7])
    wide = batch.vectors.astype(np.float64)
    cosines = wide @ query / np.linalg.norm(wide, axis=1)
    for hits in (
        store.search(dense(batch.vectors[7])),
        store.search(SearchQuery(SearchMode.HYBRID, 10, query, "title")),
    ):
        assert hits.cosines.tolist() == pytest.approx([cosines[int(id_)] for id_ in hits.ids], abs=1e-6)


def test_replacing_leaves_nothing_of_the_old_version(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    old = batch_of(["a", "b"], text="zebra")
    store.upsert(old)
    new = batch_of(["b", "c"], text="walrus", seed=1)
    assert store.upsert(new) == UpsertCounts(inserted=1, updated=1)
    assert sorted(store.search(dense(old.vectors[1])).ids) == ["a", "b", "c"]
    assert store.search(lexical("zebra")).ids == ["a"]
    assert sorted(store.search(lexical("walrus")).ids) == ["b", "c"]
    stored = store.get(["b"], include_texts=True, include_embeddings=True)["b"]
    assert stored.record.text == "walrus"
    assert stored.vector is not None
    assert stored.vector.tobytes() == new.vectors[0].tobytes()
    assert stored.content_sha256 == content_sha256("title b", "walrus", {"n": "b"})


def test_delete_names_what_was_missing(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of(["a", "b", "c"])
    store.upsert(batch)
    assert store.delete(["b", "x", "a", "y"]) == ["x", "y"]
    assert store.search(dense(batch.vectors[1])).ids == ["c"]
    assert store.search(lexical("title")).ids == ["c"]


@pytest.mark.parametrize(
    "text", ["", "NUL \0 inside", "<|im_end|>", "emoji 🦭", "e\u0301", "'; DROP TABLE records; --"]
)
def test_any_text_comes_back_as_it_was(open_store: OpenStore, text: str) -> None:
    store = open_store()
    record = Record(id="🦭 id", title=text, text=text, metadata={text: text, "plain": "x"})
    store.upsert(RecordBatch(Encoder("a" * 64, 2), (record,), np.ones((1, 2), np.float16)))
    assert store.get(["🦭 id"], include_texts=True, include_embeddings=False)["🦭 id"].record == record


def test_another_encoder_is_refused_even_of_equal_dimension(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of(["a"])
    store.upsert(batch)
    other = Encoder("b" * 64, batch.encoder.dimension)
    with pytest.raises(EncoderMismatchError, match=rf"{'a' * 64}.*{'b' * 64}"):
        store.upsert(batch_of(["x"], encoder=other))
    with pytest.raises(EncoderMismatchError, match=r"dimension 8.*dimension 9"):
        store.upsert(batch_of(["x"], encoder=Encoder("a" * 64, 9)))
    with pytest.raises(EncoderMismatchError, match="b" * 64):
        store.search(dense(batch.vectors[0], encoder_sha256="b" * 64))
    with pytest.raises(InvalidInputError, match=r"embedding: .*limit 8, got 7"):
        store.search(dense(np.ones(7)))
    assert store.search(dense(batch.vectors[0], encoder_sha256="a" * 64)).ids == ["a"]


def test_the_encoder_stays_when_all_records_go(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    store.upsert(batch_of(["a"]))
    store.delete(["a"])
    store.close()
    assert open_store().describe().encoder == Encoder("a" * 64, 8)


@pytest.mark.parametrize("dense_index", ["Flat", "HNSW8"])
def test_reopening_finds_the_same(open_store: OpenStore, batch_of: BatchOf, dense_index: str) -> None:
    batch = batch_of([str(number) for number in range(200)])
    store = open_store(dense_index=dense_index)
    store.upsert(batch)
    store.delete(["3", "77"])
    before = store.search(dense(batch.vectors[5], 50, include_embeddings=True))
    store.close()
    after = open_store(dense_index=dense_index).search(dense(batch.vectors[5], 50, include_embeddings=True))
    assert (after.ids, after.scores.tolist()) == (before.ids, before.scores.tolist())
    assert after.vectors is not None
    assert before.vectors is not None
    assert after.vectors.tobytes() == before.vectors.tobytes()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), spoil, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 500)],
    ids=["missing", "bit flip", "empty", "foreign"],
)
def test_a_damaged_snapshot_costs_only_time(
    open_store: OpenStore, batch_of: BatchOf, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    batch = batch_of([str(number) for number in range(50)])
    store = open_store()
    store.upsert(batch)
    expected = store.search(dense(batch.vectors[7])).ids
    store.close()
    damage(tmp_path / "index" / SNAPSHOT_FILE)
    assert open_store().search(dense(batch.vectors[7])).ids == expected


def test_an_old_snapshot_is_brought_up_to_date(open_store: OpenStore, batch_of: BatchOf, tmp_path: Path) -> None:
    store = open_store()
    first = batch_of([str(number) for number in range(50)])
    store.upsert(first)
    store.close()
    snapshot = (tmp_path / "index" / SNAPSHOT_FILE).read_bytes()
    store = open_store()
    second = batch_of(["7", "new"], seed=5)
    store.upsert(second)
    store.delete(["3"])
    store.close()
    # As after a crash: the snapshot is of before the last writes.
    (tmp_path / "index" / SNAPSHOT_FILE).write_bytes(snapshot)
    store = open_store()
    assert sorted(store.search(dense(first.vectors[0], 100)).ids) == sorted({*map(str, range(50)), "new"} - {"3"})
    hits = store.search(dense(second.vectors[0], 1, include_embeddings=True))
    assert hits.ids == ["7"]
    assert hits.vectors is not None
    assert hits.vectors.tobytes() == second.vectors[0].tobytes()


def test_a_failing_dense_index_is_built_anew_from_the_store(
    open_store: OpenStore, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    batch = batch_of(["a", "b"])
    store.upsert(batch)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(FaissDenseIndex, "apply", fail)
        added = batch_of(["c"], seed=4)
        store.upsert(added)
    assert store.search(dense(added.vectors[0], 1)).ids == ["c"]


def test_maintenance_compacts_without_changing_answers(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    ids = [str(number) for number in range(600)]
    for seed in range(4):
        batch = batch_of(ids, seed=seed)
        store.upsert(batch)
    query = dense(batch.vectors[9], 20, include_embeddings=True)
    before = store.search(query)
    assert store._dense is not None
    assert store._dense.table.dead == 1800
    store.maintain()
    assert store._dense.table.dead == 0
    after = store.search(query)
    assert after.ids == before.ids
    assert after.vectors is not None
    assert before.vectors is not None
    assert after.vectors.tobytes() == before.vectors.tobytes()


def test_a_failed_write_stores_nothing_and_leaves_the_rest_readable(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of([str(number) for number in range(100)])
    store.upsert(batch)
    writer = store._database._writer
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreWriteError, match="full"):
        store.upsert(batch_of([f"new{number}" for number in range(500)], text="walrus " * 50))
    assert store.describe().record_count == 100
    assert store.search(lexical("walrus")).ids == []
    assert store.search(dense(batch.vectors[42], 1)).ids == ["42"]
    writer.execute("PRAGMA max_page_count = 1000000")
    assert store.upsert(batch_of(["later"])).inserted == 1


def test_a_read_only_store_refuses_writes_and_answers_reads(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    batch = batch_of(["a"])
    store.upsert(batch)
    store._database._writer.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreWriteError, match="readonly"):
        store.upsert(batch_of(["b"]))
    with pytest.raises(StoreWriteError, match="readonly"):
        store.delete(["a"])
    assert store.search(dense(batch.vectors[0])).ids == ["a"]


def test_a_factory_that_does_not_fit_the_dimension_stores_nothing(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store(dense_index="PQ48x8")
    with pytest.raises(InvalidInputError, match="dimension 8"):
        store.upsert(batch_of(["a"]))
    assert store.describe().encoder is None


def test_searches_never_see_half_a_batch(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    ids = [str(number) for number in range(40)]
    versions = [batch_of(ids, seed=seed, text=f"version{seed}") for seed in range(12)]
    store.upsert(versions[0])
    done = threading.Event()
    torn: list[object] = []

    def look() -> None:
        while not done.is_set():
            hits = store.search(dense(versions[0].vectors[0], 40, include_texts=True, include_embeddings=True))
            seeds = set(hits.texts)
            if len(hits.ids) != 40 or len(seeds) != 1 or hits.vectors is None:
                torn.append((len(hits.ids), seeds))
                return
            version = versions[int(seeds.pop().removeprefix("version"))]
            if any(
                hits.vectors[row].tobytes() != version.vectors[int(id_)].tobytes() for row, id_ in enumerate(hits.ids)
            ):
                torn.append("vectors")
                return

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in versions[1:]:
        store.upsert(version)
        store.maintain()
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_errors_of_a_closed_database_are_resrank_errors(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    store.upsert(batch_of(["a"]))
    store.close()
    with pytest.raises(RetrievalError):
        store.upsert(batch_of(["b"]))


def test_commits_are_flushed_to_the_disk_before_they_are_acknowledged(open_store: OpenStore) -> None:
    # A killed process cannot show it, since the kernel keeps what it was given; a power cut would.
    writer = open_store()._database._writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"
