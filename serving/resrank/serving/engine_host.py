"""``encoder`` and ``reranker`` in the Python backend: the rows of a whole batch of requests through an engine.

Requests of a batch have different lengths. Rows are taken out of their requests, stripped of padding, grouped by
length, padded to what suits the engine, computed and put back, so a request's answer does not depend on its company.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.names import CHECKPOINT_DIR, ENGINE_FILE, Model, Parameter, Tensor
from resrank.core.prompt import pad_candidates
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engines import Engine, EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.python_backend import ModelInstance
from resrank.serving.step import Answer, Arrays, StepRequest


@dataclass(frozen=True)
class EngineLimits:
    """What the graph can take; out of it, engines read foreign memory or die.

    Attributes:
        vocabulary_size: Token ids lie below.
        max_tokens: Longest row.
        max_candidates: Most candidates of a row; None for as many as it has positions.
    """

    vocabulary_size: int
    max_tokens: int
    max_candidates: int | None = None


class Graph(Protocol):
    """What encoder and reranker do differently."""

    role: ClassVar[Model]

    def lengths(self, inputs: Arrays, limits: EngineLimits) -> NDArray[np.int64]:
        """Checks one request and tells each row's positions without padding, INT64 [B]."""
        ...

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], policy: BatchingPolicy) -> dict[str, NDArray[Any]]:
        """Pads single rows (arrays without batch dimension) to one batch for the engine."""
        ...

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """Strips one row's outputs of what padding added."""
        ...


class EncoderGraph:
    """INPUT_IDS, ATTENTION_MASK INT64 [B, L] to EMBEDDING FP32 [B, d]."""

    role: ClassVar[Model] = Model.ENCODER

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

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], policy: BatchingPolicy) -> dict[str, NDArray[Any]]:
        """See the protocol."""
        width = policy.padded_length(max(lengths))
        mask = np.arange(width) < np.asarray(lengths)[:, None]
        return {
            Tensor.INPUT_IDS: _pad_ids(rows, lengths, width),
            Tensor.ATTENTION_MASK: mask.astype(np.int64),
        }

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """See the protocol: one vector a row, nothing to strip."""
        return outputs


class RerankerGraph:
    """The laid-out sequence and what its slots hold to what the checkpoint's reranker says of them.

    In the slots are CANDIDATES FP16 [B, N', d], RELATIONS FP32 [B, N', 3K + 4] or both; out come PASSAGE_STATES FP32
    [B, N', d] and QUERY_STATE FP32 [B, d], SCORE_RESIDUALS FP32 [B, N'], or all three. Only what a graph has comes
    here: the model's config is the checkpoint's. Without a query's state there is no LAST_POSITION, and a row ends at
    its last slot, since nothing behind it is seen.
    """

    role: ClassVar[Model] = Model.RERANKER

    def lengths(self, inputs: Arrays, limits: EngineLimits) -> NDArray[np.int64]:
        """See the protocol.

        Raises:
            InvalidInputError: Ids outside the vocabulary, positions outside the sequence, more of them than it has,
                positions and candidates of different number or too many, or a row that is empty or too long.
        """
        ids, positions = inputs[Tensor.INPUT_IDS], inputs[Tensor.PASSAGE_POSITIONS]
        last = inputs.get(Tensor.LAST_POSITION)
        _require_ids(ids, limits)
        for name in _held(inputs):
            if positions.shape[1] == 0 or positions.shape != inputs[name].shape[:2]:
                raise InvalidInputError(
                    Tensor.PASSAGE_POSITIONS, f"shape {positions.shape} is not one position for each of {name}"
                )
        if positions.shape[1] > ids.shape[1]:  # every row that shares the call is padded to as many
            raise InvalidInputError(
                Tensor.PASSAGE_POSITIONS, "more than the sequence has", limit=ids.shape[1], value=positions.shape[1]
            )
        if limits.max_candidates is not None and positions.shape[1] > limits.max_candidates:
            raise InvalidInputError(
                Tensor.CANDIDATES, "too many", limit=limits.max_candidates, value=positions.shape[1]
            )
        for name in (Tensor.PASSAGE_POSITIONS, Tensor.LAST_POSITION):
            array = inputs.get(name)
            if array is not None and (array.min() < 0 or array.max() >= ids.shape[1]):
                raise InvalidInputError(name, "outside the sequence", limit=ids.shape[1] - 1, value=int(array.max()))
        # Never shorter than its slots, whatever its positions: rows that share its call are padded to as many.
        ends: NDArray[np.int64] = np.maximum(positions.max(axis=1), positions.shape[1] - 1)
        return (ends if last is None else np.maximum(ends, last[:, 0])) + 1

    def join(self, rows: Sequence[Arrays], lengths: Sequence[int], policy: BatchingPolicy) -> dict[str, NDArray[Any]]:
        """See the protocol. Padding candidates repeat the row's last one at its own place (``resrank.core.prompt``)."""
        width = policy.padded_length(max(lengths))
        slots = policy.padded_candidates(max(row[Tensor.PASSAGE_POSITIONS].shape[0] for row in rows), width)
        positions = [np.pad(p, (0, slots - len(p)), mode="edge") for p in _column(rows, Tensor.PASSAGE_POSITIONS)]
        batch = {Tensor.INPUT_IDS: _pad_ids(rows, lengths, width), Tensor.PASSAGE_POSITIONS: np.stack(positions)}
        if Tensor.LAST_POSITION in rows[0]:
            batch[Tensor.LAST_POSITION] = np.stack(_column(rows, Tensor.LAST_POSITION))
        for name in _held(rows[0]):
            batch[name] = np.concatenate([pad_candidates(held[None], slots) for held in _column(rows, name)])
        return {name.value: array for name, array in batch.items()}

    def restore(self, row: Arrays, outputs: Arrays) -> Arrays:
        """See the protocol."""
        slots = row[Tensor.PASSAGE_POSITIONS].shape[0]
        return {name: array if name is Tensor.QUERY_STATE else array[:slots] for name, array in outputs.items()}


def _held(inputs: Arrays) -> list[Tensor]:
    """What stands in the slots."""
    return [name for name in (Tensor.CANDIDATES, Tensor.RELATIONS) if name in inputs]


class EngineStep:
    """Runs batches of requests through one engine."""

    def __init__(
        self, engine: Engine, graph: Graph, limits: EngineLimits, policy: BatchingPolicy, *, batch_rows: int
    ) -> None:
        """Joins an engine with the graph that it runs.

        Args:
            engine: The compiled graph.
            graph: :class:`EncoderGraph` or :class:`RerankerGraph`.
            limits: What the graph can take.
            policy: What suits the engine.
            batch_rows: Rows of several requests that are to be computed together at most.
        """
        self._engine = engine
        self._graph = graph
        self._limits = limits
        self._policy = policy
        if batch_rows < 1:
            raise CheckpointError(
                f"parameter {Parameter.BATCH_ROWS} is {batch_rows}: an engine computes 1 row at least"
            )
        self._batch_rows = batch_rows

    @classmethod
    def load(cls, instance: ModelInstance, graph: Graph) -> Self:
        """Makes the engine ready that a model's config asks for.

        Args:
            instance: Where it is to run; its folder holds what the engine reads.
            graph: What the engine computes.

        Raises:
            EngineError: The engine is not installed, or refuses its files or the machine.
            CheckpointError: Torch's files are damaged.
        """
        parameters = instance.parameters
        os.nice(int(parameters.get(Parameter.NICENESS, 0)))  # before the engine makes its threads, which inherit it
        kind = EngineKind(parameters[Parameter.ENGINE])
        on_gpu = kind is EngineKind.TORCH and instance.gpu is not None
        device = instance.gpu if on_gpu else None
        options = EngineOptions(
            kind, Precision(parameters[Parameter.PRECISION]), int(parameters[Parameter.THREADS]), device
        )
        rows, tokens = instance.max_rows, int(parameters[Parameter.MAX_TOKENS])
        if on_gpu:
            policy = BatchingPolicy.on_gpu(graph.role, parameters, max_rows=rows, max_tokens=tokens)
        else:
            policy = BatchingPolicy.on_cpu(max_rows=rows, max_tokens=tokens)
        limits = EngineLimits(
            int(parameters[Parameter.VOCABULARY_SIZE]),
            min(tokens, policy.lengths[-1]) if policy.lengths else tokens,
            policy.candidates[-1] if policy.candidates else None,
        )
        engine = load_engine(engine_path(instance.folder, graph.role, kind), options)
        return cls(engine, graph, limits, policy, batch_rows=int(parameters.get(Parameter.BATCH_ROWS, rows)))

    def batch_size(self, waiting: int) -> int:
        """As many rows as one call takes: what is left over is answered sooner with those who come meanwhile.

        Args:
            waiting: Rows that there are, at least 1.
        """
        return max(size for size in (1, *self._policy.sizes) if size <= min(waiting, self._batch_rows))

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Computes a batch in as few calls as its spread of lengths deserves (see the protocol)."""
        outcomes: list[Answer | None] = [None] * len(requests)
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
        results: list[Answer] = self._compute(rows, lengths)
        for owner, outcome in enumerate(outcomes):
            if outcome is None:
                outcomes[owner] = _gather([result for result, by in zip(results, owners, strict=True) if by == owner])
        return [outcome for outcome in outcomes if outcome is not None]

    def _compute(self, rows: Sequence[Arrays], lengths: Sequence[int]) -> list[Answer]:
        results: list[Answer] = [{}] * len(rows)
        for group in self._policy.group(lengths):
            members = [rows[index] for index in group]
            try:
                batch = self._graph.join(members, [lengths[index] for index in group], self._policy)
                outputs = self._engine.run(_repeat_last_row(batch, self._policy.padded_rows(len(group))))
            except Exception as error:
                for index in group:
                    results[index] = error
                continue
            for place, (index, row) in enumerate(zip(group, members, strict=True)):
                mine = {Tensor(name): array[place] for name, array in outputs.items()}
                results[index] = self._graph.restore(row, mine)
        return results


def engine_path(folder: Path, role: Model, kind: EngineKind) -> Path:
    """What an engine reads in a model's version folder.

    Args:
        folder: The version folder.
        role: ``encoder`` or ``reranker``.
        kind: Which engine.
    """
    return folder / CHECKPOINT_DIR / role if kind is EngineKind.TORCH else folder / ENGINE_FILE


def _repeat_last_row(batch: Mapping[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    """Pads the batch axis with valid rows, whose outputs nobody reads."""
    return {
        name: np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if rows > len(array) else array
        for name, array in batch.items()
    }


def _gather(rows: Sequence[Answer]) -> Answer:
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
