"""The parity gate: an engine has to compute what the torch reference computes, or the export fails.

Inputs are random and valid, of unequal lengths, padded together for the engine and run row by row for the reference.
Fusion is computed at g = 1 and γ = 1 whatever the checkpoint's, since a gate of 0 would hide a broken reranker
(:mod:`resrank.export.engine_head` does the same for w), and on raw cosines, whatever A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resrank.core.checkpoint import Norm
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout, pad_candidates
from resrank.core.relations import canonical_order, padded_relations, relations
from resrank.core.scoring import Float32, normalize, score
from resrank.core.tokenization import pad_tokens
from resrank.export.rerank_chain import reranker_inputs
from resrank.model.modeling import ResRankModel
from resrank.serving.engines.base import Engine, EngineOptions, Precision

_SEED = 2604_22180
_ENCODER_ROWS = 8


@dataclass(frozen=True)
class Tolerance:
    """What an engine may be off by.

    Attributes:
        state_cosine: Least cosine between an engine's state and the reference's.
        score: Largest difference of a score; also the gap below which the order of two scores is not compared.
    """

    state_cosine: float
    score: float


TOLERANCES = {
    Precision.FP32: Tolerance(state_cosine=0.9999, score=1e-4),
    Precision.BF16: Tolerance(state_cosine=0.999, score=1e-2),
    Precision.FP16: Tolerance(state_cosine=0.999, score=1e-2),
    Precision.INT8: Tolerance(state_cosine=0.99, score=2e-2),
}


@dataclass(frozen=True)
class ParityResult:
    """One engine against the reference.

    Attributes:
        model: ``encoder`` or ``reranker``.
        options: The engine.
        state_cosine: Least cosine over all rows (embeddings for the encoder, states for the reranker); None for a
            reranker that gives numbers alone.
        score_difference: Largest |ds|: of cosines between embeddings, or of scores at g = 1 as they are served.
        kendall_tau: Over the pairs whose reference scores are further apart than the tolerance.
        rows: How many vectors, or numbers, were compared.
    """

    model: Model
    options: EngineOptions
    state_cosine: float | None
    score_difference: float
    kendall_tau: float
    rows: int

    @property
    def tolerance(self) -> Tolerance:
        """What this engine's precision may be off by."""
        return TOLERANCES[self.options.precision]

    @property
    def passed(self) -> bool:
        """Whether all figures are within tolerance (a NaN is not)."""
        return (
            (self.state_cosine is None or self.state_cosine >= self.tolerance.state_cosine)
            and self.score_difference <= self.tolerance.score
            and self.kendall_tau == 1.0
        )


@dataclass(frozen=True)
class RowOutputs:
    """What an engine or the reference says of one row without its padding; None for what the checkpoint has not."""

    passage_states: Float32 | None
    query_state: Float32 | None
    residuals: Float32 | None


@dataclass(frozen=True)
class RerankerCase:
    """One padded batch for the reranker and what the reference says of it, row by row.

    Attributes:
        inputs: Of the engine.
        embeddings: FP16 [N, d] of each row.
        query_embeddings: FP32 [B, d].
        outputs: The reference's.
    """

    inputs: dict[str, NDArray[Any]]
    embeddings: tuple[NDArray[np.float16], ...]
    query_embeddings: Float32
    outputs: tuple[RowOutputs, ...]


@dataclass(frozen=True)
class EncoderCase:
    """One padded batch for the encoder and the reference's embeddings."""

    inputs: dict[str, NDArray[Any]]
    embeddings: Float32


class ParityGate:
    """Holds the reference's answers; engines are measured against them one after the other."""

    def __init__(self, model: ResRankModel, layout: PromptLayout, *, residual_factor: float = 1.0) -> None:
        """Draws the inputs and computes the reference.

        Args:
            model: The torch model in fp32, evaluation mode and its stock attention.
            layout: The checkpoint's own prompt. Decoders lean on their first tokens (attention sinks), so a random
                prompt would measure states that never occur in service.
            residual_factor: What scoring multiplies SCORE_RESIDUALS by, of
                :class:`resrank.export.engine_head.EngineHead`. Below 1 they are held to the tolerance as they are, so
                that a small or zero w hides nothing.
        """
        self._model = model
        self._residual_weight = max(1.0, residual_factor)
        self._layout = layout
        rng = np.random.default_rng(_SEED)
        with torch.inference_mode():
            self.encoder_case = self._draw_encoder_case(rng)
            self.reranker_case = self._draw_reranker_case(rng)

    def check_encoder(self, engine: Engine, options: EngineOptions) -> ParityResult:
        """Measures one encoder engine."""
        case = self.encoder_case
        found = engine.run(case.inputs)[Tensor.EMBEDDING]
        reference, candidate = normalize(case.embeddings), normalize(found)
        upper = np.triu_indices(len(reference), k=1)
        return ParityResult(
            model=Model.ENCODER,
            options=options,
            state_cosine=_least_cosine([reference], [candidate]),
            score_difference=float(np.abs(reference @ reference.T - candidate @ candidate.T).max()),
            kendall_tau=kendall_tau(
                [(reference @ reference.T)[upper]],
                [(candidate @ candidate.T)[upper]],
                TOLERANCES[options.precision].score,
            ),
            rows=len(reference),
        )

    def check_reranker(self, engine: Engine, options: EngineOptions) -> ParityResult:
        """Measures one reranker engine."""
        case = self.reranker_case
        found = engine.run(case.inputs)
        rows = [
            RowOutputs(
                _row(found, Tensor.PASSAGE_STATES, row, len(one)),
                _row(found, Tensor.QUERY_STATE, row, None),
                _row(found, Tensor.SCORE_RESIDUALS, row, len(one)),
            )
            for row, one in enumerate(case.embeddings)
        ]
        reference_scores, engine_scores = self._scores(case.outputs), self._scores(rows)
        states = [_states(row) for row in case.outputs], [_states(row) for row in rows]
        count = sum(map(len, case.embeddings))
        with_states = self._model.spec.fusion.has_vector_residual
        return ParityResult(
            model=Model.RERANKER,
            options=options,
            state_cosine=_least_cosine(*states) if with_states else None,
            # NumPy's, to which a NaN is the greatest: Python's passes one over that does not come first.
            score_difference=float(
                np.max([np.abs(a - b).max() for a, b in zip(reference_scores, engine_scores, strict=True)])
            ),
            kendall_tau=kendall_tau(reference_scores, engine_scores, TOLERANCES[options.precision].score),
            rows=count + len(rows) if with_states else count,
        )

    def _scores(self, rows: Sequence[RowOutputs]) -> list[Float32]:
        case, fusion = self.reranker_case, self._model.spec.fusion
        return [
            score(
                _batched(one.passage_states),
                _batched(one.query_state),
                case.embeddings[row][None],
                case.query_embeddings[row : row + 1] if fusion.query_residual else None,
                gate=1.0,
                normalize_states=fusion.state_norm is Norm.L2,
                residuals=_batched(one.residuals),
                residual_weight=self._residual_weight,
            )[0]
            for row, one in enumerate(rows)
        ]

    def _draw_encoder_case(self, rng: np.random.Generator) -> EncoderCase:
        longest = self._model.spec.encoder.max_passage_tokens
        lengths = np.unique(np.geomspace(3, longest, _ENCODER_ROWS).astype(int))
        rows = [self._random_tokens(rng, int(length), self._model.encoder) for length in lengths]
        padded = pad_tokens(rows)
        inputs: dict[str, NDArray[Any]] = {
            Tensor.INPUT_IDS: padded.input_ids,
            Tensor.ATTENTION_MASK: padded.attention_mask,
        }
        return EncoderCase(inputs, np.concatenate([self._encode_alone(row) for row in rows]))

    def _draw_reranker_case(self, rng: np.random.Generator) -> RerankerCase:
        spec = self._model.spec
        counts = tuple(sorted({spec.reranker.max_passages, max(1, spec.reranker.max_passages // 3), 1}, reverse=True))
        lengths = [min(length, spec.reranker.max_query_tokens) for length in (24, 5, 64)][: len(counts)]
        queries: list[list[int]] = [[] for _ in counts]
        if self._layout.reads_text:
            queries = [self._random_tokens(rng, length, self._model.reranker) for length in lengths]
        # Embeddings of random texts: what stands in the slots in service, not arbitrary points of the space.
        passages = [self._random_tokens(rng, 12, self._model.encoder) for _ in range(counts[0])]
        embeddings = np.concatenate([self._encode_alone(passage) for passage in passages]).astype(np.float16)
        query_embeddings = np.concatenate(
            [self._encode_alone(self._random_tokens(rng, 8, self._model.encoder)) for _ in counts]
        )
        lists, relational = self._in_order([embeddings[:count] for count in counts], query_embeddings)
        rows = [one[None] for one in lists]
        batch = self._layout.batch(queries, counts)
        width = batch.passage_positions.shape[1]
        drawn: dict[str, NDArray[Any]] = {
            Tensor.INPUT_IDS: batch.input_ids,
            Tensor.PASSAGE_POSITIONS: batch.passage_positions,
            Tensor.LAST_POSITION: batch.last_position,
            Tensor.CANDIDATES: np.concatenate([pad_candidates(row, width) for row in rows]),
        }
        if relational:
            drawn[Tensor.RELATIONS] = padded_relations(relational, width)
        outputs = []
        for index, count in enumerate(counts):
            alone = self._layout.batch([queries[index]], [count])
            found = self._model.outputs(
                torch.from_numpy(alone.input_ids),
                torch.from_numpy(alone.passage_positions),
                torch.from_numpy(alone.last_position),
                torch.from_numpy(rows[index]),
                torch.from_numpy(relational[index])[None] if relational else None,
            )
            states, last, residuals = (None if part is None else part[0].numpy() for part in found)
            outputs.append(RowOutputs(_first(states, count), last, _first(residuals, count)))
        inputs = {tensor.value: drawn[tensor] for tensor in reranker_inputs(spec)}
        return RerankerCase(inputs, tuple(lists), query_embeddings, tuple(outputs))

    def _in_order(
        self, lists: list[NDArray[np.float16]], queries: Float32
    ) -> tuple[list[NDArray[np.float16]], list[Float32]]:
        """The lists as the reranker reads them, and their relations; empty where it reads none."""
        neighbors = self._model.spec.reranker.slots.neighbors
        if neighbors is None:
            return lists, []
        ordered = [one[canonical_order(query, one).order] for one, query in zip(lists, queries, strict=True)]
        cosine_map = self._model.spec.fusion.cosine_map
        return ordered, [
            relations(query, one, neighbors=neighbors, cosine_map=cosine_map)
            for one, query in zip(ordered, queries, strict=True)
        ]

    def _encode_alone(self, row: list[int]) -> Float32:
        ids = torch.tensor([row])
        embedding: Float32 = self._model.encode(ids, torch.ones_like(ids)).numpy()
        return embedding

    @staticmethod
    def _random_tokens(rng: np.random.Generator, length: int, backbone: Any) -> list[int]:
        return [int(token) for token in rng.integers(0, backbone.config.vocab_size, size=length)]


def kendall_tau(reference: list[Float32], found: list[Float32], gap: float) -> float:
    """Kendall's tau over the pairs whose reference scores differ by more than ``gap``; 1 when there are none.

    Args:
        reference: FP32 [N] per row.
        found: FP32 [N] per row.
        gap: Pairs closer than this are left out.

    Returns:
        (concordant - discordant) / compared pairs, in [-1, 1]; NaN where a score of ``found`` is not finite.
    """
    if not all(np.isfinite(other).all() for other in found):
        return math.nan
    agreement = compared = 0
    for truth, other in zip(reference, found, strict=True):
        difference = truth[:, None] - truth[None, :]
        far = np.triu(np.abs(difference) > gap)
        agreement += int((np.sign(difference) * np.sign(other[:, None] - other[None, :]))[far].sum())
        compared += int(far.sum())
    return agreement / compared if compared else 1.0


def parity_table(results: list[ParityResult]) -> str:
    """The figures as aligned text, one engine a line, each with its bound."""
    header = (
        f"{'model':<10}{'engine':<13}{'precision':<11}{'state cosine':<24}{'|score difference|':<24}{'Kendall tau':<13}"
    )
    lines = [header.rstrip()]
    lines += [
        f"{result.model.value:<10}{result.options.kind.value:<13}{result.options.precision.value:<11}"
        f"{_state_cosine(result):<24}"
        f"{f'{result.score_difference:.2e} (<= {result.tolerance.score:g})':<24}"
        f"{result.kendall_tau:<13.4f}{'pass' if result.passed else 'FAIL'}"
        for result in results
    ]
    return "\n".join(lines)


def _row(outputs: Mapping[str, NDArray[Any]], name: Tensor, row: int, count: int | None) -> Float32 | None:
    return _first(outputs[name][row], count) if name in outputs else None


def _first(array: Float32 | None, count: int | None) -> Float32 | None:
    return None if array is None else array[:count]


def _batched(array: Float32 | None) -> Float32 | None:
    return None if array is None else array[None]


def _states(row: RowOutputs) -> Float32:
    """Of the passages and the query together, FP32 [N + 1, d]; none without a vector residual."""
    if row.passage_states is None or row.query_state is None:
        return np.empty((0, 1), np.float32)
    return np.concatenate([row.passage_states, row.query_state[None]])


def _state_cosine(result: ParityResult) -> str:
    if result.state_cosine is None:
        return "no states"
    return f"{result.state_cosine:.6f} (>= {result.tolerance.state_cosine})"


def _least_cosine(reference: list[Float32], found: list[Float32]) -> float:
    pairs = zip(reference, found, strict=True)
    return float(np.min([np.einsum("nd,nd->n", normalize(a), normalize(b)).min() for a, b in pairs]))
