"""Fills an index: reads a corpus, embeds it through Triton, writes it through the sidecar that owns the folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from resrank.core.addresses import channel_options, check_target
from resrank.core.corpus import CorpusError, Passage, check_corpus, read_passages
from resrank.core.errors import (
    InvalidInputError,
    Place,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.limits import MAX_BATCH_SIZE, MAX_GRPC_MESSAGE_BYTES, MAX_MESSAGE_RECORDS
from resrank.core.passage import check_id
from resrank.core.sidecar.searching import check_encoder
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc

WINDOW = 4096
"""Passages sorted by length together: long enough that a batch's rows are of nearly one length and pad each other
little, short enough that an interrupted run repeats little and memory stays small."""

_PATIENCE_S = 300.0
_PASSAGE_S = 30.0  # a 4B encoder on two cores (170 GFLOP/s) reads 512 tokens in 24 s
_WAIT_MAX_S = 10.0
_Item = TypeVar("_Item")
_ERRORS: dict[grpc.StatusCode, type[ResRankError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFullError,
}


class PassageEncoder(Protocol):
    """What is needed of :class:`resrank.client.AsyncResRankClient`."""

    async def encoder_sha256(self) -> str:
        """The encoder behind the server's models."""

    async def embed_passages(
        self, texts: Sequence[str], *, truncate: bool = False, bulk: bool = False
    ) -> NDArray[np.float32]:
        """Embeds texts, fp32 [len(texts), d]; in bulk behind whoever waits for an answer."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an index is filled.

    Attributes:
        batch_size: Passages in one request to Triton and in one transaction of the store.
        in_flight: Requests under way at once: while one is computed, the others travel, wait and are stored.
        skip_unchanged: Leave out what the index holds with the same content already, which makes a run resumable.
    """

    batch_size: int = MAX_BATCH_SIZE
    in_flight: int = 4
    skip_unchanged: bool = True

    @property
    def batch_timeout_s(self) -> float:
        """Deadline of one batch in seconds. Nobody waits for it, and it may stand behind all others in flight."""
        return _PATIENCE_S + _PASSAGE_S * self.batch_size * self.in_flight


@dataclass(slots=True)
class BuildReport:
    """What a run did, up to date while it runs.

    Attributes:
        passages: Distinct passages in the corpus.
        inserted: Stored as new.
        updated: Stored in place of an earlier version.
        unchanged: Left out, since the index had them.
        seconds: Duration without the check of the file.
    """

    passages: int
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    seconds: float = 0.0

    @property
    def stored(self) -> int:
        """Passages that this run stored."""
        return self.inserted + self.updated

    @property
    def passages_per_s(self) -> float:
        """Passages stored per second."""
        return self.stored / self.seconds if self.seconds else 0.0


async def fill_index(
    corpus: Path,
    encoder: PassageEncoder,
    sidecar: retrieval_pb2_grpc.RetrievalServiceAsyncStub,
    settings: BuildSettings | None = None,
    progress: Callable[[BuildReport], None] = lambda report: None,
) -> BuildReport:
    """Embeds a corpus and stores it; interrupted, the next run goes on where this one stopped.

    Args:
        corpus: JSON lines as BEIR has them, ``.gz`` or plain.
        encoder: Makes the embeddings.
        sidecar: Stores them.
        settings: How.
        progress: Called whenever something was stored or left out.

    Returns:
        What was done.

    Raises:
        CorpusError: A line is bad. Lines are checked before anything is encoded; what only the encoder can refuse is
            found while running, and the message says how much is stored by then.
        RetrievalError: The index belongs to another encoder, or the sidecar refused or failed.
        ResRankError: Whatever the encoder raises.
    """
    settings = settings or BuildSettings()
    passages, repeated = await asyncio.to_thread(check_corpus, corpus)
    encoder_sha256 = await encoder.encoder_sha256()
    check_encoder((await describe(sidecar)).encoder_sha256, encoder_sha256)
    report = BuildReport(passages)
    started = time.perf_counter()
    room = asyncio.Semaphore(settings.in_flight)

    async def store(batch: Sequence[Passage]) -> None:
        try:
            vectors = await _embed(corpus, encoder, batch, report, patience_s=settings.batch_timeout_s)
            response = await called(sidecar.Upsert(iter([_request(encoder_sha256, batch, vectors)])))
        finally:
            room.release()
        report.inserted += response.inserted
        report.updated += response.updated
        report.seconds = time.perf_counter() - started
        progress(report)

    try:
        async with asyncio.TaskGroup() as tasks:
            source = (passage for passage in read_passages(corpus) if passage.line not in repeated)
            for window in _blocks(source, WINDOW):
                wanted = await changed_passages(sidecar, window) if settings.skip_unchanged else window
                report.unchanged += len(window) - len(wanted)
                progress(report)
                wanted.sort(key=lambda passage: len(passage.encoder_text))
                for batch in _blocks(wanted, settings.batch_size):
                    await room.acquire()
                    tasks.create_task(store(batch))
    except ExceptionGroup as group:
        # The first failure cancelled the rest: it is the one that says what happened.
        raise group.exceptions[0] from None
    report.seconds = time.perf_counter() - started
    return report


async def delete_records(sidecar: retrieval_pb2_grpc.RetrievalServiceAsyncStub, ids: Sequence[str]) -> list[str]:
    """Removes records.

    Args:
        sidecar: The sidecar.
        ids: Their ids; repetitions count once.

    Returns:
        The ids that were not in the index.

    Raises:
        InvalidInputError: One can be no passage's.
        RetrievalError: The sidecar refused or failed.
    """
    for number, id_ in enumerate(ids):
        check_id(Place("ids", (number,)), id_)
    missing: list[str] = []
    for block in _blocks(dict.fromkeys(ids), MAX_MESSAGE_RECORDS):
        missing += (await called(sidecar.Delete(pb.DeleteRequest(ids=block)))).missing_ids
    return missing


async def describe(sidecar: retrieval_pb2_grpc.RetrievalServiceAsyncStub) -> pb.DescribeResponse:
    """Asks what the index holds.

    Raises:
        RetrievalError: The sidecar failed.
    """
    response: pb.DescribeResponse = await called(sidecar.Describe(pb.DescribeRequest()))
    return response


async def _embed(
    corpus: Path, encoder: PassageEncoder, batch: Sequence[Passage], report: BuildReport, *, patience_s: float
) -> NDArray[np.float32]:
    try:
        # Whoever searches meanwhile goes first: where the server sheds load, this waits. On a GPU it sheds too what has
        # waited a minute in its queue, which a slow encoder's next batches do.
        patient = AsyncRetrying(
            retry=retry_if_exception_type(QueueFullError),
            wait=wait_random_exponential(max=_WAIT_MAX_S),
            stop=stop_after_delay(patience_s),
            reraise=True,
        )
        texts = [passage.encoder_text for passage in batch]
        return await patient(encoder.embed_passages, texts, truncate=True, bulk=True)
    except InvalidInputError as error:
        if not error.place.index:
            raise
        passage = batch[error.place.index[-1]]
        raise CorpusError(
            f"{corpus}:{passage.line}",
            f"the encoder refuses _id {passage.id!r} ({error.problem}); this run has stored {report.stored} of "
            f"{report.passages} passages",
        ) from error


def _request(encoder_sha256: str, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> pb.UpsertRequest:
    return pb.UpsertRequest(
        encoder_sha256=encoder_sha256,
        dimension=vectors.shape[1],
        records=[
            pb.Record(
                id=passage.id,
                title=passage.title,
                text=passage.text,
                metadata=passage.metadata,
                embedding=vector.tobytes(),
            )
            for passage, vector in zip(batch, vectors.astype("<f2"), strict=True)
        ],
    )


async def changed_passages(
    sidecar: retrieval_pb2_grpc.RetrievalServiceAsyncStub, passages: Sequence[Passage]
) -> list[Passage]:
    """The passages that the index does not hold with this content.

    Raises:
        RetrievalError: The sidecar failed.
    """
    stored: dict[str, bytes] = {}
    for block in _blocks(passages, MAX_MESSAGE_RECORDS):
        response = await called(sidecar.Get(pb.GetRequest(ids=[passage.id for passage in block])))
        stored.update((record.id, record.content_sha256) for record in response.records)
    return [passage for passage in passages if stored.get(passage.id) != passage.content_sha256]


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[retrieval_pb2_grpc.RetrievalServiceAsyncStub]:
    """A stub connected to a sidecar.

    Args:
        address: ``host:port``.

    Raises:
        InvalidInputError: That is no address.
    """
    check_target("retrieval", address)
    options = [
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
        *channel_options(address),
    ]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield retrieval_pb2_grpc.RetrievalServiceStub(channel)


async def called(call: Any) -> Any:
    """Awaits a call to the sidecar.

    Raises:
        RetrievalError: It refused or failed; QueueFullError, ServerUnavailableError and InvalidInputError where that is
            what happened.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            said = error.details() or ""
            raise InvalidInputError.parse(said) or InvalidInputError("request", said) from error
        details = f"the retrieval sidecar: {error.details() or error.code().name}"
        raise _ERRORS.get(error.code(), RetrievalError)(details) from error


def _blocks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block
