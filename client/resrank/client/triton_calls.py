"""Requests to Triton and the reading of its answers.

Made with the messages and the stub that ``tritonclient`` brings of Triton's protocol, and not with its
``InferenceServerClient``: so Triton and the sidecar share one kind of channel, of call and of error, in the sync and in
the asyncio client. Protobuf takes nothing but ``bytes``, so a tensor is copied once out of its array and once into the
message, as ``InferInput`` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from resrank.client.calls import Call, Server
from resrank.client.inputs import Float16
from resrank.client.traces import sampled_traceparent
from resrank.core.errors import Place, ResRankError
from resrank.core.fail_open import Failure
from resrank.core.filter_text import filter_text
from resrank.core.metadata import Metadata, read_metadata
from resrank.core.names import Model, Parameter, Priority, Tensor
from resrank.core.search import SearchOptions
from resrank.core.truncation import Side, Truncation

T = TypeVar("T")
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Truncate: TypeAlias = bool | Truncation | None
"""Whether texts over the token maximum are cut instead of refused: True at the right, or as it is said."""

_MOST_TOKENS = 2**31 - 1  # any limit beyond what a model reads is none
_TYPES = {"FP32": "<f4", "INT32": "<i4"}
"""Triton's names of the types that outputs have, beside BYTES, to NumPy's."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config tells a client.

    Attributes:
        model: Whose config it is.
        max_batch_size: Rows in one request.
        parameters: The config's ``parameters``.
    """

    model: Model
    max_batch_size: int
    parameters: Mapping[str, str]

    def text(self, key: Parameter) -> str:
        """A parameter's value.

        Raises:
            ResRankError: The config does not have it.
        """
        try:
            return self.parameters[key]
        except KeyError:
            raise ResRankError(
                f"model '{self.model}' of this Triton has no parameter '{key}' in its config: "
                "its repository was not written by `resrank export`"
            ) from None

    def positive(self, key: Parameter) -> int:
        """A parameter that is a number above 0.

        Raises:
            ResRankError: The config does not have it, or not as such a number.
        """
        value = self.text(key)
        if not value.isdecimal() or int(value) == 0:
            raise ResRankError(f"model '{self.model}': parameter '{key}' must be a number above 0, not {value!r}")
        return int(value)


@dataclass(frozen=True)
class FoundPassages:
    """What the ``search`` model found, best first.

    Attributes:
        ids: Of the passages.
        titles: Likewise.
        texts: Likewise.
        scores: FP32 [n].
        candidate_ranks: INT32 [n], places in retrieval order, from 1.
        candidate_scores: FP32 [n], the retriever's.
        dense_scores: FP32 [n], cosines; NaN where the search did not take them, as in the two below.
        lexical_scores: FP32 [n], BM25.
        rerank_scores: FP32 [n], the reranker's.
        stage_ms: FP32 [3], of ``embed_query``, ``retrieve`` and ``rerank``; 0 for what did not run.
        failure: What the search did without; None where all went well.
        metadata: Of the passages; None where it was not asked for.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    scores: Float32
    candidate_ranks: NDArray[np.int32]
    candidate_scores: Float32
    dense_scores: Float32
    lexical_scores: Float32
    rerank_scores: Float32
    stage_ms: Float32
    failure: Failure | None
    metadata: Sequence[Metadata] | None = None


def model_facts(model: Model) -> Call[ModelFacts]:
    """Asks for a model's config."""

    def parse(response: Any) -> ModelFacts:
        config = response.config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        return ModelFacts(model, max(1, config.max_batch_size), parameters)

    return Call(
        server=Server.TRITON,
        method="ModelConfig",
        subject=f"config of model '{model}'",
        build=lambda _: service_pb2.ModelConfigRequest(name=model.value),
        parse=parse,
    )


def embed(
    model: Model,
    texts: Sequence[bytes],
    *,
    truncate: Truncate,
    first_row: int | None = None,
    named: Tensor | None = None,
    cut: set[int] | None = None,
    read: list[int] | None = None,
) -> Call[Float32]:
    """Embeds texts in one request.

    Args:
        model: ``embed_query``, ``embed_passage`` or ``embed_bulk``, which is sent at the lower priority.
        texts: UTF-8, at most the model's ``max_batch_size``.
        truncate: Cut texts over the token maximum instead of refusing them.
        first_row: Where the first of them stands in the caller's list; None when the caller gave one text alone.
        named: What the caller calls the list; None for the model's name of it.
        cut: Told places of texts that were cut, when the answer comes.
        read: Told then how many tokens the model read.

    Returns:
        A call for FP32 [len(texts), d].
    """

    def locate(place: Place) -> Place:
        if first_row is None or place.name not in (Tensor.TEXT, Tensor.QUERY):
            return place
        # A request of one row names it without an index.
        return Place(named or place.name, (first_row + (place.index[0] if place.index else 0),))

    def parse(response: Any) -> Float32:
        if cut is not None:
            tokens_cut = _told(response, model, Tensor.TOKENS_CUT, (len(texts), 1))
            cut.update((np.flatnonzero(tokens_cut) + (first_row or 0)).tolist())
        if read is not None:
            read.append(int(_told(response, model, Tensor.TOKENS_READ, (len(texts), 1)).sum()))
        return _output(response, model, Tensor.EMBEDDING, (len(texts), None))

    return _infer(
        model,
        lambda: [_bytes_tensor(Tensor.TEXT, [[text] for text in texts])],
        truncate,
        parse,
        locate,
        priority=Priority.BULK if model is Model.EMBED_BULK else None,
    )


def rerank(
    query: bytes,
    candidates: Float16,
    embedding: Float32 | None = None,
    *,
    truncate: Truncate,
    row_in_list: Callable[[int], int],
    read: list[int] | None = None,
) -> Call[Float32]:
    """Scores one pass of candidates.

    Args:
        query: UTF-8.
        candidates: FP16 [N, d], N at most the model's ``max_passages``.
        embedding: FP32 [d], what ``embed_query`` made of the query, for ``rerank_embedded``, which does not encode it
            again; None for ``rerank``.
        truncate: Cut a query over the token maximum instead of refusing it.
        row_in_list: Where a candidate of this pass stands in the caller's list.
        read: Told how many tokens the models read, when the answer comes; none where the query comes encoded.

    Returns:
        A call for FP32 [N].
    """
    count, dimension = candidates.shape
    model = Model.RERANK if embedding is None else Model.RERANK_EMBEDDED

    def inputs() -> list[_Input]:
        given = [] if embedding is None else [_Input(Tensor.QUERY_EMBEDDING, "FP32", (1, dimension), _fp32(embedding))]
        return [
            _bytes_tensor(Tensor.QUERY, [[query]]),
            *given,
            _Input(Tensor.CANDIDATES, "FP16", (1, count, dimension), candidates.tobytes()),
        ]

    def parse(response: Any) -> Float32:
        if read is not None and model is Model.RERANK:
            read.append(int(_told(response, model, Tensor.TOKENS_READ, (1, 1)).sum()))
        scores: Float32 = _output(response, model, Tensor.SCORES, (1, count))[0]
        return scores

    return _infer(model, inputs, truncate, parse, partial(_locate_candidate, Tensor.CANDIDATES, row_in_list))


def rerank_text(
    query: bytes,
    passages: Sequence[bytes],
    *,
    truncate: Truncate,
    row_in_list: Callable[[int], int],
    cut: set[int],
    read: list[int],
) -> Call[Float32]:
    """As :func:`rerank`, with passages in UTF-8 that the server embeds.

    Args:
        query: UTF-8.
        passages: Likewise.
        truncate: Cut texts over the token maximum instead of refusing them.
        row_in_list: Where a passage of this pass stands in the caller's list.
        cut: Told places of passages that were cut, when the answer comes.
        read: Told then how many tokens the models read.
    """
    count = len(passages)

    def parse(response: Any) -> Float32:
        tokens_cut = _told(response, Model.RERANK_TEXT, Tensor.TOKENS_CUT, (1, count))
        cut.update(row_in_list(row) for row in np.flatnonzero(tokens_cut).tolist())
        read.append(int(_told(response, Model.RERANK_TEXT, Tensor.TOKENS_READ, (1, 1)).sum()))
        scores: Float32 = _output(response, Model.RERANK_TEXT, Tensor.SCORES, (1, count))[0]
        return scores

    return _infer(
        Model.RERANK_TEXT,
        lambda: [_bytes_tensor(Tensor.QUERY, [[query]]), _bytes_tensor(Tensor.PASSAGES, [passages])],
        truncate,
        parse,
        partial(_locate_candidate, Tensor.PASSAGES, row_in_list),
    )


def _told(response: Any, model: Model, count: Tensor, shape: tuple[int, int]) -> Int32:
    """INT32 in this shape, numbers of tokens; 0 where the repository is of a version that does not tell."""
    if not any(output.name == count for output in response.outputs):
        return np.zeros(shape, np.int32)
    return _output(response, model, count, shape, "INT32")


def search(query: bytes, options: SearchOptions, *, truncate: Truncate) -> Call[FoundPassages]:
    """Has the server embed the query, find candidates and rerank them.

    Args:
        query: UTF-8.
        options: What is wanted.
        truncate: Cut a query over the token maximum instead of refusing it.
    """

    def texts_of(response: Any, name: Tensor) -> list[str]:
        column: list[bytes] = _output(response, Model.SEARCH, name, (1, None), "BYTES")[0].tolist()
        return [element.decode() for element in column]

    # A server of before passes over parameters that it does not know, and would search all passages of the default
    # collection. It does not have this output either, so that its answer is refused.
    asks_for_metadata = options.include_metadata or options.filter is not None or bool(options.collection)

    def parse(response: Any) -> FoundPassages:
        metadata = list(map(read_metadata, texts_of(response, Tensor.METADATA))) if asks_for_metadata else None
        return FoundPassages(
            texts_of(response, Tensor.IDS),
            texts_of(response, Tensor.TITLES),
            texts_of(response, Tensor.TEXTS),
            _output(response, Model.SEARCH, Tensor.SCORES, (1, None))[0],
            _output(response, Model.SEARCH, Tensor.CANDIDATE_RANKS, (1, None), "INT32")[0],
            _output(response, Model.SEARCH, Tensor.CANDIDATE_SCORES, (1, None))[0],
            _output(response, Model.SEARCH, Tensor.DENSE_SCORES, (1, None))[0],
            _output(response, Model.SEARCH, Tensor.LEXICAL_SCORES, (1, None))[0],
            _output(response, Model.SEARCH, Tensor.RERANK_SCORES, (1, None))[0],
            _output(response, Model.SEARCH, Tensor.STAGE_MS, (1, 3))[0],
            Failure.parse(texts_of(response, Tensor.FAILURE)[0]),
            metadata if options.include_metadata else None,
        )

    asked: dict[Parameter, bool | int | float | str] = {
        Parameter.K: options.k,
        Parameter.CANDIDATES: options.candidates,
        Parameter.MODE: options.mode.value,
        Parameter.FUSION: options.fusion.value,
        Parameter.RERANK: options.rerank,
        Parameter.ON_FAILURE: options.on_failure.value,
    }
    if options.filter is not None:
        asked[Parameter.FILTER] = filter_text(options.filter)
    if asks_for_metadata:
        asked[Parameter.INCLUDE_METADATA] = True
    if options.lexical_weight is not None:
        asked[Parameter.LEXICAL_WEIGHT] = options.lexical_weight
    if options.collection:
        asked[Parameter.COLLECTION] = options.collection
    return _infer(Model.SEARCH, lambda: [_bytes_tensor(Tensor.QUERY, [[query]])], truncate, parse, parameters=asked)


def _locate_candidate(tensor: Tensor, row_in_list: Callable[[int], int], place: Place) -> Place:
    if place.name != tensor or not place.index:
        return place
    return Place(place.name, (row_in_list(place.index[0]),))


def server_ready() -> Call[bool]:
    """Asks whether Triton and all its models are ready."""
    return Call(
        server=Server.TRITON,
        method="ServerReady",
        subject="readiness",
        build=lambda _: service_pb2.ServerReadyRequest(),
        parse=lambda response: bool(response.ready),
    )


def model_ready(model: Model) -> Call[bool]:
    """Asks whether a model is ready."""
    return Call(
        server=Server.TRITON,
        method="ModelReady",
        subject=f"readiness of model '{model}'",
        build=lambda _: service_pb2.ModelReadyRequest(name=model.value),
        parse=lambda response: bool(response.ready),
    )


@dataclass(frozen=True)
class _Input:
    name: Tensor
    datatype: str
    shape: tuple[int, ...]
    content: bytes


def _bytes_tensor(name: Tensor, rows: Sequence[Sequence[bytes]]) -> _Input:
    elements = np.array(rows, dtype=np.object_)
    return _Input(name, "BYTES", elements.shape, serialize_byte_tensor(elements).item())


def _fp32(values: Float32) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _infer(
    model: Model,
    inputs: Callable[[], Sequence[_Input]],
    truncate: Truncate,
    parse: Callable[[Any], T],
    locate: Callable[[Place], Place] | None = None,
    parameters: Mapping[Parameter, bool | int | float | str] = MappingProxyType({}),
    *,
    priority: Priority | None = None,
) -> Call[T]:
    def build(remaining_s: float) -> Any:
        request = service_pb2.ModelInferRequest(model_name=model.value)
        for tensor in inputs():
            request.inputs.add(name=tensor.name.value, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.content)
        # Queues drop, without computing it, what has waited longer than this (microseconds).
        request.parameters["timeout"].int64_param = max(1, int(remaining_s * 1e6))
        if priority is not None:
            request.parameters["priority"].int64_param = priority
        if (traceparent := sampled_traceparent()) is not None:  # Triton 2.51 may lose the header, never a parameter
            request.parameters[Parameter.TRACEPARENT.value].string_param = traceparent
        truncation = Truncation.of(truncate)
        if truncation is not None:
            request.parameters[Parameter.TRUNCATE.value].bool_param = True
            if truncation.side is not Side.RIGHT:
                request.parameters[Parameter.TRUNCATION_SIDE.value].string_param = truncation.side.value
            if truncation.token_limit is not None:
                request.parameters[Parameter.TOKEN_LIMIT.value].int64_param = min(truncation.token_limit, _MOST_TOKENS)
        for name, value in parameters.items():
            match value:
                case bool():
                    request.parameters[name.value].bool_param = value
                case int():
                    request.parameters[name.value].int64_param = value
                case float():
                    request.parameters[name.value].double_param = value
                case str():
                    request.parameters[name.value].string_param = value
        return request

    return Call(
        server=Server.TRITON,
        method="ModelInfer",
        subject=f"model '{model}'",
        build=build,
        parse=parse,
        locate=locate,
    )


def _output(
    response: Any, model: Model, name: Tensor, shape: tuple[int, int | None], datatype: str = "FP32"
) -> NDArray[Any]:
    """One output of a response.

    Raises:
        ResRankError: It is not there, or not of this form.
    """
    for output, content in zip(response.outputs, response.raw_output_contents, strict=False):
        found = tuple(output.shape)
        if output.name != name or output.datatype != datatype or len(found) != len(shape):
            continue
        values = _elements(content, datatype)
        if values.size == math.prod(found) and all(want in (None, got) for want, got in zip(shape, found, strict=True)):
            return values.reshape(found)
    sizes = [*map(len, response.raw_output_contents), *(0 for _ in response.outputs)]
    answered = ", ".join(
        f"{output.name} {output.datatype} {list(output.shape)} in {size} bytes"
        for output, size in zip(response.outputs, sizes, strict=False)
    )
    raise ResRankError(
        f"model '{model}' answered without a {name} {datatype} {list(shape)} (of an earlier version? Export it "
        f"again); it sent: {answered or 'nothing'}"
    )


def _elements(content: bytes, datatype: str) -> NDArray[Any]:
    """A raw tensor's elements; none when the bytes are not a number of them."""
    if datatype == "BYTES":
        elements: NDArray[Any] = deserialize_bytes_tensor(content)
        return elements
    kind = np.dtype(_TYPES[datatype])
    return np.frombuffer(content if len(content) % kind.itemsize == 0 else b"", kind)
