"""A GPU beside the CPU, with CPU indexes in its place: everything but the transfer. And what is refused, for real."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.retrieval.local import dense_device
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.dense_device import DenseDevice, open_device
from resrank.retrieval.local.kept_rows import KeptRows
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import FloatVector, HalfMatrix

D = 16
NOTHING = np.empty(0, np.int64)
NO_VECTORS = np.empty((0, D), np.float16)


class Rounded:
    """What a GPU's flat index computes with: fp16 vectors and queries."""

    def __init__(self, dimension: int) -> None:
        kinds: Any = faiss
        self.inner = kinds.IndexScalarQuantizer(dimension, kinds.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self.room: int | None = None
        self.asked = 0

    def add(self, vectors: np.ndarray) -> None:
        if self.room is not None and self.inner.ntotal + len(vectors) > self.room:
            raise RuntimeError("StandardGpuResources: alloc fail type FlatData dev 0\nout of memory")
        self.inner.add(vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        return self.inner.search(queries.astype(np.float16).astype(np.float32), k)  # type: ignore[no-any-return]


def faiss_with(gpus: int, made: list[Rounded] | None = None, room: int | None = None) -> Any:
    def flat(_: object, dimension: int, config: Any) -> Rounded:
        assert config.useFloat16
        index = Rounded(dimension)
        index.room = room
        if made is not None:
            made.append(index)
        return index

    return SimpleNamespace(
        get_num_gpus=lambda: gpus,
        StandardGpuResources=lambda: SimpleNamespace(setTempMemory=lambda bytes_: None),
        GpuIndexFlatConfig=SimpleNamespace,
        GpuClonerOptions=SimpleNamespace,
        GpuIndexFlatIP=flat,
        index_cpu_to_gpu=lambda _resources, _number, index, _options: faiss.clone_index(index),
    )


def gpu(made: list[Rounded] | None = None, room: int | None = None) -> DenseDevice:
    device = open_device("gpu", faiss_with(1, made, room))
    assert device is not None
    return device


def half(count: int, seed: int = 0, spread: float = 1.0) -> HalfMatrix:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=D) + spread * rng.normal(size=(count, D))).astype(np.float16)


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def table_of(vectors: HalfMatrix) -> VectorTable:
    return VectorTable(np.arange(1, len(vectors) + 1), VectorSegment.of(vectors))


@given(data=st.data())
@settings(max_examples=25)
def test_a_gpu_answers_what_the_cpu_answers(data: st.DataObject) -> None:
    vectors = half(400, spread=data.draw(st.sampled_from([1e-4, 1e-2, 1.0])))
    made: list[Rounded] = []
    pair = [FaissDenseIndex.build("Flat", "", table_of(vectors[:300]), device) for device in (None, gpu(made))]
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    removed = np.flatnonzero(rng.random(300) < data.draw(st.sampled_from([0.0, 0.1, 0.6]))) + 1
    mask = rng.random(400) < 0.3
    answers = []
    query = unit(rng.normal(size=D) if data.draw(st.booleans()) else vectors[7])
    k = data.draw(st.integers(1, 450))
    for dense in pair:
        dense.apply(removed, np.arange(301, 401), vectors[300:])
        kept_mask = mask & dense.table.alive
        for kept in (None, KeptRows(kept_mask, dense.table.keys[kept_mask])):
            keys, cosines = dense.search(query, k, kept)
            answers.append((keys.tolist(), cosines.tolist()))
    assert answers[:2] == answers[2:]
    assert made[0].inner.ntotal == 400


def test_a_gpu_is_asked_without_a_filter_and_left_alone_with_one() -> None:
    made: list[Rounded] = []
    dense = FaissDenseIndex.build("Flat", "", table_of(half(400)), gpu(made))
    assert dense.description == "Flat (gpu:0)"
    dense.search(unit(half(1, 3)[0]), 10)
    assert made[0].asked == 1
    mask = np.arange(400) % 2 == 0
    dense.search(unit(half(1, 3)[0]), 10, KeptRows(mask, dense.table.keys[mask]))
    assert made[0].asked == 1


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF8,SQfp16"])
def test_an_inverted_file_is_copied_to_it_with_its_probes(factory: str) -> None:
    vectors = half(10_500)
    cpu = FaissDenseIndex.build(factory, "nprobe=8", table_of(vectors))
    dense = FaissDenseIndex.build(factory, "nprobe=8", table_of(vectors), gpu())
    assert dense.description == f"{factory} (gpu:0)"
    for seed in range(5):
        query = unit(half(1, seed)[0])
        keys, cosines = dense.search(query, 20)
        _, expected = cpu.search(query, 20)
        assert (cosines >= expected).all(), "it is asked for some more, of which the best come first"
        assert dense.cosines(query, keys).tolist() == cosines.tolist()


def test_more_than_it_gives_back_comes_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrank.retrieval.local.dense.MOST_RESULTS", 50)
    dense = FaissDenseIndex.build("Flat", "", table_of(half(400)), gpu())
    assert len(dense.search(unit(half(1, 3)[0]), 300)[0]) == 300


def test_vectors_that_do_not_fit_are_an_error_that_names_their_bytes() -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"dense_device: gpu:0 does not take 'Flat' over 400 vectors, 12800 bytes in fp16: .*memory",
    ):
        FaissDenseIndex.build("Flat", "", table_of(half(400)), gpu(room=399))


def test_when_it_is_full_the_cpu_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    vectors = half(500)
    dense = FaissDenseIndex.build("Flat", "", table_of(vectors[:400]), gpu(room=450))
    dense.apply(NOTHING, np.arange(401, 501), vectors[400:])
    assert "the CPU searches alone" in caplog.text
    assert dense.description == "Flat"
    assert dense.search(unit(vectors[450]), 1)[0].tolist() == [451]


def test_a_compaction_and_a_new_map_keep_it() -> None:
    made: list[Rounded] = []
    dense = FaissDenseIndex.build("Flat", "", table_of(half(400)), gpu(made))
    dense.apply(np.arange(1, 201), NOTHING, NO_VECTORS)
    fresh = dense.rebuilt()
    assert (dense.description, fresh.description) == ("Flat", "Flat (gpu:0)")
    assert [index.inner.ntotal for index in made] == [400, 200]
    assert fresh.over(fresh.table).description == "Flat (gpu:0)"
    assert len(made) == 2


def test_a_compaction_that_it_does_not_take_stays_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    kinds = faiss_with(1)
    device = open_device("gpu", kinds)
    dense = FaissDenseIndex.build("Flat", "", table_of(half(400)), device)
    dense.apply(np.arange(1, 201), NOTHING, NO_VECTORS)
    kinds.GpuIndexFlatIP = faiss_with(1, room=100).GpuIndexFlatIP
    fresh = dense.rebuilt()
    assert (fresh.description, fresh.table.rows) == ("Flat", 200)
    assert "the CPU searches alone" in caplog.text


def test_which_gpu_there_is() -> None:
    assert open_device("cpu", faiss_with(0)) is None
    device = open_device("gpu:1", faiss_with(2))
    assert device is not None
    assert device.name == "gpu:1"
    with pytest.raises(InvalidInputError, match=r"dense_device: FAISS finds gpu:0 to gpu:1, got gpu:2"):
        open_device("gpu:2", faiss_with(2))
    with pytest.raises(
        InvalidInputError,
        match=r"dense_device: FAISS finds no GPU on this machine, or no driver of it, got gpu: use cpu",
    ):
        open_device("gpu", faiss_with(0))
    with pytest.raises(InvalidInputError, match=r"IVFn,SQ…, not 'HNSW8': use cpu"):
        device.require_kind(faiss.index_factory(D, "HNSW8", faiss.METRIC_INNER_PRODUCT), "HNSW8")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS is the GPU build")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dense-device", "gpu"], "dense_device: gpu needs FAISS's GPU build, and this is the CPU's: "),
        (["--dense-device", "gpu:x"], "dense_device: must be cpu, gpu or gpu:N, got 'gpu:x'"),
        (["--dense-device", "gpu", "--store", "milvus://h/d"], "dense_device: is of local stores alone"),
    ],
)
def test_the_sidecar_says_in_one_sentence_why_not(options: list[str], sentence: str, tmp_path: Any) -> None:
    command = [sys.executable, "-m", "resrank.retrieval", "--index", str(tmp_path / "index"), "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"resrank.retrieval: {sentence}")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "index").exists()


@pytest.mark.full
@pytest.mark.skipif(
    not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0, reason="needs a GPU and FAISS's GPU build"
)
@pytest.mark.parametrize("factory", ["Flat", "IVF256,Flat"])
def test_on_a_gpu(factory: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50_000, 384)).astype(np.float16)
    parameters = "" if factory == "Flat" else "nprobe=256"
    device = dense_device.open_device("gpu")
    dense = FaissDenseIndex.build(factory, parameters, table_of(vectors[:49_000]), device)
    flat = FaissDenseIndex.build("Flat", "", table_of(vectors))
    dense.apply(NOTHING, np.arange(49_001, 50_001), vectors[49_000:])
    for index in (dense, flat):
        index.apply(np.arange(1, 5_001), NOTHING, np.empty((0, 384), np.float16))
    for row in range(20):
        query = unit(vectors[row * 2_000])
        keys, cosines = dense.search(query, 100)
        expected, true = flat.search(query, 100)
        assert len(np.intersect1d(keys, expected)) >= (100 if factory == "Flat" else 98)
        np.testing.assert_allclose(cosines[:10], true[:10], atol=1e-6)
    assert dense.description == f"{factory} (gpu:0)", "it was left"
