"""What the configs of a GPU repository have that those of a CPU repository have not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from tritonclient.grpc.model_config_pb2 import (
    ModelConfig,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelQueuePolicy,
)

from resrank.core.buckets import format_buckets
from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import PLAN_FILE, Model, Parameter, Priority, Tensor
from resrank.core.prompt import PromptLayout
from resrank.export.gpu_serving import GpuServing
from resrank.export.manifest import Runtime, plan_file
from resrank.export.model_configs import Configs, set_parameters
from resrank.export.rerank_chain import reranker_inputs

GRAPH_BATCHES = (1, 2, 4, 8)
"""Batch sizes with captured graphs: powers of two, which are also the batcher's preferred sizes."""

MAX_GRAPHS = 64
"""Captured graphs of one engine. Each costs device memory and a part of a second at start, and what a graph saves, the
launching of a few hundred kernels, weighs most in the smallest shapes: those come first."""

FRONT_QUEUE = 512
"""Requests that may wait in front of a step before the engines, which on a GPU may be the slowest of all."""

QUEUE_TIMEOUT_US = 60_000_000
"""Longest wait of a request that names no timeout; its own counts only where it is shorter than a default that is not
0."""

Shapes = Mapping[Tensor, tuple[int, ...]]
"""Input to its shape without the batch dimension."""


def configure_gpu(configs: Configs, gpu: GpuServing, spec: CheckpointSpec, layout: PromptLayout) -> None:
    """Changes the configs of a CPU repository into those of a GPU repository.

    Args:
        configs: Of every model, changed in place.
        gpu: How GPUs serve it.
        spec: The checkpoint's fields.
        layout: The checkpoint's prompt.
    """
    buckets = gpu.buckets
    tokens, sequences, candidates = Parameter.TOKEN_BUCKETS, Parameter.SEQUENCE_BUCKETS, Parameter.CANDIDATE_BUCKETS
    prompt_buckets = {sequences: format_buckets(buckets.sequence), candidates: format_buckets(buckets.candidates)}
    set_parameters(configs[Model.PASSAGE_TOKENIZER], {tokens: format_buckets(buckets.passage_tokens)})
    set_parameters(configs[Model.QUERY_TOKENIZER], {tokens: format_buckets(buckets.query_tokens)})
    set_parameters(configs[Model.RERANK_PROMPT], prompt_buckets)
    engine_buckets = {Model.ENCODER: {tokens: format_buckets(gpu.token_buckets)}, Model.RERANKER: prompt_buckets}
    for front in (Model.PASSAGE_TOKENIZER, Model.QUERY_TOKENIZER, Model.RERANK_PROMPT):
        _queue_in_triton(configs[front], FRONT_QUEUE)
    _queue_bulk_with_the_rest(configs)
    graph_shapes = {
        Model.ENCODER: encoder_shapes(gpu),
        Model.RERANKER: reranker_shapes(gpu, spec, layout),
    }
    for model, shapes in graph_shapes.items():
        config = configs[model]
        config.max_batch_size = gpu.max_batch(model)
        _queue_in_triton(config, int(config.parameters[Parameter.MAX_QUEUE_SIZE.value].string_value))
        for name in _OWN_QUEUE:
            config.parameters.pop(name.value, None)
        _place_on_gpus(config, gpu)
        _prefer_batches(config)
        if gpu.runtime is not Runtime.TORCH:
            _run_plan(config, gpu)
            _capture_graphs(config, shapes)
        else:
            set_parameters(config, engine_buckets[model])


def encoder_shapes(gpu: GpuServing) -> Iterator[Shapes]:
    """What the encoder's inputs look like behind the tokenizers, smallest first."""
    for length in gpu.token_buckets:
        yield {Tensor.INPUT_IDS: (length,), Tensor.ATTENTION_MASK: (length,)}


def reranker_shapes(gpu: GpuServing, spec: CheckpointSpec, layout: PromptLayout) -> Iterator[Shapes]:
    """What the reranker's inputs look like behind ``rerank_prompt``, smallest first.

    Of all pairs of a sequence's and a candidate count's bucket only those that some request has: a sequence holds the
    prompt, a query of one token up to the longest, and as many candidates as fall into the bucket, and is never shorter
    than its padded slots (:func:`resrank.core.buckets.sequence_bucket`).
    """
    fewest = 1
    possible: set[tuple[int, int]] = set()
    for width in gpu.buckets.candidates:
        shortest, longest = layout.length(1, fewest), layout.length(spec.reranker.max_query_tokens, width)
        shorter = 0
        for length in gpu.buckets.sequence:
            if length >= max(shortest, width) and shorter < max(longest, width):
                possible.add((length, width))
            shorter = length
        fewest = width + 1
    for length, width in sorted(possible):
        shapes = {
            Tensor.INPUT_IDS: (length,),
            Tensor.PASSAGE_POSITIONS: (width,),
            Tensor.LAST_POSITION: (1,),
            Tensor.CANDIDATES: (width, spec.encoder.embedding_dim),
            Tensor.RELATIONS: (width, spec.reranker.slots.relation_width),
        }
        yield {tensor: shapes[tensor] for tensor in reranker_inputs(spec)}


_OWN_QUEUE = (Parameter.MAX_QUEUE_SIZE, Parameter.BATCH_ROWS, Parameter.NICENESS)
"""What only an engine on a CPU is told. A GPU waits for the process that launches its kernels."""


def _queue_in_triton(config: ModelConfig, size: int) -> None:
    """Bounds Triton's own queue, the only one that knows priorities and that its TensorRT backend has."""
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = size
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
    policy.allow_timeout_override = True
    policy.timeout_action = ModelQueuePolicy.REJECT


def _queue_bulk_with_the_rest(configs: Configs) -> None:
    """One encoder for all, whose queue lets interactive requests pass bulk ones.

    A GPU encodes 64 passages in the time of a few milliseconds that a query may wait; a second engine would cost device
    memory, and no process on it yields to another.
    """
    del configs[Model.BULK_ENCODER]
    for step in configs[Model.EMBED_BULK].ensemble_scheduling.step:
        if step.model_name == Model.BULK_ENCODER:
            step.model_name = Model.ENCODER
    batching = configs[Model.ENCODER].dynamic_batching
    batching.priority_levels = max(Priority)
    batching.default_priority_level = Priority.INTERACTIVE


def _place_on_gpus(config: ModelConfig, gpu: GpuServing) -> None:
    del config.instance_group[:]
    # torch also runs without a GPU, and then KIND_AUTO puts it on the CPU; what was named is insisted on.
    anywhere = gpu.runtime is Runtime.TORCH and not gpu.gpus
    group = config.instance_group.add(
        count=gpu.instances, kind=ModelInstanceGroup.KIND_AUTO if anywhere else ModelInstanceGroup.KIND_GPU
    )
    group.gpus.extend(gpu.gpus)


def _prefer_batches(config: ModelConfig) -> None:
    preferred = config.dynamic_batching.preferred_batch_size
    del preferred[:]
    preferred.extend(size for size in GRAPH_BATCHES if 1 < size <= config.max_batch_size)
    if config.max_batch_size not in (1, *preferred):
        preferred.append(config.max_batch_size)


def _run_plan(config: ModelConfig, gpu: GpuServing) -> None:
    """Hands the model to Triton's TensorRT backend, which takes INT64 since TensorRT 10."""
    config.ClearField("backend")
    config.platform = "tensorrt_plan"
    config.default_model_filename = PLAN_FILE
    for capability in gpu.capabilities:
        config.cc_model_filenames[capability] = plan_file(gpu.capabilities, capability)
    profiles = gpu.profiles.encoder if config.name == Model.ENCODER else gpu.profiles.reranker
    # One context for each profile in every instance; the backend takes the one that fits a batch best.
    config.instance_group[0].profile.extend(str(index) for index in range(len(profiles)))
    for tensor in config.input:
        tensor.ClearField("allow_ragged_batch")  # padded to buckets instead: a plan takes rectangles


def _capture_graphs(config: ModelConfig, shapes: Iterator[Shapes]) -> None:
    """Names the shapes to capture.

    Exact ones, without ``graph_lower_bound``: for a smaller batch the backend would launch the graph as it is, over
    rows that nobody has written in this call and whose ids are no ids.
    """
    config.optimization.cuda.graphs = True
    batches = (size for size in GRAPH_BATCHES if size <= config.max_batch_size)
    pairs = sorted(product(batches, shapes), key=lambda pair: pair[0] * pair[1][Tensor.INPUT_IDS][0])
    for batch, inputs in pairs[:MAX_GRAPHS]:
        graph: ModelOptimizationPolicy.Cuda.GraphSpec = config.optimization.cuda.graph_spec.add(batch_size=batch)
        for tensor, shape in inputs.items():
            graph.input[tensor.value].dim.extend(shape)
