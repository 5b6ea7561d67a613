"""``encoder`` and ``reranker`` on a CPU: the rows of a whole batch of requests through an engine.

Requests come as Triton's batcher joined them, with different lengths. Rows are taken out of their requests, stripped
of padding, grouped by length, computed and put back, so a request's answer does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from resrank.engines import Engine, EngineKind, EngineOptions, Precision, load_engine
from resrank.errors import InvalidInputError
from resrank.names import ENGINE_FILE, Parameter, Tensor
from resrank.prompt import pad_candidates
from resrank.serving.row_groups import group_rows
from resrank.serving.step import Arrays, Outcome, StepRequest

CALL_COST = 48
"""Positions that take as long as a call's fixed part (see ``group_rows``). Measured with OpenVINO bf16 on 2 cores as
intercept over slope of time against positions: 45 for a 22M encoder, 20 for a 135M reranker, and 20 to 30 more when
the engine first sees a shape."""

SEQUENCE_MULTIPLE = 16
"""The reranker's rows are padded to a multiple of this. OpenVINO's bf16 products fall into slow blockings at some row
counts: measured on 2 cores with a 135M decoder, 136 ms at 158 positions and 172 at 168, but 114 at 160 and 125 at 176.
It also meets fewer shapes, each of which costs extra the first time."""

MAX_POSITIONS = 8192
"""Positions in one call. Measured as above: time per position falls until about 64 rows of 128 tokens, then rises."""


@dataclass(frozen=True)
class EngineLimits:
    """What the graph can take; out of it, engines read foreign memory or die.

    Attributes:
        vocabulary_size: Token ids lie below.
        max_tokens: Longest row.
    """

    vocabulary_size: int
    max_tokens: int


class _Graph(Protocol):
    """What encoder and reranker do differently."""

    def lengths(self, inputs: Arrays, limits: EngineLimits) -> NDArray[np.int64]:
        """Checks one request and tells each row's positions without padding, INT64 [B]."""
        ...

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], limits: EngineLimits) -> dict[str, NDArray[Any]]:
        """Pads single rows (arrays without batch dimension) to one batch for the engine."""
        ...

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """Strips one row's outputs of what padding added."""
        ...


class EncoderGraph:
    """INPUT_IDS, ATTENTION_MASK INT64 [B, L] to EMBEDDING FP32 [B, d]."""

    def lengths(self, inputs: Arrays, limits: EngineLimits) -> NDArray[np.int64]:
        """See the protocol.

        Raises:
            InvalidInputError: Ids outside the vocabulary, a mask that is not ones followed by zeros, or a row that is
                empty or too long.
        """
        ids, mask = inputs[Tensor.INPUT_IDS], inputs[Tensor.ATTENTION_MASK]
        _require_ids(ids, limits)
        if mask.shape != ids.shape:
            raise InvalidInputError(Tensor.ATTENTION_MASK, f"shape {mask.shape} is not that of INPUT_IDS, {ids.shape}")
        lengths: NDArray[np.int64] = mask.sum(axis=1, dtype=np.int64)
        if lengths.min(initial=1) < 1 or not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]):
            raise InvalidInputError(Tensor.ATTENTION_MASK, "not ones on a row's tokens and zeros behind them")
        return lengths

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], limits: EngineLimits) -> dict[str, NDArray[Any]]:
        """See the protocol."""
        width = max(lengths)
        mask = np.arange(width) < np.asarray(lengths)[:, None]
        return {
            Tensor.INPUT_IDS: _pad_ids(rows, lengths, width),
            Tensor.ATTENTION_MASK: mask.astype(np.int64),
        }

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """See the protocol: one vector a row, nothing to strip."""
        return outputs


class RerankerGraph:
    """The laid-out sequence and its candidates to PASSAGE_STATES FP32 [B, N', d] and QUERY_STATE FP32 [B, d]."""

    def lengths(self, inputs: Arrays, limits: EngineLimits) -> NDArray[np.int64]:
        """See the protocol.

        Raises:
            InvalidInputError: Ids outside the vocabulary, positions outside the sequence, more of them than it has,
                positions and candidates of different number, or a row that is empty or too long.
        """
        ids, positions = inputs[Tensor.INPUT_IDS], inputs[Tensor.PASSAGE_POSITIONS]
        last, candidates = inputs[Tensor.LAST_POSITION], inputs[Tensor.CANDIDATES]
        _require_ids(ids, limits)
        if positions.shape[1] == 0 or positions.shape != candidates.shape[:2]:
            raise InvalidInputError(
                Tensor.PASSAGE_POSITIONS, f"shape {positions.shape} is not one position for each of CANDIDATES"
            )
        if positions.shape[1] > ids.shape[1]:  # every row that shares the call is padded to as many
            raise InvalidInputError(
                Tensor.PASSAGE_POSITIONS, "more than the sequence has", limit=ids.shape[1], value=positions.shape[1]
            )
        for name, array in ((Tensor.PASSAGE_POSITIONS, positions), (Tensor.LAST_POSITION, last)):
            if array.min() < 0 or array.max() >= ids.shape[1]:
                raise InvalidInputError(name, "outside the sequence", limit=ids.shape[1] - 1, value=int(array.max()))
        lengths: NDArray[np.int64] = np.maximum(positions.max(axis=1), last[:, 0]) + 1
        return lengths

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], limits: EngineLimits) -> dict[str, NDArray[Any]]:
        """See the protocol. Padding candidates repeat the row's last one at its own place (``resrank.prompt``)."""
        slots = max(row[Tensor.PASSAGE_POSITIONS].shape[0] for row in rows)
        positions = [np.pad(p, (0, slots - len(p)), mode="edge") for p in _column(rows, Tensor.PASSAGE_POSITIONS)]
        candidates = [pad_candidates(c[None], slots) for c in _column(rows, Tensor.CANDIDATES)]
        return {
            Tensor.INPUT_IDS: _pad_ids(rows, lengths, min(padded_length(max(lengths)), limits.max_tokens)),
            Tensor.PASSAGE_POSITIONS: np.stack(positions),
            Tensor.LAST_POSITION: np.stack(_column(rows, Tensor.LAST_POSITION)),
            Tensor.CANDIDATES: np.concatenate(candidates),
        }

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """See the protocol."""
        slots = row[Tensor.PASSAGE_POSITIONS].shape[0]
        return {**outputs, Tensor.PASSAGE_STATES: outputs[Tensor.PASSAGE_STATES][:slots]}


class EngineStep:
    """Runs batches of requests through one engine."""

    def __init__(self, engine: Engine, graph: _Graph, limits: EngineLimits) -> None:
        """Joins an engine with the graph that it runs.

        Args:
            engine: The compiled graph.
            graph: :class:`EncoderGraph` or :class:`RerankerGraph`.
            limits: What the graph can take.
        """
        self._engine = engine
        self._graph = graph
        self._limits = limits

    @classmethod
    def load(cls, folder: Path, graph: _Graph, parameters: Mapping[str, str]) -> Self:
        """Compiles the engine that a model's config asks for.

        Args:
            folder: Holds the ONNX graph.
            graph: What the graph is.
            parameters: Of the model's config.

        Raises:
            EngineError: The engine is not installed or refuses the graph.
        """
        options = EngineOptions(
            EngineKind(parameters[Parameter.ENGINE]),
            Precision(parameters[Parameter.PRECISION]),
            int(parameters[Parameter.THREADS]),
        )
        limits = EngineLimits(int(parameters[Parameter.VOCABULARY_SIZE]), int(parameters[Parameter.MAX_TOKENS]))
        return cls(load_engine(folder / ENGINE_FILE, options), graph, limits)

    def run(self, requests: Sequence[StepRequest]) -> list[Outcome]:
        """Computes a batch in as few calls as its spread of lengths deserves (see the protocol)."""
        outcomes: list[Outcome | None] = [None] * len(requests)
        owners: list[int] = []
        rows: list[Arrays] = []
        lengths: list[int] = []
        for owner, request in enumerate(requests):
            try:
                found = self._graph.lengths(request.inputs, self._limits)
            except InvalidInputError as error:
                outcomes[owner] = error
                continue
            owners += [owner] * len(found)
            lengths += found.tolist()
            rows += [{name: array[row] for name, array in request.inputs.items()} for row in range(len(found))]
        results: list[Outcome] = self._compute(rows, lengths)
        for owner, outcome in enumerate(outcomes):
            if outcome is None:
                outcomes[owner] = _gather([result for result, by in zip(results, owners, strict=True) if by == owner])
        return [outcome for outcome in outcomes if outcome is not None]

    def _compute(self, rows: Sequence[Arrays], lengths: Sequence[int]) -> list[Outcome]:
        results: list[Outcome] = [{}] * len(rows)
        for group in group_rows(lengths, call_cost=CALL_COST, max_positions=MAX_POSITIONS):
            members = [rows[index] for index in group]
            try:
                outputs = self._engine.run(self._graph.join(members, [lengths[index] for index in group], self._limits))
            except Exception as error:
                for index in group:
                    results[index] = error
                continue
            for place, (index, row) in enumerate(zip(group, members, strict=True)):
                mine = {Tensor(name): array[place] for name, array in outputs.items()}
                results[index] = self._graph.restore(row, mine)
        return results


def padded_length(positions: int) -> int:
    """The next multiple of ``SEQUENCE_MULTIPLE``."""
    return -(-positions // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def _gather(rows: Sequence[Outcome]) -> Outcome:
    """Stacks the rows of one request again; one failed row fails it."""
    arrays: list[Arrays] = []
    for row in rows:
        if isinstance(row, Exception):
            return row
        arrays.append(row)
    return {name: np.stack(_column(arrays, name)) for name in arrays[0]}


def _column(rows: Sequence[Arrays], name: Tensor) -> list[NDArray[Any]]:
    return [row[name] for row in rows]


def _pad_ids(rows: Sequence[Arrays], lengths: Sequence[int], width: int) -> NDArray[np.int64]:
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[place, :length] = row[Tensor.INPUT_IDS][:length]
    return ids


def _require_ids(ids: NDArray[np.int64], limits: EngineLimits) -> None:
    if ids.shape[1] == 0:
        raise InvalidInputError(Tensor.INPUT_IDS, "no tokens", limit="at least 1", value=0)
    if ids.shape[1] > limits.max_tokens:
        raise InvalidInputError(Tensor.INPUT_IDS, "too many tokens", limit=limits.max_tokens, value=ids.shape[1])
    if ids.min() < 0 or ids.max() >= limits.vocabulary_size:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise InvalidInputError(Tensor.INPUT_IDS, "not in the vocabulary", limit=limits.vocabulary_size, value=wrong)
