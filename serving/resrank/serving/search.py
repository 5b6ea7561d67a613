"""``search``: a query's text to the best passages, by calls to ``embed_query``, the retrieval sidecar and ``rerank``.

The candidates' vectors go from the sidecar to the reranker inside one machine, and never to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.blocks import plan_blocks
from resrank.core.errors import InvalidInputError
from resrank.core.limits import MAX_QUERY_BYTES
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import Float32, ranking
from resrank.core.sidecar.searching import (
    Candidates,
    Mode,
    check_mode,
    check_sizes,
    read_candidates,
    search_request,
)
from resrank.core.tokenization import decode_text, row_field
from resrank.serving.infer import Infer
from resrank.serving.retriever import Retriever
from resrank.serving.step import Arrays, StepRequest

DEFAULT_K = 10
DEFAULT_CANDIDATES = 100
DEFAULT_MODE: Mode = "hybrid"

BLOCKS_IN_FLIGHT = 4
"""Passes of one search that are under way at the same time, as in the client: enough to be computed together, and too
few for one search to fill an engine's queue."""


@dataclass(frozen=True)
class SearchWishes:
    """What a request to ``search`` asks for.

    Attributes:
        k: Passages to return.
        candidates: Passages to retrieve and rerank.
        mode: How candidates are found.
        rerank: Whether the reranker orders them.
    """

    k: int
    candidates: int
    mode: Mode
    rerank: bool

    @classmethod
    def read(cls, parameters: Mapping[str, object]) -> Self:
        """Reads request parameters; those of other names are other people's, such as headers that Triton forwards.

        Raises:
            InvalidInputError: One has the wrong type or is out of its range.
        """
        wishes = cls(
            k=_of_type(int, parameters, Parameter.K, DEFAULT_K),
            candidates=_of_type(int, parameters, Parameter.CANDIDATES, DEFAULT_CANDIDATES),
            mode=check_mode(_of_type(str, parameters, Parameter.MODE, DEFAULT_MODE)),
            rerank=_of_type(bool, parameters, Parameter.RERANK, True),
        )
        check_sizes(wishes.k, wishes.candidates)
        return wishes


class SearchStep:
    """QUERY BYTES [1, 1] to what was found, best first: IDS, TITLES, TEXTS, SCORES, CANDIDATE_* [1, k'], STAGE_MS."""

    def __init__(self, infer: Infer, retriever: Retriever, *, encoder_sha256: str, max_passages: int) -> None:
        """Prepares the calls.

        Args:
            infer: Calls another model.
            retriever: Finds candidates.
            encoder_sha256: The encoder behind ``embed_query`` and ``rerank``. It goes with every search, so that the
                sidecar compares it with the index that it has at that moment: nothing is remembered here that a
                restarted sidecar would make wrong.
            max_passages: Candidates that ``rerank`` takes in one pass.
        """
        self._infer = infer
        self._retriever = retriever
        self._encoder_sha256 = encoder_sha256
        self._max_passages = max_passages

    async def answer(self, request: StepRequest) -> Arrays:
        """Searches once (see :class:`resrank.serving.deferred.RequestStep`).

        Raises:
            InvalidInputError: The query or a parameter breaks a rule.
            RetrievalError: The sidecar failed, or its index belongs to another encoder.
            ServerUnavailableError: The sidecar does not answer.
            QueueFullError: A queue was full, or the caller's time is over.
        """
        wishes = SearchWishes.read(request.parameters)
        queries = request.inputs[Tensor.QUERY]
        text = decode_text(queries[0, 0], row_field(Tensor.QUERY, 0, 1), max_bytes=MAX_QUERY_BYTES)
        stages = _Stages()
        embedding: Float32 | None = None
        if wishes.mode != "lexical":
            vectors = await self._infer(Model.EMBED_QUERY, {Tensor.TEXT: queries}, Tensor.EMBEDDING, request)
            embedding = vectors[0]
            stages.end(0)
        found = await self._retrieve(text, embedding, wishes, request)
        stages.end(1)
        scores = np.asarray(found.scores, dtype=np.float32)
        if found.embeddings is not None:
            scores = await self._rerank(queries, found.embeddings, request)
            stages.end(2)
        return _outputs(found, scores, ranking(scores)[: wishes.k], stages)

    async def _retrieve(
        self, text: str, embedding: Float32 | None, wishes: SearchWishes, request: StepRequest
    ) -> Candidates:
        # Words alone involve no encoder, so that any index can be searched by them.
        encoder = self._encoder_sha256 if wishes.rerank or wishes.mode != "lexical" else None
        response = await self._retriever.search(
            search_request(
                text,
                embedding,
                mode=wishes.mode,
                k=wishes.candidates,
                encoder_sha256=encoder,
                include_texts=request.wants(Tensor.TITLES, Tensor.TEXTS),
                include_embeddings=wishes.rerank,
            ),
            request.deadline,
        )
        return read_candidates(response, encoder_sha256=encoder, include_embeddings=wishes.rerank)

    async def _rerank(
        self, queries: NDArray[np.object_], candidates: NDArray[np.float16], request: StepRequest
    ) -> Float32:
        """FP32 [N] of FP16 [N, d], in blocks of one pass each."""
        blocks = plan_blocks(len(candidates), self._max_passages)
        places = asyncio.Semaphore(BLOCKS_IN_FLIGHT)
        failed = False

        async def one_pass(block: slice) -> Float32 | None:
            nonlocal failed
            async with places:
                if failed:  # what is under way is waited for, but nothing more is sent
                    return None
                inputs = {Tensor.QUERY: queries, Tensor.CANDIDATES: candidates[np.newaxis, block]}
                try:
                    scores: Float32 = (await self._infer(Model.RERANK, inputs, Tensor.SCORES, request))[0]
                except BaseException:
                    failed = True
                    raise
                return scores

        outcomes = await asyncio.gather(*map(one_pass, blocks), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return np.concatenate([outcome for outcome in outcomes if not isinstance(outcome, BaseException | None)])


class _Stages:
    """Milliseconds of each stage, in the form of STAGE_MS."""

    def __init__(self) -> None:
        self._lap = time.perf_counter()
        self.took_ms = np.zeros(3, dtype=np.float32)

    def end(self, stage: int) -> None:
        now = time.perf_counter()
        self.took_ms[stage] = 1e3 * (now - self._lap)
        self._lap = now


def _outputs(found: Candidates, scores: Float32, best: NDArray[np.int64], stages: _Stages) -> Arrays:
    columns: dict[Tensor, NDArray[Any]] = {
        Tensor.IDS: _texts(found.ids, best),
        Tensor.SCORES: scores[best],
        Tensor.CANDIDATE_RANKS: best.astype(np.int32) + 1,
        Tensor.CANDIDATE_SCORES: np.asarray(found.scores, dtype=np.float32)[best],
        Tensor.STAGE_MS: stages.took_ms,
    }
    if found.titles or not found.ids:
        columns[Tensor.TITLES] = _texts(found.titles, best)
        columns[Tensor.TEXTS] = _texts(found.texts, best)
    return {name: column[np.newaxis] for name, column in columns.items()}


def _texts(values: Sequence[str], best: NDArray[np.int64]) -> NDArray[np.object_]:
    """BYTES of those chosen."""
    chosen = np.empty(len(best), dtype=np.object_)
    chosen[:] = [values[place].encode() for place in best.tolist()]
    return chosen


def _of_type(kind: type[Any], parameters: Mapping[str, object], name: Parameter, default: Any) -> Any:
    value = parameters.get(name, default)
    if type(value) is not kind:  # a bool is an int to Python
        raise InvalidInputError(name, f"must be a request parameter of type {kind.__name__}, not {value!r}")
    return value
