"""Requests that Triton sends to a model before it calls it ready, so that no caller pays for the first one.

All data comes from files: what Triton would make up itself is empty text, and ids outside the vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.errors import InvalidInputError
from resrank.core.limits import MAX_PASSAGE_BYTES
from resrank.core.names import VERSION, Model, Tensor
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.step import Step, StepRequest
from resrank.serving.tokenizer import TokenizationStep
from resrank.serving.warmup_samples import WARMUP_FOLDER

_QUERY = b"which river flows through the capital of France?"
_PASSAGE = b"Paris is the capital of France and lies on the Seine. "
_CANDIDATES = 100  # the usual first pass

Sample = Mapping[Tensor, NDArray[Any]]
Samples = dict[str, Sample]


def add_warmup(configs: Mapping[Model, ModelConfig], spec: CheckpointSpec, repository: Path) -> None:
    """Writes sample inputs into a repository and names them in the configs.

    Args:
        configs: Changed in place.
        spec: The checkpoint's fields.
        repository: Has the tokenizers in its version folders already.
    """
    for model, samples in _samples(configs, spec, repository).items():
        for name, sample in samples.items():
            _add(configs[model], name, sample, repository / model / WARMUP_FOLDER)


def _samples(configs: Mapping[Model, ModelConfig], spec: CheckpointSpec, repository: Path) -> dict[Model, Samples]:
    """Inputs of one row each, without the batch dimension: what the steps themselves make of a text.

    Engines behind steps that pad are thus warmed with the shapes that they meet in service.
    """

    def folder(model: Model) -> Path:
        return repository / model / VERSION

    def told(model: Model) -> dict[str, str]:
        return {name: value.string_value for name, value in configs[model].parameters.items()}

    passages = TokenizationStep(folder(Model.PASSAGE_TOKENIZER), told(Model.PASSAGE_TOKENIZER), for_queries=False)
    queries = TokenizationStep(folder(Model.QUERY_TOKENIZER), told(Model.QUERY_TOKENIZER), for_queries=True)
    prompts = PromptingStep(folder(Model.RERANK_PROMPT), told(Model.RERANK_PROMPT))
    repeats = min(spec.encoder.max_passage_tokens, MAX_PASSAGE_BYTES // len(_PASSAGE))
    candidates = _unit_vectors(min(_CANDIDATES, prompts.most_candidates), spec.encoder.embedding_dim)
    beside_query: Sample = {Tensor.CANDIDATES: candidates}
    if any(tensor.name == Tensor.QUERY_EMBEDDING for tensor in configs[Model.RERANK_PROMPT].input):
        beside_query = {**beside_query, Tensor.QUERY_EMBEDDING: candidates[0].astype(np.float32)}
    prompt = _first_row(prompts, {Tensor.QUERY: _element(_QUERY), **beside_query}, truncate=True)
    samples: dict[Model, Samples] = {
        Model.PASSAGE_TOKENIZER: text_samples("passage", Tensor.TEXT, _PASSAGE, passages),
        Model.QUERY_TOKENIZER: text_samples("query", Tensor.TEXT, _QUERY, queries),
        Model.ENCODER: {
            "longest_passage": _first_row(passages, {Tensor.TEXT: _element(_PASSAGE * repeats)}, truncate=True),
            "query": _first_row(queries, {Tensor.TEXT: _element(_QUERY)}, truncate=True),
        },
        Model.RERANK_PROMPT: text_samples("query", Tensor.QUERY, _QUERY, prompts, beside_query),
        Model.RERANKER: {
            "query": {Tensor(value.name): prompt[Tensor(value.name)] for value in configs[Model.RERANKER].input}
        },
    }
    if Model.BULK_ENCODER in configs:
        longest = samples[Model.ENCODER]["longest_passage"]
        samples[Model.BULK_ENCODER] = {"longest_passage": longest}
    return samples


def text_samples(name: str, tensor: Tensor, text: bytes, step: Step, beside: Sample | None = None) -> Samples:
    """One sample with as many of a text's first words as a step takes, since Triton does not start with a refused one.

    Args:
        name: The sample's name.
        tensor: The step's input of text.
        text: What to take words from.
        step: The model's logic.
        beside: The step's other inputs.

    Returns:
        The sample by its name; empty when not even the first word fits.
    """
    words = text.split()
    for count in range(len(words), 0, -1):
        sample = {tensor: _element(b" ".join(words[:count])), **(beside or {})}
        try:
            _first_row(step, sample, truncate=False)
        except InvalidInputError:
            continue
        return {name: sample}
    return {}


def _element(text: bytes) -> NDArray[np.object_]:
    return np.array([text], dtype=np.object_)


def _first_row(step: Step, sample: Sample, *, truncate: bool) -> Sample:
    """What a step makes of a sample."""
    (outcome,) = step.run([StepRequest({name: array[None] for name, array in sample.items()}, truncate)])
    if isinstance(outcome, Exception):
        raise outcome
    return {name: array[0] for name, array in outcome.items()}


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
