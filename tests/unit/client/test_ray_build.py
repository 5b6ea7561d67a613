"""What of a build on Ray needs no Ray: addresses, workers, what travels, and whose Tritons are asked."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.client import ray_build
from resrank.client.index_build import BuildReport, BuildSettings, CheckedCorpus
from resrank.client.metadata import call_metadata
from resrank.client.ray_build import MAX_LOCAL_WORKERS, FailedBatch, RayCluster
from resrank.client.settings import TlsConfig
from resrank.client.sidecar import AsyncSidecar
from resrank.core.corpus import CorpusError, Passage
from resrank.core.errors import (
    EncoderMismatchError,
    InvalidInputError,
    Place,
    QuotaExceededError,
    ResRankError,
    ServerFailedError,
    ServerUnavailableError,
)

SHA = "a" * 64
PASSAGES = [Passage(1, "a", "t", "short"), Passage(2, "b", "", "longer text")]


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":6379", "ray://host:10001", "host:0", "host:65536", "h:x", "h:²"]
)
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(InvalidInputError, match=r"ray: .* is neither host:port nor 'local' nor 'auto'"):
        RayCluster(address)


@pytest.mark.parametrize("address", ["local", "auto", "head.example:6379", "[::1]:6379"])
def test_addresses_are_taken(address: str) -> None:
    assert RayCluster(address).workers == 2


@pytest.mark.parametrize("workers", [0, -1, MAX_LOCAL_WORKERS + 1])
def test_workers_out_of_range_are_named(workers: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"workers: too .*\(limit \d+, got {workers}\)"):
        RayCluster("local", workers)


def test_a_cluster_of_others_may_be_larger_than_a_machine() -> None:
    assert RayCluster("head:6379", MAX_LOCAL_WORKERS + 1).workers == MAX_LOCAL_WORKERS + 1


def test_an_address_where_nobody_listens_is_named_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match=f"no Ray answers at {address}: "):
            ray_build._require_answer(RayCluster(address))


@pytest.mark.parametrize(
    "error",
    [
        CorpusError("corpus.jsonl:7", "the encoder refuses _id 'x'", limit=3, value=4),
        InvalidInputError(Place("TEXT", (3,)), "too long"),
        ServerUnavailableError("nobody"),
    ],
)
def test_a_batch_and_its_error_come_through_pickle_as_they_are(error: ResRankError) -> None:
    batch = ray_build._Batch(PASSAGES, 3, np.ones((2, 4), np.float16), error)
    again = ray_build._Batch.of(batch.row())
    assert (again.passages, again.unchanged, str(again.error)) == (PASSAGES, 3, str(error))
    assert type(again.error) is type(error)
    assert again.vectors.tobytes() == batch.vectors.tobytes()
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error)


class Triton:
    """Stands for a client: answers, or fails as it is told."""

    def __init__(self, sha256: str = SHA, error: ResRankError | None = None) -> None:
        self.sha256, self.error = sha256, error
        self.asked = 0
        self.open = 0

    async def __aenter__(self) -> Triton:
        self.open += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.open -= 1

    async def encoder_sha256(self) -> str:
        return self.sha256

    async def embed_passages(self, texts: Sequence[str], **how: Any) -> Any:
        assert how == {"truncate": True, "bulk": True}
        self.asked += 1
        if self.error is not None:
            raise self.error
        return np.array([[len(text), 1] for text in texts], np.float32)


MakeWorker = Callable[[dict[str, Triton]], ray_build._Worker]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    made: list[ray_build._Worker] = []

    def make(tritons: dict[str, Triton]) -> ray_build._Worker:
        monkeypatch.setattr(ray_build, "AsyncResRankClient", lambda address, **_: tritons[address])
        made.append(
            ray_build._Worker(
                corpus=Path("c.jsonl"), tritons=list(tritons), encoder_sha256=SHA, timeout_s=1.0, turns=None
            )
        )
        return made[-1]

    yield make
    for one in made:
        one._runner.close()


def encode(with_it: ray_build._Worker) -> ray_build._Batch:
    return ray_build._Batch.of(with_it(ray_build._Batch(PASSAGES).row()))


def test_a_worker_goes_on_with_the_next_triton_and_stays_there(worker: MakeWorker) -> None:
    tritons = {"down:1": Triton(error=ServerUnavailableError("down:1 does not answer")), "up:1": Triton()}
    with_both = worker(tritons)
    for _ in range(3):
        batch = encode(with_both)
        assert batch.error is None
        assert batch.vectors.tolist() == [[7, 1], [11, 1]]
    assert (tritons["down:1"].asked, tritons["up:1"].asked) == (1, 3)


def test_a_batch_fails_once_no_triton_answers(worker: MakeWorker) -> None:
    tritons = {name: Triton(error=ServerUnavailableError(f"{name} does not answer")) for name in ("a:1", "b:1")}
    error = encode(worker(tritons)).error
    assert isinstance(error, ServerUnavailableError)
    assert [triton.asked for triton in tritons.values()] == [1, 1]


def test_a_passage_that_is_refused_is_asked_of_one_triton_and_named_by_its_line(worker: MakeWorker) -> None:
    tritons = {"a:1": Triton(error=InvalidInputError(Place("texts", (1,)), "no words")), "b:1": Triton()}
    error = encode(worker(tritons)).error
    assert str(error) == "c.jsonl:2: the encoder refuses _id 'b' (no words)"
    assert tritons["b:1"].asked == 0


def test_another_encoder_is_asked_for_nothing(worker: MakeWorker) -> None:
    other = Triton(sha256="b" * 64)
    assert isinstance(encode(worker({"a:1": other})).error, EncoderMismatchError)
    assert other.asked == 0


def test_an_encoder_that_came_to_the_address_meanwhile_is_found_out(worker: MakeWorker) -> None:
    triton = Triton()
    alone = worker({"a:1": triton})
    assert encode(alone).error is None
    triton.sha256 = "b" * 64
    for _ in range(2):
        assert isinstance(encode(alone).error, EncoderMismatchError)
        assert triton.open == 0
    triton.sha256 = SHA
    assert encode(alone).error is None
    assert triton.open == 1


async def test_tritons_of_two_encoders_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened(Triton):
        def __init__(self, address: str) -> None:
            super().__init__(sha256=address[0] * 64)

        async def __aenter__(self) -> Opened:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(ray_build, "AsyncResRankClient", Opened)
    assert await ray_build._encoder_of_all(["a:1", "a:2"]) == SHA
    with pytest.raises(EncoderMismatchError, match=f"a:1 has {SHA}, b:1 has {'b' * 64}"):
        await ray_build._encoder_of_all(["a:1", "b:1"])


def test_the_process_that_reads_speaks_to_the_sidecar_as_the_one_that_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[tuple[Any, ...]] = []

    async def wanted(passages: Any, sidecar: AsyncSidecar, settings: BuildSettings) -> Any:
        spoken.append((sidecar.address, sidecar.collection, sidecar._settings.retrieval_tls))
        assert ("authorization", "Bearer secret") in call_metadata(sidecar._settings)
        yield PASSAGES, 0

    monkeypatch.setattr(ray_build, "wanted_windows", wanted)
    monkeypatch.setattr("resrank.client.sidecar.open_aio_channel", lambda address, tls: Closed())
    monkeypatch.chdir(tmp_path)
    given = AsyncSidecar("far:8003", collection="docs", tls=TlsConfig(Path("ca.crt")), bearer_token="secret")
    sent = pickle.dumps(given)
    monkeypatch.chdir("/")
    (tmp_path / "c.jsonl").write_text("")
    row = {"corpus": str(tmp_path / "c.jsonl")}
    rows = list(ray_build._read(row, repeated=set(), sidecar=pickle.loads(sent), settings=BuildSettings()))
    assert [batch.passages for batch in map(ray_build._Batch.of, rows) if batch.passages] == [PASSAGES]
    assert spoken == [("far:8003", "docs", TlsConfig(tmp_path / "ca.crt"))]


class Closed:
    """Stands for a channel."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **given: None

    async def close(self) -> None:
        pass


class Store:
    """Stands for the sidecar: acknowledges."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def upsert(self, encoder_sha256: str, passages: Sequence[Passage], vectors: Any) -> Any:
        assert (encoder_sha256, len(vectors)) == (SHA, len(passages))
        await asyncio.sleep(0)
        self.ids += [passage.id for passage in passages]
        return type("Response", (), {"inserted": len(passages), "updated": 0})


def store(batches: Iterator[ray_build._Batch], report: BuildReport, failed: list[FailedBatch]) -> list[str]:
    sidecar: Any = Store()
    with ray_build._event_loop() as loop:
        failures = ray_build._store(report, batches, SHA, sidecar, loop, BuildSettings(), lambda _: None, failed.append)
    assert failures == failed
    return list(sidecar.ids)


def good(name: str) -> ray_build._Batch:
    return ray_build._Batch([Passage(1, name, "", "text")], vectors=np.ones((1, 2), np.float16))


def bad(name: str) -> ray_build._Batch:
    return ray_build._Batch([Passage(1, name, "", "text")], error=ServerUnavailableError("nobody"))


def test_a_failed_batch_is_named_and_the_others_are_stored() -> None:
    report, failed = BuildReport(5), list[FailedBatch]()
    batches = [good("a"), ray_build._Batch([], 2), bad("b"), good("c")]
    assert store(iter(batches), report, failed) == ["a", "c"]
    assert (report.stored, report.unchanged) == (2, 2)
    assert str(failed[0]) == "1 passages are not stored, _id 'b': nobody"
    sentence = str(ray_build._summary(CheckedCorpus(Path("c"), set(), set()), report, failed))
    assert sentence == (
        "1 batches with 1 passages failed, the first one because of this: nobody "
        "(4 of 5 passages are stored: the same command does the rest)"
    )


def test_the_tenth_failure_is_the_last() -> None:
    failed = list[FailedBatch]()
    batches = iter([*(bad(str(number)) for number in range(10)), good("never")])
    assert store(batches, BuildReport(11), failed) == []
    assert len(failed) == 10
    error = ray_build._summary(CheckedCorpus(Path("c"), set(), set()), BuildReport(11), failed)
    assert isinstance(error, ServerUnavailableError)
    assert "nothing was encoded after that" in str(error)


def test_what_stops_ray_is_one_sentence_and_our_own_errors_stay_themselves() -> None:
    def raising(error: Exception) -> Iterator[ray_build._Batch]:
        yield good("a")
        raise error

    class TaskError(Exception):
        def __init__(self, cause: Exception) -> None:
            super().__init__("a remote traceback\nValueError: last line")
            self.cause = cause

    batches = raising(TaskError(CorpusError("c:1", "changed")))
    assert ray_build._next(batches) is not None
    with pytest.raises(CorpusError, match=r"^c:1: changed$"):
        ray_build._next(batches)
    batches = raising(TaskError(ValueError("x")))
    ray_build._next(batches)
    with pytest.raises(
        ServerFailedError, match=r"^Ray stopped the build, which may be run again: ValueError: last line$"
    ):
        ray_build._next(batches)
    assert ray_build._next(iter([])) is None


def test_what_the_sidecar_refuses_ends_the_build() -> None:
    class Full(Store):
        async def upsert(self, encoder_sha256: str, passages: Sequence[Passage], vectors: Any) -> Any:
            raise QuotaExceededError("full")

    taken = 0

    def endless() -> Iterator[ray_build._Batch]:
        nonlocal taken
        while True:
            taken += 1
            yield good(str(taken))

    sidecar: Any = Full()
    nothing: Any = lambda _: None  # noqa: E731
    with ray_build._event_loop() as loop, pytest.raises(QuotaExceededError, match="full"):
        ray_build._store(BuildReport(1), endless(), SHA, sidecar, loop, BuildSettings(in_flight=2), nothing, nothing)
    assert taken == 3
