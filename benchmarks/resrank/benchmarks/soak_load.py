"""The mixed load of the soak: every kind of request that the stack takes, from a few threads, until told to stop."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from resrank.client import ResRankClient
from resrank.core.addresses import NO_PROXY
from resrank.core.corpus import Passage
from resrank.core.errors import ResRankError
from resrank.core.scoring import Float32
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc

_BATCH = 16
_MOST_CANDIDATES = 100
_TEXTS = 8


class SoakLoad:
    """Threads that send one kind of request each, one after the other, with random sizes and texts."""

    def __init__(
        self, client: ResRankClient, sidecar: str, passages: Sequence[Passage], vectors: Float32, encoder_sha256: str
    ) -> None:
        """Prepares the load.

        Args:
            client: Of both servers.
            sidecar: Its address, for upserts.
            passages: Indexed already; upserts replace them, so that the index keeps its size.
            vectors: FP32 [len(passages), d], theirs.
            encoder_sha256: Whose vectors they are.
        """
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._client = client
        self._channel = grpc.insecure_channel(sidecar, NO_PROXY)
        self._stub = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._passages = passages
        self._vectors = vectors.astype("<f2")
        self._encoder = encoder_sha256
        self._stop = threading.Event()
        kinds = {
            "rerank": self._rerank,
            "rerank_text": self._rerank_text,
            "search": self._search,
            "embed": self._embed,
            "upsert": self._upsert,
        }
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, send, random.Random(number)), name=f"soak-{name}")
            for number, (name, send) in enumerate(kinds.items())
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _repeat(self, name: str, send: Callable[[random.Random], object], draw: random.Random) -> None:
        while not self._stop.is_set():
            try:
                send(draw)
                self.answered[name] += 1
            except (ResRankError, grpc.RpcError) as error:
                self.failed[f"{name}: {type(error).__name__}"] += 1
                self._stop.wait(0.1)

    def _rerank(self, draw: random.Random) -> None:
        rows = draw.sample(range(len(self._passages)), draw.randint(1, self._most(_MOST_CANDIDATES)))
        self._client.rerank(self._query(draw), self._vectors[rows], truncate=True)

    def _rerank_text(self, draw: random.Random) -> None:
        texts = [passage.encoder_text for passage in draw.sample(self._passages, draw.randint(1, self._most(_TEXTS)))]
        self._client.rerank(self._query(draw), passages=texts, truncate=True)

    def _search(self, draw: random.Random) -> None:
        self._client.search(self._query(draw), k=1, candidates=self._most(_MOST_CANDIDATES), truncate=True)

    def _embed(self, draw: random.Random) -> None:
        texts = [passage.encoder_text for passage in draw.sample(self._passages, self._most(_TEXTS))]
        self._client.embed_passages(texts, truncate=True)

    def _upsert(self, draw: random.Random) -> None:
        rows = draw.sample(range(len(self._passages)), self._most(_BATCH))
        self._stub.Upsert(iter([self.upsert_of(rows)]))
        self._stop.wait(0.25)  # a corpus that changes, not one that is rebuilt all the time

    def upsert_of(self, rows: Sequence[int]) -> pb.UpsertRequest:
        """A message that stores some of the passages."""
        return pb.UpsertRequest(
            encoder_sha256=self._encoder,
            dimension=self._vectors.shape[1],
            records=[
                pb.Record(
                    id=self._passages[row].id,
                    title=self._passages[row].title,
                    text=self._passages[row].text,
                    embedding=np.ascontiguousarray(self._vectors[row]).tobytes(),
                )
                for row in rows
            ],
        )

    def fill(self) -> None:
        """Stores all passages."""
        size = 500
        starts = range(0, len(self._passages), size)
        self._stub.Upsert(self.upsert_of(range(start, min(start + size, len(self._passages)))) for start in starts)

    def _query(self, draw: random.Random) -> str:
        words = draw.choice(self._passages).text.split()
        return " ".join(words[: draw.randint(3, 24)]) or "query"

    def _most(self, wanted: int) -> int:
        return min(wanted, len(self._passages))
