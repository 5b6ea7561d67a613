"""Configs of GPU repositories: valid ModelConfigs, of shapes that the plans take and that requests have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from resrank.core.buckets import bucket_length, sequence_bucket
from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.export.export_options import ExportOptions
from resrank.export.gpu_configs import MAX_GRAPHS, configure_gpu, reranker_shapes
from resrank.export.gpu_serving import GpuServing
from resrank.export.manifest import Runtime
from resrank.export.model_configs import Configs, complete_configs, validate_configs
from resrank.export.profiles import EncoderProfile, RerankerProfile
from resrank.export.runtimes.shapes import gpu_serving
from support.tiny_checkpoint import make_tiny_checkpoint

LAYOUT = PromptLayout(before_query=(1, 2, 3), before_passages=(4, 5), after_passages=(6,), eos_id=7, placeholder_id=7)
Make = Callable[..., tuple[Configs, GpuServing]]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSpec:
    return make_tiny_checkpoint(
        tmp_path_factory.mktemp("gpu") / "checkpoint",
        query_residual=True,
        max_query_tokens=200,
        max_passage_tokens=512,
        max_passages=120,
    )


@pytest.fixture
def make(spec: CheckpointSpec) -> Make:
    def make(runtime: Runtime = Runtime.TENSORRT, **wishes: Any) -> tuple[Configs, GpuServing]:
        gpu = gpu_serving(ExportOptions(runtime=runtime, **wishes), spec, LAYOUT)
        configs = complete_configs(spec, {}, partial(configure_gpu, gpu=gpu, spec=spec, layout=LAYOUT))
        return configs, gpu

    return make


def test_tritons_backend_gets_plans(make: Make) -> None:
    configs, _ = make()
    for model in (Model.ENCODER, Model.RERANKER):
        config = text_format.Parse(text_format.MessageToString(configs[model]), ModelConfig())
        assert config.platform == "tensorrt_plan"
        assert config.backend == ""
        assert config.default_model_filename == "model.plan"
        assert not config.cc_model_filenames
        assert not any(tensor.allow_ragged_batch for tensor in config.input)
        (group,) = config.instance_group
        assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, 1, [])
        assert list(group.profile) == ["0", "1"]
        queue = config.dynamic_batching.default_queue_policy
        assert queue.max_queue_size == 128
        assert queue.allow_timeout_override
        assert queue.default_timeout_microseconds > 0, "without a default, a request's own timeout is not looked at"
        assert queue.timeout_action == ModelQueuePolicy.REJECT
        assert config.dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize("runtime", [Runtime.TENSORRT, Runtime.TENSORRT_RTX, Runtime.TORCH])
def test_bulk_work_shares_the_encoder_at_a_lower_priority(make: Make, runtime: Runtime) -> None:
    configs, _ = make(runtime)
    assert Model.BULK_ENCODER not in configs
    for model, config in configs.items():
        own_queue = {"max_queue_size"} if model in (Model.RERANK_TEXT, Model.SEARCH) else set()
        assert {"niceness", "max_queue_size", "batch_rows"} & set(config.parameters) == own_queue
    assert [step.model_name for step in configs[Model.EMBED_BULK].ensemble_scheduling.step] == [
        "passage_tokenizer",
        "encoder",
    ]
    batching = configs[Model.ENCODER].dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 1)


def test_inputs_and_outputs_are_those_of_a_cpu(make: Make, spec: CheckpointSpec) -> None:
    on_cpu, (on_gpu, _) = complete_configs(spec, {}), make()

    def forms(config: ModelConfig) -> list[tuple[object, ...]]:
        return [(tensor.name, tensor.data_type, *tensor.dims) for tensor in (*config.input, *config.output)]

    assert {model: forms(config) for model, config in on_gpu.items()} == {
        model: forms(config) for model, config in on_cpu.items() if model is not Model.BULK_ENCODER
    }
    for model in (Model.EMBED_PASSAGE, Model.EMBED_QUERY, Model.RERANK):
        assert on_gpu[model].ensemble_scheduling == on_cpu[model].ensemble_scheduling


def test_each_capability_has_its_plan(make: Make) -> None:
    configs, _ = make(compute_capabilities=("8.0", "12.0"))
    assert dict(configs[Model.RERANKER].cc_model_filenames) == {
        "8.0": "model.sm80.plan",
        "12.0": "model.sm120.plan",
    }
    configs, _ = make(compute_capabilities=("8.9",))
    assert not configs[Model.RERANKER].cc_model_filenames


def test_gpus_and_instances_are_those_wished_for(make: Make) -> None:
    configs, _ = make(gpus=(0, 2), instances=3)
    for model in (Model.ENCODER, Model.RERANKER):
        (group,) = configs[model].instance_group
        assert (list(group.gpus), group.count) == ([0, 2], 3)
    assert all(
        group.kind == ModelInstanceGroup.KIND_CPU
        for model in (Model.QUERY_TOKENIZER, Model.RERANK_PROMPT, Model.RESIDUAL_SCORING, Model.RERANK_TEXT)
        for group in configs[model].instance_group
    )


def test_nobody_takes_more_rows_than_the_plan(make: Make) -> None:
    configs, _ = make(
        encoder_profiles=(EncoderProfile.parse("1:4:32x8:64:512"),),
        reranker_profiles=(
            RerankerProfile.parse("1:1:1x16:64:320x1:50:120"),
            RerankerProfile.parse("2:4:6x16:64:320x1:50:120"),
        ),
    )
    validate_configs(configs)
    assert {model: config.max_batch_size for model, config in configs.items()} == {
        Model.PASSAGE_TOKENIZER: 64,
        Model.QUERY_TOKENIZER: 64,
        Model.ENCODER: 32,
        Model.RERANK_PROMPT: 64,
        Model.RERANKER: 6,
        Model.RESIDUAL_SCORING: 64,
        Model.EMBED_PASSAGE: 32,
        Model.EMBED_QUERY: 32,
        Model.EMBED_BULK: 32,
        Model.RERANK: 6,
        Model.RERANK_EMBEDDED: 6,
        Model.RERANK_TEXT: 6,
        Model.SEARCH: 1,
    }
    assert list(configs[Model.RERANKER].dynamic_batching.preferred_batch_size) == [2, 4, 6]
    assert configs[Model.RERANK_TEXT].parameters["embed_batch_size"].string_value == "32"


def test_clients_are_told_how_many_candidates_the_plan_takes(make: Make) -> None:
    configs, _ = make(reranker_profiles=(RerankerProfile.parse("1:4:8x16:64:320x1:20:40"),))
    for model in (Model.RERANK, Model.RERANK_TEXT, Model.SEARCH):
        assert configs[model].parameters["max_passages"].string_value == "40"
    assert configs[Model.RERANK_PROMPT].parameters["candidate_buckets"].string_value == "10,20,40"


def test_captured_graphs_are_shapes_of_the_profiles(make: Make, spec: CheckpointSpec) -> None:
    configs, gpu = make()
    for model in (Model.ENCODER, Model.RERANKER):
        config = configs[model]
        assert config.optimization.cuda.graphs
        specs = config.optimization.cuda.graph_spec
        assert 0 < len(specs) <= MAX_GRAPHS
        ranks = {tensor.name: len(tensor.dims) for tensor in config.input}
        seen = set()
        for graph in specs:
            assert not graph.HasField("graph_lower_bound")
            assert {name: len(shape.dim) for name, shape in graph.input.items()} == ranks  # no batch dimension
            shapes = {Tensor(name): (graph.batch_size, *shape.dim) for name, shape in graph.input.items()}
            seen.add(tuple(sorted(shapes.items())))
            assert any(
                all(
                    low <= size <= high
                    for tensor, (smallest, _, largest) in profile.items()
                    for low, size, high in zip(smallest, shapes[tensor], largest, strict=True)
                )
                for profile in gpu.profiles.all_shapes(model, spec)
            )
        assert len(seen) == len(specs), "Triton warns of a shape that is named twice"


def test_the_smallest_shapes_are_captured(make: Make) -> None:
    configs, gpu = make()
    lone = {
        graph.input["INPUT_IDS"].dim[0]
        for graph in configs[Model.ENCODER].optimization.cuda.graph_spec
        if graph.batch_size == 1
    }
    assert lone >= set(gpu.buckets.query_tokens)


def test_reranker_shapes_are_those_of_some_request(make: Make, spec: CheckpointSpec) -> None:
    _, gpu = make()
    buckets = gpu.buckets
    met = {
        (sequence_bucket(LAYOUT.length(tokens, count), width, buckets.sequence), width)
        for tokens in range(1, spec.reranker.max_query_tokens + 1)
        for count in range(1, spec.reranker.max_passages + 1)
        for width in [bucket_length(count, buckets.candidates)]
        if LAYOUT.length(tokens, count) <= buckets.sequence[-1]
    }
    shapes = list(reranker_shapes(gpu, spec, LAYOUT))
    assert [(shape[Tensor.INPUT_IDS][0], shape[Tensor.PASSAGE_POSITIONS][0]) for shape in shapes] == sorted(met)
    assert all(shape[Tensor.CANDIDATES] == (shape[Tensor.PASSAGE_POSITIONS][0], 32) for shape in shapes)


def test_torch_is_told_the_buckets(make: Make) -> None:
    configs, gpu = make(Runtime.TORCH)
    for model in (Model.ENCODER, Model.RERANKER):
        config = configs[model]
        assert (config.backend, config.platform) == ("python", "")
        assert not config.HasField("optimization")
        assert not config.cc_model_filenames
        (group,) = config.instance_group
        # Without a named GPU it goes where there is one, and elsewhere runs on the CPU.
        assert group.kind == ModelInstanceGroup.KIND_AUTO
        assert not group.profile
    told = {key: value.string_value for key, value in configs[Model.ENCODER].parameters.items()}
    lengths = [int(length) for length in told["token_buckets"].split(",")]
    assert lengths == sorted({*gpu.buckets.passage_tokens, *gpu.buckets.query_tokens})
    for name in ("sequence_buckets", "candidate_buckets"):
        assert configs[Model.RERANKER].parameters[name] == configs[Model.RERANK_PROMPT].parameters[name]


def test_torch_insists_on_a_gpu_that_was_named(make: Make) -> None:
    configs, _ = make(Runtime.TORCH, gpus=(1,))
    assert configs[Model.ENCODER].instance_group[0].kind == ModelInstanceGroup.KIND_GPU


def test_the_steps_are_told_their_buckets(make: Make) -> None:
    configs, gpu = make()
    for model, lengths in (
        (Model.PASSAGE_TOKENIZER, gpu.buckets.passage_tokens),
        (Model.QUERY_TOKENIZER, gpu.buckets.query_tokens),
    ):
        assert configs[model].parameters["token_buckets"].string_value == ",".join(map(str, lengths))
    assert set(configs[Model.RERANK_PROMPT].parameters) == {"sequence_buckets", "candidate_buckets"}
