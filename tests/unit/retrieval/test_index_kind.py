"""Kinds of FAISS indexes: which are refused before anything is stored, and that what is stored is found in any case."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.search import SearchMode
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.index_kind import require_usable
from resrank.retrieval.local.snapshot import SNAPSHOT_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import RecordBatch, SearchQuery

OpenStore = Callable[..., LocalVectorStore]
BatchOf = Callable[..., RecordBatch]

LARGE_LISTS = ["IVF65536,Flat", "IVF262144_HNSW32,SQfp16", "OPQ48_384,IVF262144_HNSW32,PQ48", "IVF64k_HNSW32,PQ96x4fsr"]
USABLE = [
    "Flat",
    "HNSW32",
    "HNSW32_SQfp16",
    "HNSW8_SQ8",
    "HNSW16_PQ48",
    "IVF4096,SQfp16",
    "IVF4096,PQ48",
    "IVF256,Flat",
    "SQ4",
    "SQ8",
    "PQ48",
    "PQ48x10",
    "PCA64,IVF16,SQ8",
    "OPQ96_384,IVF4096_HNSW32,PQ96x4fsr",
    "IVF4096,PQ48,RFlat",
    "RQ4x8",
    "IVF65536(IVF256,Flat),Flat",
    *LARGE_LISTS,
]


@pytest.mark.parametrize("factory", USABLE)
def test_what_the_documentation_names_is_usable_and_tried_quietly(
    factory: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for dimension in (None, 384):
        require_usable.__wrapped__(factory, "", dimension)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("IDMap,Flat", "FAISS cannot add vectors to 'IDMap,Flat' batch by batch"),
        ("IDMap2,HNSW8", "FAISS cannot add vectors"),
        ("NSG16,Flat", "FAISS cannot add vectors"),
        ("IVF16_NSG16,Flat", "FAISS cannot train 'IVF16_NSG16,Flat' for dimension 64"),
        ("OPQ7_30,SQ8", "FAISS cannot train"),
        ("PCA65,Flat", "FAISS cannot train"),
        ("PQ7x8", "FAISS's index_factory refuses 'PQ7x8' for dimension 64"),
        ("IVF99999999999,Flat", "FAISS's index_factory refuses"),
        ("PQ8x16", "codebooks have at most 13 bits here"),
        # These end the process, or never end.
        ("SQ8,Refine(IVF16,Flat)", "FAISS cannot train"),
        ("HNSW0", "a number in 'HNSW0' is too small"),
        ("IVF16_HNSW1,Flat", "a number in 'IVF16_HNSW1,Flat' is too small"),
        ("IVF1024_NSG2,Flat", "a number in"),
        ("PQ8x0", "a number in"),
        ("IVF16,PQ8x4fs_0", "a number in"),
    ],
)
def test_a_kind_that_cannot_do_what_a_store_does_is_refused(factory: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        require_usable(factory, "", 64)
    assert caught.value.field == "dense_index"
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", ["PCA1000,SQ8", "OPQ7,SQ8"])
def test_what_depends_on_the_dimension_is_left_open_until_that_is_known(factory: str) -> None:
    require_usable(factory, "")
    with pytest.raises(InvalidInputError, match=r"dense_index: FAISS cannot train .* for dimension 64"):
        require_usable(factory, "", 64)


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("HNSW8", "nprobe=16"),
        ("HNSW8", "efSearch"),
        ("IVF2,Flat", "efSearch=16"),
        ("IVF2,Flat", "nprobe=0"),
        ("Flat", "efSearch=16"),
        ("HNSW8,RFlat", "k_factor_rf=0"),
        ("RQ4x8", "nprobe=16"),
    ],
)
def test_search_parameters_that_do_not_fit_are_refused_while_the_store_is_empty(
    open_store: OpenStore, tmp_path: Path, factory: str, parameters: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_store(tmp_path / "never", dense_index=factory, dense_search_parameters=parameters)
    assert caught.value.field == "dense_search_parameters"
    assert repr(parameters) in str(caught.value)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("HNSW8", "efSearch=64"),
        ("IVF4096,PQ48", "nprobe=512"),  # more than the lists that are tried
        ("IVF4096_HNSW32,PQ48", "nprobe=64,quantizer_efSearch=128"),
        ("OPQ48_384,IVF64,PQ48,RFlat", "nprobe=8,k_factor_rf=4"),
        ("RQ4x8", ""),
    ],
)
def test_search_parameters_that_fit_are_taken(factory: str, parameters: str) -> None:
    require_usable(factory, parameters)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "NSG16,Flat"])
def test_a_kind_that_takes_no_batches_is_refused_at_each_start(
    open_store: OpenStore, batch_of: BatchOf, tmp_path: Path, factory: str
) -> None:
    with pytest.raises(InvalidInputError, match="dense_index"):
        open_store(dense_index=factory)
    assert not (tmp_path / "index").exists()
    store = open_store()
    store.upsert(batch_of(["a"]))
    store.close()
    with pytest.raises(InvalidInputError, match="dense_index"):
        open_store(dense_index=factory)
    assert open_store().describe().record_count == 1, "the folder was given back"


def test_a_kind_that_cannot_be_trained_in_the_first_batch_s_dimension_stores_nothing(
    open_store: OpenStore, batch_of: BatchOf
) -> None:
    store = open_store(dense_index="PCA16,SQ8")
    with pytest.raises(InvalidInputError, match="dense_index: FAISS cannot train 'PCA16,SQ8' for dimension 8"):
        store.upsert(batch_of(["a"]))
    assert (store.describe().encoder, store.describe().record_count) == (None, 0)


def fail(*_: object) -> None:
    raise RuntimeError("Error in virtual void faiss::IndexIDMap::add")


def fail_to_add(_: object, vectors: np.ndarray) -> None:
    if len(vectors):
        fail()


def found(store: LocalVectorStore, batch: RecordBatch) -> list[str]:
    vector = batch.vectors[0].astype(np.float32)
    return store.search(SearchQuery(SearchMode.DENSE, 1, vector / np.linalg.norm(vector))).ids


@pytest.mark.parametrize("kind", ["Flat", "HNSW8"])
def test_what_is_stored_is_found_when_faiss_fails_after_the_commit_and_at_the_next_start(
    open_store: OpenStore,
    batch_of: BatchOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    kind: str,
) -> None:
    store, first, second = open_store(dense_index=kind), batch_of(["a", "b"]), batch_of(["c"], seed=3)
    with monkeypatch.context() as patch:
        patch.setattr("resrank.retrieval.local.dense._add", fail_to_add)
        patch.setattr("resrank.retrieval.local.flat_index.FlatIndex.follow", fail)
        for batch in (first, second):
            assert store.upsert(batch).inserted == len(batch.records)
            assert found(store, batch) == [batch.records[0].id]
        assert "a flat one over what is stored stands in" in caplog.text
        store.maintain()
        shutil.copytree(tmp_path / "index", tmp_path / "crashed")  # as kill -9 would leave it: without a snapshot
        caplog.clear()
        again = open_store(tmp_path / "crashed", dense_index=kind)
        assert found(again, second) == ["c"]
        assert ("FAISS cannot build the dense index" in caplog.text) == (kind != "Flat")
    monkeypatch.setattr("resrank.retrieval.local.dense.training_points", lambda _: 3)
    again.maintain()  # tries it again
    assert again.describe().dense_index == kind
    assert found(again, second) == ["c"]


def test_a_snapshot_that_cannot_be_extended_costs_only_time(
    open_store: OpenStore, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store(dense_index="HNSW8")
    store.upsert(batch_of([str(number) for number in range(50)]))
    store.close()
    snapshot = (tmp_path / "index" / SNAPSHOT_FILE).read_bytes()
    store, batch = open_store(dense_index="HNSW8"), batch_of(["late"], seed=7)
    store.upsert(batch)
    store.close()
    (tmp_path / "index" / SNAPSHOT_FILE).write_bytes(snapshot)  # as after a crash
    with monkeypatch.context() as patch:
        patch.setattr(FaissDenseIndex, "apply", fail)
        store = open_store(dense_index="HNSW8")
    assert found(store, batch) == ["late"]
