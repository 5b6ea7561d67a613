"""Dense search by the sidecar, by FAISS in one process, and by milvus-lite, each in a process of its own.

Apart from the sidecar, which is one already, a side runs in a child that is told over a pipe what to do and times it
itself: so all can be asked in turn, and each has a resident memory of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import numpy as np
import psutil
from numpy.typing import NDArray

from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.stored_vectors import store_vectors
from resrank.core.addresses import NO_PROXY
from resrank.core.errors import StackError
from resrank.core.filters import Filter
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.core.metadata import MetadataValue
from resrank.core.sidecar.filter_messages import filter_message
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.stack.answering_process import AnsweringProcess
from resrank.stack.sidecar_process import SidecarProcess

_ENCODER = "0" * 64  # any: nothing is encoded here
_ENVIRONMENT = "RESRANK_RETRIEVAL_"
_POLL_S = 0.2
_REBUILD_TIMEOUT_S = 1800.0
_INSERTED_AT_ONCE = 1000


@dataclass(frozen=True)
class IndexKind:
    """One kind of index, in the words of each side.

    Attributes:
        name: Short.
        factory: FAISS index_factory string.
        search_parameters: FAISS search-time parameters.
        milvus: Milvus' name of the kind.
        milvus_build: Its parameters of the build.
        milvus_search: Those of a search.
    """

    name: str
    factory: str
    search_parameters: str
    milvus: str
    milvus_build: Mapping[str, int]
    milvus_search: Mapping[str, int]


class IndexSide(Protocol):
    """A filled index that answers queries."""

    build_s: float
    """Seconds from the vectors in memory to an index that answers."""

    def search(self, query: int, k: int) -> tuple[float, NDArray[np.int64]]:
        """Milliseconds of one search that also fetches the vectors found, and the rows found."""

    def memory_mb(self) -> float:
        """Resident memory of the process that holds the index, in MB (1e6 bytes)."""


class SidecarSide(AbstractContextManager["SidecarSide"]):
    """The sidecar, filled through ``Upsert``."""

    def __init__(
        self,
        vectors: NDArray[np.float16],
        queries: NDArray[np.float32],
        kind: IndexKind,
        metadata: Sequence[dict[str, MetadataValue]] | None = None,
    ) -> None:
        """Prepares it.

        Args:
            vectors: FP16 [n, d].
            queries: FP32 [q, d].
            kind: Of its dense index.
            metadata: Of each vector; None for none.
        """
        self._metadata = metadata
        self._vectors = vectors
        self._queries = queries
        self._folder = tempfile.TemporaryDirectory()
        self._process = SidecarProcess(Path(self._folder.name))
        self._process.environment = {
            **(self._process.environment or {}),
            f"{_ENVIRONMENT}DENSE_INDEX": kind.factory,
            f"{_ENVIRONMENT}DENSE_SEARCH_PARAMETERS": kind.search_parameters,
        }
        self._kind = kind
        self.build_s = 0.0

    def __enter__(self) -> Self:
        self._process.__enter__()
        options = [("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES), *NO_PROXY]
        self._channel = grpc.insecure_channel(self._process.address, options)
        try:
            self._fill(retrieval_pb2_grpc.RetrievalServiceStub(self._channel))
        except BaseException:
            self._close()
            raise
        return self

    def _fill(self, stub: retrieval_pb2_grpc.RetrievalServiceStub) -> None:
        self._stub = stub
        started = time.perf_counter()
        store_vectors(self._process.address, _ENCODER, self._vectors, self._metadata)
        # A kind that must be trained is built behind the scenes once there is enough to train on.
        while self._stub.Describe(pb.DescribeRequest()).dense_index != self._kind.factory:
            if time.perf_counter() - started > _REBUILD_TIMEOUT_S:
                raise BenchmarkError(f"the sidecar's {self._kind.factory} was not built in {_REBUILD_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)
        self.build_s = time.perf_counter() - started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._channel.close()
        self._process.stop()
        self._folder.cleanup()

    def search(self, query: int, k: int, condition: Filter | None = None) -> tuple[float, NDArray[np.int64]]:
        """As :class:`IndexSide` says, among what meets a condition."""
        started = time.perf_counter()
        response = self._stub.Search(
            pb.SearchRequest(
                mode=pb.SEARCH_MODE_DENSE,
                k=k,
                embedding=self._queries[query].tobytes(),
                include_embeddings=True,
                filter=None if condition is None else filter_message(condition),
            )
        )
        np.frombuffer(response.embeddings, "<f2").reshape(len(response.ids), -1)
        spent = 1e3 * (time.perf_counter() - started)
        return spent, np.array([int(each) for each in response.ids], np.int64)

    def memory_mb(self) -> float:
        """As :class:`IndexSide` says."""
        return float(psutil.Process(self._process.pid).memory_info().rss / 1e6)


class ChildSide(AbstractContextManager["ChildSide"]):
    """A side that runs in a child process."""

    def __init__(
        self, side: str, vectors: NDArray[np.float16], queries: NDArray[np.float32], kinds: tuple[IndexKind, ...]
    ) -> None:
        """Prepares it.

        Args:
            side: ``faiss`` or ``milvus``.
            vectors: FP16 [n, d].
            queries: FP32 [q, d].
            kinds: That will be built, in this order.
        """
        self._folder = tempfile.TemporaryDirectory()
        np.save(Path(self._folder.name, "vectors.npy"), vectors)
        np.save(Path(self._folder.name, "queries.npy"), queries)
        self._side = side
        self._kinds = kinds
        self.build_s = 0.0

    def __enter__(self) -> Self:
        self._child = AnsweringProcess(f"the process of {self._side}", _serve, self._side, Path(self._folder.name))
        try:
            self._ask("load")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._child.close(grace_s=30.0)
        self._folder.cleanup()

    def build(self, kind: IndexKind) -> None:
        """Builds one kind of index in place of the one before."""
        self.build_s = self._ask("build", kind)

    def search(self, query: int, k: int) -> tuple[float, NDArray[np.int64]]:
        """As :class:`IndexSide` says."""
        spent, rows = self._ask("search", query, k)
        return spent, rows

    def memory_mb(self) -> float:
        """As :class:`IndexSide` says."""
        return float(psutil.Process(self._child.pid).memory_info().rss / 1e6)

    def _ask(self, command: str, *arguments: Any) -> Any:
        self._child.send((command, arguments))
        try:
            answer = self._child.receive()
        except StackError as error:
            raise BenchmarkError(f"{error} while it should {command}") from None
        if isinstance(answer, Exception):
            raise BenchmarkError(f"{self._side} failed to {command}: {answer}")
        return answer


class _Faiss:
    """In the child: FAISS and the stored vectors beside it, as the sidecar holds them."""

    def __init__(self, folder: Path) -> None:
        import faiss

        self._faiss = faiss
        self._vectors = np.load(folder / "vectors.npy")
        self._queries = np.load(folder / "queries.npy")
        self._index: Any = None

    def build(self, kind: IndexKind) -> float:
        self._index = None
        started = time.perf_counter()
        rows = self._vectors.astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        index = self._faiss.index_factory(rows.shape[1], kind.factory, self._faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        if kind.search_parameters:
            space: Any = self._faiss.ParameterSpace()  # its type stubs take the parameters for a number
            space.set_index_parameters(index, kind.search_parameters)
        self._index = index
        return time.perf_counter() - started

    def search(self, query: int, k: int) -> tuple[float, NDArray[np.int64]]:
        started = time.perf_counter()
        _, rows = self._index.search(self._queries[query : query + 1], k)
        self._vectors[rows[0][rows[0] >= 0]]
        return 1e3 * (time.perf_counter() - started), rows[0]


class _Milvus:
    """In the child: milvus-lite, whose server is threads of this process."""

    _COLLECTION = "passages"

    def __init__(self, folder: Path) -> None:
        from pymilvus import MilvusClient

        vectors = np.load(folder / "vectors.npy")
        self._queries = np.load(folder / "queries.npy")
        self._client = MilvusClient(str(folder / "milvus.db"))
        started = time.perf_counter()
        self._client.create_collection(self._COLLECTION, dimension=vectors.shape[1], metric_type="IP")
        for start in range(0, len(vectors), _INSERTED_AT_ONCE):
            block = vectors[start : start + _INSERTED_AT_ONCE].astype(np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            self._client.insert(
                self._COLLECTION, [{"id": start + row, "vector": vector} for row, vector in enumerate(block)]
            )
        self._client.flush(self._COLLECTION)
        self._inserted_s = time.perf_counter() - started
        self._parameters: dict[str, int] = {}

    def build(self, kind: IndexKind) -> float:
        client = self._client
        client.release_collection(self._COLLECTION)
        for name in client.list_indexes(self._COLLECTION):
            client.drop_index(self._COLLECTION, name)
        parameters = client.prepare_index_params()
        parameters.add_index("vector", index_type=kind.milvus, metric_type="IP", params=dict(kind.milvus_build))
        started = time.perf_counter()
        client.create_index(self._COLLECTION, parameters)
        client.load_collection(self._COLLECTION)
        self._parameters = dict(kind.milvus_search)
        self.search(0, 1)
        return self._inserted_s + time.perf_counter() - started

    def search(self, query: int, k: int) -> tuple[float, NDArray[np.int64]]:
        started = time.perf_counter()
        (hits,) = self._client.search(
            self._COLLECTION,
            data=[self._queries[query]],
            limit=k,
            search_params={"params": self._parameters},
            output_fields=["vector"],
        )
        spent = 1e3 * (time.perf_counter() - started)
        return spent, np.array([hit["id"] for hit in hits], np.int64)


def _serve(pipe: Connection, side: str, folder: Path) -> None:
    """The child's whole life."""
    holder: Any = None
    while True:
        command, arguments = pipe.recv()
        try:
            if command == "load":
                holder = {"faiss": _Faiss, "milvus": _Milvus}[side](folder)
                pipe.send(None)
            else:
                pipe.send(getattr(holder, command)(*arguments))
        except Exception as error:  # whatever it is, the parent has to hear of it
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
