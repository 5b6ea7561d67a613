"""Optimisation profiles: which shapes the TensorRT engines take, and which they are fastest at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Self

from resrank.core.buckets import Buckets, bucket_series
from resrank.core.checkpoint import CheckpointSpec
from resrank.core.errors import ExportError
from resrank.core.limits import MAX_BATCH_SIZE
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.export.rerank_chain import reranker_inputs

Shape = tuple[int, ...]
"""Sizes of all axes of one tensor, the batch first."""

ProfileShapes = Mapping[Tensor, tuple[Shape, Shape, Shape]]
"""Every input of a graph to its smallest, its optimal and its largest shape."""

ENCODER_BATCH = 64
ENCODER_TOKENS = 512
RERANKER_BATCH = 16
RERANKER_SEQUENCE = 512
RERANKER_CANDIDATES = 128
"""Largest sizes of the default profiles, where the checkpoint's own limits are not lower."""

_SHORTEST_TOKENS = 8
_SHORTEST_SEQUENCE = 16
_QUERY_TOKENS = 16  # of a typical query
_LONG_QUERY_TOKENS = 64
_FIRST_PASS = 100  # candidates of the usual first pass
_CANDIDATE_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Range:
    """The sizes of one dynamic axis.

    Attributes:
        min: Smallest that the engine takes.
        opt: The one that its kernels are chosen for.
        max: Largest that it takes, which its memory is reserved for.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        """Checks the order.

        Raises:
            ExportError: Not 1 <= min <= opt <= max.
        """
        if not 1 <= self.min <= self.opt <= self.max:
            raise ExportError(
                f"min {self.min}, opt {self.opt}, max {self.max} is no range: they must ascend and start at 1 or above"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``min:opt:max``.

        Raises:
            ExportError: The text is not of that form, or the three do not ascend.
        """
        try:
            smallest, optimal, largest = (int(size) for size in text.split(":"))
        except ValueError:
            raise ExportError(f"{text!r} is no range: write min:opt:max, as in 1:8:64") from None
        return cls(smallest, optimal, largest)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class EncoderProfile:
    """One profile of the encoder.

    Attributes:
        batch: Rows.
        tokens: Tokens of the longest row.
    """

    batch: Range
    tokens: Range

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``BATCHxTOKENS``, each ``min:opt:max``: ``1:16:64x8:256:512``.

        Raises:
            ExportError: An axis is missing or wrong; the message names it.
        """
        return cls(**_parse_axes("encoder", ("batch", "tokens"), text))


@dataclass(frozen=True)
class RerankerProfile:
    """One profile of the reranker.

    Attributes:
        batch: Rows.
        sequence: Positions S of the longest row.
        candidates: Candidates N' of every row.
    """

    batch: Range
    sequence: Range
    candidates: Range

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``BATCHxSEQUENCExCANDIDATES``, each ``min:opt:max``: ``1:8:16x16:192:512x1:100:128``.

        Raises:
            ExportError: An axis is missing or wrong; the message names it.
        """
        return cls(**_parse_axes("reranker", ("batch", "sequence", "candidates"), text))


@dataclass(frozen=True)
class Profiles:
    """All profiles of both engines, in the order of their indices.

    Attributes:
        encoder: At least one.
        reranker: At least one.
    """

    encoder: tuple[EncoderProfile, ...]
    reranker: tuple[RerankerProfile, ...]

    def shapes(self, model: Model, index: int, spec: CheckpointSpec) -> ProfileShapes:
        """One profile as shapes of the engine's inputs.

        Args:
            model: ``encoder`` or ``reranker``.
            index: Of the profile.
            spec: The checkpoint's fields, for d.

        Returns:
            Every input to its smallest, optimal and largest shape, batch dimension included.
        """
        if model is Model.ENCODER:
            encoder = self.encoder[index]
            rows_by_tokens = _shapes(encoder.batch, encoder.tokens)
            return {Tensor.INPUT_IDS: rows_by_tokens, Tensor.ATTENTION_MASK: rows_by_tokens}
        if model is Model.RERANKER:
            reranker = self.reranker[index]
            axes = {
                Tensor.INPUT_IDS: (reranker.sequence,),
                Tensor.PASSAGE_POSITIONS: (reranker.candidates,),
                Tensor.LAST_POSITION: (_fixed(1),),
                Tensor.CANDIDATES: (reranker.candidates, _fixed(spec.encoder.embedding_dim)),
                Tensor.RELATIONS: (reranker.candidates, _fixed(spec.reranker.slots.relation_width or 1)),
            }
            return {tensor: _shapes(reranker.batch, *axes[tensor]) for tensor in reranker_inputs(spec)}
        raise ValueError(f"{model.value} is no engine model")

    def all_shapes(self, model: Model, spec: CheckpointSpec) -> tuple[ProfileShapes, ...]:
        """:meth:`shapes` of every profile of one model, in the order of their indices."""
        count = len(self.encoder if model is Model.ENCODER else self.reranker)
        return tuple(self.shapes(model, index, spec) for index in range(count))

    def as_json(self) -> dict[str, list[dict[str, dict[str, int]]]]:
        """``encoder`` and ``reranker`` to their profiles: axis to ``min``, ``opt`` and ``max``."""
        return {
            Model.ENCODER.value: [asdict(profile) for profile in self.encoder],
            Model.RERANKER.value: [asdict(profile) for profile in self.reranker],
        }


def default_profiles(spec: CheckpointSpec, layout: PromptLayout) -> Profiles:
    """Two profiles for each engine: what comes alone and what comes in batches.

    TensorRT chooses one set of kernels per profile, for its ``opt`` shape, so one profile for both a single query of 16
    tokens and 64 passages of 512 (a factor of 2000) is slow at one end. More than two would buy little: the lone
    requests are bound by reading the weights, the batches by arithmetic, and between them lies no third kind. The
    profile for lone requests costs little memory, since a context reserves its ``max`` shape: 1/64 of the other's
    positions for the encoder, 1/16 for the reranker. Triton's TensorRT backend takes the fitting profile whose ``opt``
    is nearest, so the narrower one comes into use by itself.

    Args:
        spec: The checkpoint's fields, whose limits cut the sizes.
        layout: The checkpoint's prompt.

    Returns:
        Profile 0 of each model for requests that come alone, profile 1 for batches.
    """
    of_passages, of_queries = spec.encoder.max_passage_tokens, spec.encoder.max_query_tokens
    tokens = min(ENCODER_TOKENS, max(of_passages, of_queries))
    shortest_tokens = min(_SHORTEST_TOKENS, of_passages, of_queries)
    queries = min(_LONG_QUERY_TOKENS, tokens)
    candidates = min(RERANKER_CANDIDATES, spec.reranker.max_passages)
    sequence = min(RERANKER_SEQUENCE, layout.length(spec.reranker.max_query_tokens, spec.reranker.max_passages))
    first_pass = min(_FIRST_PASS, candidates)
    usual_query = min(_QUERY_TOKENS, spec.reranker.max_query_tokens)
    usual_sequence = min(sequence, layout.length(usual_query, first_pass))
    sequences = Range(min(_SHORTEST_SEQUENCE, sequence), usual_sequence, sequence)
    counts = Range(1, first_pass, candidates)
    return Profiles(
        encoder=(
            EncoderProfile(Range(1, 1, 8), Range(shortest_tokens, min(_QUERY_TOKENS, queries), queries)),
            EncoderProfile(Range(1, 16, ENCODER_BATCH), Range(shortest_tokens, min(256, tokens), tokens)),
        ),
        reranker=(
            RerankerProfile(Range(1, 1, 1), sequences, counts),
            RerankerProfile(Range(1, 8, RERANKER_BATCH), sequences, counts),
        ),
    )


def validate_profiles(profiles: Profiles, spec: CheckpointSpec, layout: PromptLayout) -> None:
    """Holds profiles against what the checkpoint can be asked.

    Args:
        profiles: Given by the user, say.
        spec: The checkpoint's fields.
        layout: The checkpoint's prompt.

    Raises:
        ExportError: There are none, one reaches beyond the model's limits, or none takes a lone row; the message names
            model, profile, axis, what was found and what is allowed.
    """
    reranker = spec.reranker
    limits = {
        Model.ENCODER: {
            "batch": MAX_BATCH_SIZE,
            "tokens": max(spec.encoder.max_passage_tokens, spec.encoder.max_query_tokens),
        },
        Model.RERANKER: {
            "batch": MAX_BATCH_SIZE,
            "sequence": layout.length(reranker.max_query_tokens, reranker.max_passages),
            "candidates": reranker.max_passages,
        },
    }
    of_model: dict[Model, tuple[EncoderProfile | RerankerProfile, ...]] = {
        Model.ENCODER: profiles.encoder,
        Model.RERANKER: profiles.reranker,
    }
    for model, given in of_model.items():
        for index, profile in enumerate(given):
            for axis, limit in limits[model].items():
                found: Range = getattr(profile, axis)
                if found.max > limit:
                    raise ExportError(
                        f"{model.value} profile {index}: {axis} {found} reaches {found.max}, but the checkpoint allows "
                        f"{limit}; end it at {limit} or less"
                    )
        if not any(profile.batch.min == 1 for profile in given):
            found_batches = ", ".join(str(profile.batch) for profile in given) or "no profile at all"
            raise ExportError(
                f"{model.value}: no profile takes a single row ({found_batches}); give one whose batch starts at 1"
            )
    shortest = layout.length(1, 1)
    if not any(profile.sequence.max >= shortest for profile in profiles.reranker):
        raise ExportError(
            f"reranker: no profile takes even one query token and one candidate, which are {shortest} positions with "
            f"this prompt; end a sequence at {shortest} or more"
        )


def default_buckets(profiles: Profiles, spec: CheckpointSpec, layout: PromptLayout) -> Buckets:
    """The lengths that serving pads to, within what the profiles take.

    Tokens are multiples of 8 and sequences of 16 (what attention and matrix kernels tile by), growing by a third, so
    that padding is below one step or a quarter of the row. Candidates follow the depths that retrieval is asked for
    (10, 20, 50, 100, ...): a padded candidate takes no position in the sequence, only a row of the two projections.

    Returns:
        Ascending lengths that end at the longest that both checkpoint and profiles allow.
    """
    tokens = tuple(profile.tokens for profile in profiles.encoder)
    sequences = tuple(profile.sequence for profile in profiles.reranker)
    counts = tuple(profile.candidates for profile in profiles.reranker)
    reranker = spec.reranker
    longest_sequence = layout.length(reranker.max_query_tokens, reranker.max_passages)
    sequence = _within(sequences, longest_sequence, lambda last: bucket_series(layout.length(1, 1), last, step=16))
    # No more candidates than stand in a sequence beside one token: that many are what a repository says it takes.
    most = min(reranker.max_passages, sequence[-1] - layout.length(1, 0))

    def token_buckets(longest: int) -> tuple[int, ...]:
        return _within(tokens, longest, lambda last: bucket_series(_SHORTEST_TOKENS, last, step=8))

    return Buckets(
        passage_tokens=token_buckets(spec.encoder.max_passage_tokens),
        query_tokens=token_buckets(spec.encoder.max_query_tokens),
        sequence=sequence,
        candidates=_within(counts, most, _depths),
    )


def _within(ranges: tuple[Range, ...], longest: int, series: Callable[[int], tuple[int, ...]]) -> tuple[int, ...]:
    """The lengths of a series that some range holds, the last one being long enough for all that the ranges take."""
    end = min(longest, max(sizes.max for sizes in ranges))
    last = min(max(end, sizes.min) for sizes in ranges if sizes.max >= end)  # not `end` where that lies in a gap
    return tuple(length for length in series(last) if any(sizes.min <= length <= sizes.max for sizes in ranges))


def _depths(last: int) -> tuple[int, ...]:
    """10, 20, 50, 100, 200, ... candidates, up to and with ``last``."""
    depths = (10**power * step for power in range(1, 5) for step in _CANDIDATE_STEPS)
    return (*(depth for depth in depths if depth < last), last)


def _fixed(size: int) -> Range:
    return Range(size, size, size)


def _shapes(*axes: Range) -> tuple[Shape, Shape, Shape]:
    return tuple(a.min for a in axes), tuple(a.opt for a in axes), tuple(a.max for a in axes)


def _parse_axes(model: str, names: tuple[str, ...], text: str) -> dict[str, Range]:
    parts = text.split("x")
    if len(parts) != len(names):
        form = "x".join(name.upper() for name in names)
        raise ExportError(f"{model} profile {text!r}: write {form}, each as min:opt:max")
    ranges: dict[str, Range] = {}
    for name, part in zip(names, parts, strict=True):
        try:
            ranges[name] = Range.parse(part)
        except ExportError as error:
            raise ExportError(f"{model} profile {text!r}: {name}: {error}") from None
    return ranges
