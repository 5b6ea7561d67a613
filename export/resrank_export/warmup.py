"""Requests that Triton sends to a model before it calls it ready, so that no caller pays for the first one.

All data comes from files: what Triton would make up itself is empty text, and ids outside the vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.checkpoint import CheckpointSpec
from resrank.errors import InvalidInputError
from resrank.limits import MAX_PASSAGE_BYTES
from resrank.names import Model, Tensor
from resrank.tokenization import EncoderTokenizer, PromptTokenizer
from resrank_export.model_configs import VERSION

WARMUP_FOLDER = "warmup"
"""Inside a model's folder: where Triton looks for ``input_data_file``."""

_QUERY = b"which river flows through the capital of France?"
_PASSAGE = b"Paris is the capital of France and lies on the Seine. "
_CANDIDATES = 100  # the usual first pass

Sample = Mapping[Tensor, NDArray[Any]]


def add_warmup(configs: Mapping[Model, ModelConfig], spec: CheckpointSpec, repository: Path) -> None:
    """Writes sample inputs into a repository and names them in the configs.

    Args:
        configs: Changed in place.
        spec: The checkpoint's fields.
        repository: Has the tokenizers in its version folders already.
    """
    for model, samples in _samples(spec, repository).items():
        for name, sample in samples.items():
            _add(configs[model], name, sample, repository / model / WARMUP_FOLDER)


def _samples(spec: CheckpointSpec, repository: Path) -> dict[Model, dict[str, Sample]]:
    """Inputs of one row each, without the batch dimension."""

    def version(model: Model) -> Path:
        return repository / model / VERSION

    passages = EncoderTokenizer(version(Model.PASSAGE_TOKENIZER), spec.encoder, for_queries=False)
    queries = EncoderTokenizer(version(Model.QUERY_TOKENIZER), spec.encoder, for_queries=True)
    prompts = PromptTokenizer(version(Model.RERANK_PROMPT), spec.reranker)
    repeats = min(spec.encoder.max_passage_tokens, MAX_PASSAGE_BYTES // len(_PASSAGE))
    count = min(_CANDIDATES, spec.reranker.max_passages)
    candidates = _unit_vectors(count, spec.encoder.embedding_dim)
    prompt = prompts.layout.batch(prompts.encode([_QUERY], truncate=True), [count])
    beside_query: dict[Tensor, NDArray[Any]] = {Tensor.CANDIDATES: candidates}
    if spec.fusion.query_residual:
        beside_query[Tensor.QUERY_EMBEDDING] = candidates[0].astype(np.float32)
    return {
        Model.PASSAGE_TOKENIZER: text_samples("passage", Tensor.TEXT, _PASSAGE, passages.encode),
        Model.QUERY_TOKENIZER: text_samples("query", Tensor.TEXT, _QUERY, queries.encode),
        Model.ENCODER: {
            "longest_passage": _tokens(passages, _PASSAGE * repeats),
            "query": _tokens(queries, _QUERY),
        },
        Model.RERANK_PROMPT: text_samples("query", Tensor.QUERY, _QUERY, prompts.encode, beside_query),
        Model.RERANKER: {
            "query": {
                Tensor.INPUT_IDS: prompt.input_ids[0],
                Tensor.PASSAGE_POSITIONS: prompt.passage_positions[0],
                Tensor.LAST_POSITION: prompt.last_position[0],
                Tensor.CANDIDATES: candidates,
            }
        },
    }


def text_samples(
    name: str,
    tensor: Tensor,
    text: bytes,
    encode: Callable[[Sequence[bytes]], object],
    beside: Sample | None = None,
) -> dict[str, Sample]:
    """One sample with as many of a text's first words as a step takes, since Triton does not start with a refused one.

    Args:
        name: The sample's name.
        tensor: The step's input of text.
        text: What to take words from.
        encode: The step's tokenizer, which raises InvalidInputError for what is too long.
        beside: The step's other inputs.

    Returns:
        The sample by its name; empty when not even the first word fits.
    """
    words = text.split()
    for count in range(len(words), 0, -1):
        shorter = b" ".join(words[:count])
        try:
            encode([shorter])
        except InvalidInputError:
            continue
        return {name: {tensor: np.array([shorter], dtype=np.object_), **(beside or {})}}
    return {}


def _tokens(tokenizer: EncoderTokenizer, text: bytes) -> Sample:
    batch = tokenizer.encode([text], truncate=True)
    return {Tensor.INPUT_IDS: batch.input_ids[0], Tensor.ATTENTION_MASK: batch.attention_mask[0]}


def _unit_vectors(count: int, dim: int) -> NDArray[np.float16]:
    vectors = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return unit


def _add(config: ModelConfig, name: str, sample: Sample, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    warmup = config.model_warmup.add(name=name, batch_size=1)
    types = {tensor.name: tensor.data_type for tensor in config.input}
    for tensor, array in sample.items():
        file = f"{name}.{tensor}"
        (folder / file).write_bytes(_serialized(array))
        entry = warmup.inputs[tensor.value]
        entry.data_type = types[tensor]
        entry.dims.extend(array.shape)
        entry.input_data_file = file


def _serialized(array: NDArray[Any]) -> bytes:
    """Triton's form: raw numbers, or of each BYTES element its length (uint32) and its content, little-endian."""
    if array.dtype == np.object_:
        return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
