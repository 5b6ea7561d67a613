"""The mixed load of the soak: a load test's calls of every kind, and upserts beside them, until told to stop."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
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
from resrank.loadtest.callers import Callers
from resrank.loadtest.counts import Fixed, Uniform
from resrank.loadtest.dataset import Dataset
from resrank.loadtest.kinds import KINDS, CallKind
from resrank.loadtest.scenario import (
    ClosedLoad,
    EmbedCalls,
    EmbedRole,
    Mix,
    Scenario,
    SearchCalls,
    UsersPhase,
)

UPSERT = "upsert"

_BATCH = 16
_MOST_CANDIDATES = 100
_TEXTS = 8
_BUDGET_S = 120.0


class SoakLoad:
    """A thread for each kind of request, which sends one after the other, with random sizes and texts."""

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
        self._channel = grpc.insecure_channel(sidecar, NO_PROXY)
        self._stub = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._passages = passages
        self._vectors = vectors.astype("<f2")
        self._encoder = encoder_sha256
        self._stop = threading.Event()
        dataset = Dataset(
            tuple(passage.text for passage in passages), tuple(passage.encoder_text for passage in passages)
        )
        sends: dict[str, Callable[[np.random.Generator], object]] = {UPSERT: self._upsert}
        for kind in KINDS:
            # The encoder reads every text of rerank_text: fewer of them keep the other kinds' turn near.
            most = min(len(passages), _TEXTS if kind is CallKind.RERANK_TEXT else _MOST_CANDIDATES)
            sends[kind.value] = partial(_call, Callers(_scenario(most), client, dataset, self._vectors), kind)
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, send, np.random.default_rng(number)), name=f"soak-{name}")
            for number, (name, send) in enumerate(sends.items())
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

    def _repeat(self, name: str, send: Callable[[np.random.Generator], object], rng: np.random.Generator) -> None:
        while not self._stop.is_set():
            try:
                send(rng)
                self.answered[name] += 1
            except (ResRankError, grpc.RpcError) as error:
                self.failed[f"{name}: {type(error).__name__}"] += 1
                self._stop.wait(0.1)

    def _upsert(self, rng: np.random.Generator) -> None:
        count = len(self._passages)
        self._stub.Upsert(iter([self._upsert_of(rng.choice(count, min(_BATCH, count), replace=False).tolist())]))
        self._stop.wait(0.25)  # a corpus that changes, not one that is rebuilt all the time

    def _upsert_of(self, rows: Sequence[int]) -> pb.UpsertRequest:
        """A message that stores some of the passages."""
        return pb.UpsertRequest(
            encoder_sha256=self._encoder,
            dimension=self._vectors.shape[1],
            records=[
                pb.Record(
                    id=self._passages[row].id,
                    title=self._passages[row].title,
                    text=self._passages[row].text,
                    embedding=self._vectors[row].tobytes(),
                )
                for row in rows
            ],
        )

    def fill(self) -> None:
        """Stores all passages."""
        size = 500
        starts = range(0, len(self._passages), size)
        self._stub.Upsert(self._upsert_of(range(start, min(start + size, len(self._passages)))) for start in starts)


def _call(callers: Callers, kind: CallKind, rng: np.random.Generator) -> None:
    callers.of_kind(kind, rng).make(_BUDGET_S)


def _scenario(most_candidates: int) -> Scenario:
    """How the calls look; the load itself is the threads'."""
    return Scenario(
        name="soak",
        mix=Mix(**dict.fromkeys((kind.value for kind in KINDS), 1.0)),
        load=ClosedLoad(kind="closed", phases=(UsersPhase(name="soak", users=1, duration_s=1.0),)),
        deadline_s=_BUDGET_S,
        candidates=Uniform(kind="uniform", low=1, high=most_candidates),
        query_words=Uniform(kind="uniform", low=3, high=24),
        search=SearchCalls(k=1),
        embed=EmbedCalls(role=EmbedRole.PASSAGE, texts=Fixed(kind="fixed", value=_TEXTS)),
    )
