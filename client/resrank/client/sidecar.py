"""The one client of the retrieval sidecar: fills, reads and searches an index, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from grpc import StatusCode, aio
from numpy.typing import NDArray

from resrank.client.calls import Server
from resrank.client.channels import open_aio_channel
from resrank.client.metadata import Metadata, call_metadata
from resrank.client.settings import ClientSettings, TlsConfig
from resrank.client.traces import trace_metadata
from resrank.client.transport_errors import TOO_LARGE, too_large
from resrank.core.collection_names import collection_name
from resrank.core.corpus import Passage
from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    Place,
    QueueFullError,
    QuotaExceededError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.filters import Filter
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.passage import check_id
from resrank.core.search import SearchMode
from resrank.core.sidecar.metadata_messages import set_metadata
from resrank.core.sidecar.searching import Candidates, read_candidates, search_request
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.core.sidecar.words import ENCODER_MISMATCH, QUOTA_EXCEEDED

if TYPE_CHECKING:  # exists for type checkers only
    from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub

_Item = TypeVar("_Item")
_ERRORS: dict[StatusCode, type[ResRankError]] = {
    StatusCode.UNAVAILABLE: ServerUnavailableError,
    StatusCode.RESOURCE_EXHAUSTED: QueueFullError,
    StatusCode.NOT_FOUND: CollectionNotFoundError,
}


class AsyncSidecar:
    """An index, by way of the sidecar that owns it; an asynchronous context manager.

    Unlike a search, nothing here has a deadline or is sent again: whoever fills an index waits for it.

    Args:
        address: ``host:port`` of the sidecar, or another gRPC target.
        collection: Whose records all methods are about, by name or alias; empty for the default collection.
        tls: Transport security; None for plaintext.
        bearer_token: Sent as ``authorization: Bearer …``.

    Every method raises :class:`~resrank.core.errors.RetrievalError` where the sidecar refuses or fails
    (:class:`~resrank.core.errors.CollectionNotFoundError` where there is no such collection),
    :class:`~resrank.core.errors.ServerUnavailableError` where none answers, and
    :class:`~resrank.core.errors.QueueFullError` where it sheds load.

    Raises:
        InvalidInputError: That is no address or no name, or the token would leave this machine in plaintext.
    """

    def __init__(
        self, address: str, *, collection: str = "", tls: TlsConfig | None = None, bearer_token: str | None = None
    ) -> None:
        self._settings = ClientSettings(retrieval=address, retrieval_tls=tls, bearer_token=bearer_token)
        self.address = address
        self.collection = collection_name("collection", collection)
        self._bearer_token = bearer_token

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        """For pickle: another process gets one of its own, not yet entered, that speaks to the same index.

        Files are named from the root, since that process may run in another folder.
        """
        tls = self._settings.retrieval_tls
        if tls is not None:
            files = {name: path and Path(path).absolute() for name, path in vars(tls).items()}
            tls = TlsConfig(**files)
        again = partial(type(self), self.address, collection=self.collection, tls=tls, bearer_token=self._bearer_token)
        return again, ()

    async def __aenter__(self) -> Self:
        self._channel = open_aio_channel(self.address, self._settings.retrieval_tls)
        self._stub: RetrievalServiceAsyncStub = RetrievalServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def describe(self) -> pb.DescribeResponse:
        """What the index holds, and to which encoder it belongs."""
        response: pb.DescribeResponse = await self.call("Describe", pb.DescribeRequest(collection=self.collection))
        return response

    async def search(
        self,
        query: str,
        embedding: NDArray[np.float32] | None,
        *,
        mode: SearchMode,
        k: int,
        encoder_sha256: str | None = None,
        include_texts: bool = False,
        include_embeddings: bool = False,
        fusion: Fusion = Fusion.WEIGHTED,
        lexical_weight: float | None = None,
        cosine_map: CosineMap | None = None,
        filter: Filter | None = None,
        include_metadata: bool = False,
    ) -> Candidates:
        """Finds candidates, as :func:`resrank.core.sidecar.searching.search_request` words it.

        Raises:
            InvalidInputError: The sidecar refuses a field.
            RetrievalError: The index belongs to another encoder.
        """
        request = search_request(
            query,
            embedding,
            mode=mode,
            k=k,
            encoder_sha256=encoder_sha256,
            include_texts=include_texts,
            include_embeddings=include_embeddings,
            fusion=fusion,
            lexical_weight=lexical_weight,
            cosine_map=cosine_map,
            collection=self.collection,
            condition=filter,
            include_metadata=include_metadata,
        )
        response = await self.call("Search", request)
        return read_candidates(response, request)

    async def upsert(
        self, encoder_sha256: str, passages: Sequence[Passage], vectors: NDArray[np.floating[Any]]
    ) -> pb.UpsertResponse:
        """Stores passages in one transaction: all of them are on the disk when this returns, or none.

        Args:
            encoder_sha256: The encoder that made the vectors.
            passages: At most ``MAX_MESSAGE_RECORDS``, of distinct ids.
            vectors: Floats [len(passages), d]; stored in half precision.

        Raises:
            InvalidInputError: A passage breaks a rule; nothing is stored.
            QuotaExceededError: The collection would grow beyond its quota; nothing is stored.
        """
        records = []
        for passage, vector in zip(passages, vectors.astype("<f2"), strict=True):
            record = pb.Record(id=passage.id, title=passage.title, text=passage.text, embedding=vector.tobytes())
            set_metadata(record, passage.metadata)
            records.append(record)
        return await self.upsert_records(encoder_sha256, vectors.shape[1], records)

    async def upsert_records(
        self, encoder_sha256: str, dimension: int, records: Iterable[pb.Record]
    ) -> pb.UpsertResponse:
        """Stores records as they stand in messages, see :meth:`upsert`.

        Args:
            encoder_sha256: The encoder that made the embeddings.
            dimension: Theirs.
            records: At most ``MAX_MESSAGE_RECORDS``, of distinct ids.
        """
        request = pb.UpsertRequest(
            encoder_sha256=encoder_sha256, dimension=dimension, records=records, collection=self.collection
        )
        response: pb.UpsertResponse = await self.call("Upsert", iter([request]))
        return response

    async def backup(self) -> AsyncGenerator[pb.BackupPart, None]:
        """All records as they are at one moment, while others write; the parts are as the proto has them."""
        request = pb.BackupRequest(collection=self.collection)
        try:
            async for part in self._stub.Backup(request, metadata=self._metadata()):
                yield part
        except aio.AioRpcError as error:
            raise _typed(error) from error

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes passages; repeated ids count once.

        Returns:
            The ids that were not in the index.

        Raises:
            InvalidInputError: One can be no passage's.
        """
        for number, id_ in enumerate(ids):
            check_id(Place("ids", (number,)), id_)
        missing: list[str] = []
        for block in in_blocks(dict.fromkeys(ids), MAX_MESSAGE_RECORDS):
            missing += (await self.call("Delete", pb.DeleteRequest(ids=block, collection=self.collection))).missing_ids
        return missing

    async def ids(self) -> AsyncIterator[str]:
        """The ids of all passages, in the order of their UTF-8 bytes.

        What is stored or removed meanwhile may or may not be among them.
        """
        last = ""
        while True:
            request = pb.ListRequest(after=last, limit=MAX_MESSAGE_RECORDS, collection=self.collection)
            page = (await self.call("List", request)).ids
            for id_ in page:
                yield id_
            if len(page) < MAX_MESSAGE_RECORDS:
                return
            last = page[-1]

    async def vectors(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float16]]:
        """The stored vectors, FP16 [d] each, of passages by id; those that are not there are absent."""
        stored: dict[str, NDArray[np.float16]] = {}
        for block in in_blocks(ids, MAX_MESSAGE_RECORDS):
            request = pb.GetRequest(ids=block, include_embeddings=True, collection=self.collection)
            for record in (await self.call("Get", request)).records:
                stored[record.id] = np.frombuffer(record.embedding, "<f2")
        return stored

    async def word_scores(self, text: str, ids: Sequence[str]) -> tuple[dict[str, float], float]:
        """BM25 of passages for a query, however they were found.

        Args:
            text: The query; one without a word to look for gives every passage 0.
            ids: Of passages; those that are not in the index are absent from the answer.

        Returns:
            Id to BM25, and the best BM25 that any passage of the index has.
        """
        scores: dict[str, float] = {}
        best = 0.0
        for block in in_blocks(ids, MAX_MESSAGE_RECORDS):
            response = await self.call("Get", pb.GetRequest(ids=block, text=text, collection=self.collection))
            found = response.lexical_scores or [0.0] * len(response.records)
            scores |= {record.id: score for record, score in zip(response.records, found, strict=True)}
            best = response.max_lexical_score
        return scores, best

    async def changed(self, passages: Sequence[Passage]) -> list[Passage]:
        """Those of some passages that the index does not hold with this content."""
        stored: dict[str, bytes] = {}
        for block in in_blocks(passages, MAX_MESSAGE_RECORDS):
            request = pb.GetRequest(ids=[passage.id for passage in block], collection=self.collection)
            records = (await self.call("Get", request)).records
            stored.update((record.id, record.content_sha256) for record in records)
        return [passage for passage in passages if stored.get(passage.id) != passage.content_sha256]

    async def call(self, method: str, request: Any) -> Any:
        """Sends one request of any kind.

        Args:
            method: Its name in the proto.
            request: The message, or an iterator of messages.

        Returns:
            The answer.

        Raises:
            InvalidInputError: The sidecar refuses a field.
            QuotaExceededError: What is to be stored or made is more than may be.
        """
        try:
            return await getattr(self._stub, method)(request, metadata=self._metadata())
        except aio.AioRpcError as error:
            raise _typed(error) from error

    def _metadata(self) -> Metadata:
        return (*call_metadata(self._settings), *trace_metadata(Server.RETRIEVAL))


def _typed(error: aio.AioRpcError) -> ResRankError:
    said = error.details() or error.code().name
    match error.code():
        case StatusCode.INVALID_ARGUMENT:
            return InvalidInputError.parse(said) or InvalidInputError("request", said)
        case StatusCode.UNIMPLEMENTED:
            said = "what answers there is another server, or an older one; check the address"
        case StatusCode.RESOURCE_EXHAUSTED if TOO_LARGE in said:
            return too_large(said)
        case StatusCode.RESOURCE_EXHAUSTED if said.startswith(QUOTA_EXCEEDED):
            return QuotaExceededError(f"the retrieval sidecar: {said}")
        case StatusCode.FAILED_PRECONDITION if ENCODER_MISMATCH in said:
            return EncoderMismatchError(f"the retrieval sidecar: {said}")
    return _ERRORS.get(error.code(), RetrievalError)(f"the retrieval sidecar: {said}")


def in_blocks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of at most ``size`` consecutive items."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block
