"""The mixed load of the soak: a load test's calls of every kind, and upserts beside them, until told to stop."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from resrank.benchmarks.stored_vectors import store_passages
from resrank.client import ResRankClient
from resrank.core.corpus import Passage
from resrank.core.errors import ResRankError
from resrank.core.scoring import Float32
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
        self._sidecar = sidecar
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

    def _repeat(self, name: str, send: Callable[[np.random.Generator], object], rng: np.random.Generator) -> None:
        while not self._stop.is_set():
            try:
                send(rng)
                self.answered[name] += 1
            except ResRankError as error:
                self.failed[f"{name}: {type(error).__name__}"] += 1
                self._stop.wait(0.1)

    def _upsert(self, rng: np.random.Generator) -> None:
        count = len(self._passages)
        self._store(rng.choice(count, min(_BATCH, count), replace=False).tolist())
        self._stop.wait(0.25)  # a corpus that changes, not one that is rebuilt all the time

    def fill(self) -> None:
        """Stores all passages."""
        self._store(range(len(self._passages)))

    def _store(self, rows: Sequence[int]) -> None:
        passages = [self._passages[row] for row in rows]
        store_passages(self._sidecar, self._encoder, passages, self._vectors[list(rows)])


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
