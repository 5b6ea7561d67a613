"""A repository is complete, fits together and appears at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.calibration import read_calibration
from resrank.core.checkpoint import SlotContent, SlotSpec, encoder_identity
from resrank.core.errors import ExportError, InvalidInputError
from resrank.core.fusion import CosineMap
from resrank.core.names import Model, Tensor
from resrank.export import repository as repository_module
from resrank.export.graph_files import graph_files
from resrank.export.manifest import BuiltOn, read_manifest
from resrank.export.model_configs import Configs, complete_configs, validate_configs
from resrank.export.repository import EngineModel, RepositoryPlan, check_target, write_repository
from resrank.export.warmup import text_samples
from resrank.serving.engines import EngineKind, Precision
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.step import Answer, StepRequest
from resrank.serving.tokenizer import TokenizationStep
from support.tiny_calibration import CALIBRATION
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_manifest import make_manifest

ENCODING = ["query_tokenizer", "encoder"]
PASS = ["rerank_prompt", "reranker"]


def make_plan(folder: Path, *, query_residual: bool = True, **fields: Any) -> RepositoryPlan:
    spec = make_tiny_checkpoint(folder / "checkpoint", query_residual=query_residual, **fields)
    manifest = make_manifest(built_on=BuiltOn(machine="Ö", python="3.12"))
    options = {
        Model.ENCODER: {"engine": EngineKind.OPENVINO, "precision": Precision.BF16, "threads": 3},
        Model.RERANKER: {"engine": EngineKind.ONNXRUNTIME, "precision": Precision.FP32, "threads": 0},
    }
    engines = {}
    for model, chosen in options.items():
        graph = folder / model / "model.onnx"
        graph.parent.mkdir()
        graph.write_bytes(model.encode())
        (folder / model / "model.onnx.data").write_bytes(b"weights")
        engines[model] = EngineModel(manifest.models[model].model_copy(update=chosen), graph_files(graph))
    return RepositoryPlan(spec, folder / "checkpoint", engines, manifest)


@pytest.fixture
def plan(tmp_path: Path) -> RepositoryPlan:
    return make_plan(tmp_path)


def read(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def dims(config: ModelConfig) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}


def test_a_repository_has_what_triton_loads_and_nothing_else(plan: RepositoryPlan, tmp_path: Path) -> None:
    out = tmp_path / "made" / "repository"
    write_repository(plan, out)
    assert {path.name for path in out.parent.iterdir()} == {"repository"}
    assert {path.name for path in out.iterdir()} == {*Model, "manifest.json"}
    assert all((out / model / "1").is_dir() for model in Model)
    assert read_manifest(out) == plan.manifest
    for model, backbone in (
        ("query_tokenizer", "encoder"),
        ("passage_tokenizer", "encoder"),
        ("rerank_prompt", "reranker"),
    ):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            original = plan.checkpoint / backbone / name
            assert (out / model / "1" / name).read_bytes() == original.read_bytes()
    for model, engine in (*plan.engines.items(), (Model.BULK_ENCODER, plan.engines[Model.ENCODER])):
        assert os.path.samefile(out / model / "1" / "model.onnx", engine.files["model.onnx"])
        assert (out / model / "1" / "model.onnx.data").read_bytes() == b"weights"


def test_the_checkpoint_is_written_into_the_configs(plan: RepositoryPlan, tmp_path: Path) -> None:
    write_repository(plan, tmp_path / "out")
    rerank = {"QUERY": [1], "CANDIDATES": [-1, 32], "SCORES": [-1], "TOKENS_READ": [1]}
    assert dims(read(tmp_path / "out", "rerank")) == rerank
    assert dims(read(tmp_path / "out", "embed_query")) == {"TEXT": [1], "EMBEDDING": [32], "TOKENS_READ": [1]}
    assert dims(read(tmp_path / "out", "reranker"))["PASSAGE_STATES"] == [-1, 32]
    told = {key: value.string_value for key, value in read(tmp_path / "out", "rerank").parameters.items()}
    assert told == {
        "encoder_sha256": encoder_identity(plan.spec),
        "checkpoint_sha256": plan.spec.digest(),
        "embedding_dim": "32",
        "max_passages": "16",
        "lexical_weight": "0.3",
        "slot_content": "vector",
        "takes_embedding": "true",
    }
    host = {key: value.string_value for key, value in read(tmp_path / "out", "encoder").parameters.items()}
    vocabulary = json.loads((plan.checkpoint / "encoder" / "config.json").read_text())["vocab_size"]
    bulk = {key: value.string_value for key, value in read(tmp_path / "out", "bulk_encoder").parameters.items()}
    assert bulk.pop("niceness") == "19"
    assert (bulk.pop("max_queue_size"), host.pop("max_queue_size")) == ("64", "128")
    assert (
        bulk
        == host
        == {
            "engine": "openvino",
            "precision": "bf16",
            "threads": "3",
            "vocabulary_size": str(vocabulary),
            "max_tokens": "64",
        }
    )


def mention(repository: Path, tensor: str) -> set[str]:
    return {path.parent.name for path in repository.glob("*/config.pbtxt") if tensor in path.read_text()}


def test_the_query_is_encoded_when_its_candidates_are_reranked(plan: RepositoryPlan, tmp_path: Path) -> None:
    """What the reranker's queue sheds has cost no encoding."""
    write_repository(plan, tmp_path / "out")
    steps = [step.model_name for step in read(tmp_path / "out", "rerank").ensemble_scheduling.step]
    assert steps == [*PASS, *ENCODING, "residual_scoring"]
    assert mention(tmp_path / "out", "QUERY_EMBEDDING") == {"rerank", "rerank_embedded", "residual_scoring", "search"}
    states = {"rerank", "rerank_embedded", "reranker", "query_tokenizer", "residual_scoring", "search"}
    assert mention(tmp_path / "out", "QUERY_STATE") == states
    # Who has the query's vector is spared its encoding, and is told where.
    embedded = read(tmp_path / "out", "rerank_embedded")
    assert dims(embedded) == {"QUERY": [1], "QUERY_EMBEDDING": [32], "CANDIDATES": [-1, 32], "SCORES": [-1]}
    assert [step.model_name for step in embedded.ensemble_scheduling.step] == [*PASS, "residual_scoring"]
    for model in ("rerank", "rerank_text", "search"):
        assert read(tmp_path / "out", model).parameters["takes_embedding"].string_value == "true"
    # With the query's vector at hand, `search` takes the same steps but for the encoding.
    chain = json.loads(read(tmp_path / "out", "search").parameters["rerank_chain"].string_value)
    assert [step["model"] for step in chain] == [*PASS, "residual_scoring"]
    assert chain[-1]["inputs"]["QUERY_EMBEDDING"] == "QUERY_EMBEDDING"
    assert chain[-1]["outputs"] == {"SCORES": "SCORES"}
    # And those between the engines in its own process: it has their files and their parameters.
    near = json.loads(read(tmp_path / "out", "search").parameters["near_steps"].string_value)
    assert list(near) == ["query_tokenizer", "rerank_prompt", "residual_scoring"]
    for model, parameters in near.items():
        own = tmp_path / "out" / model / "1"
        copied = sorted(path.name for path in (tmp_path / "out/search/1" / model).iterdir())
        assert copied == sorted(path.name for path in own.iterdir() if path.name != "model.py")
        assert parameters == {
            key: value.string_value for key, value in read(tmp_path / "out", model).parameters.items()
        }
    (waits,) = (tensor for tensor in read(tmp_path / "out", "query_tokenizer").input if tensor.name == "QUERY_STATE")
    assert waits.optional  # embed_query has none
    assert list(waits.dims) == [32]


def test_without_query_residual_no_query_is_encoded(tmp_path: Path) -> None:
    write_repository(make_plan(tmp_path, query_residual=False), tmp_path / "out")
    steps = [step.model_name for step in read(tmp_path / "out", "rerank").ensemble_scheduling.step]
    assert steps == [*PASS, "residual_scoring"]
    assert mention(tmp_path / "out", "QUERY_EMBEDDING") == set()
    assert not (tmp_path / "out" / "rerank_embedded").exists()
    assert mention(tmp_path / "out", "takes_embedding") == set()
    assert mention(tmp_path / "out", "QUERY_STATE") == {"rerank", "reranker", "residual_scoring"}


RELATIONAL = {
    "slots": SlotSpec(content=SlotContent.RELATIONS, neighbors=5),
    "residual_gate": 0.0,
    "score_residual": 0.3,
    "lexical_weight": 0.2,
    "cosine_map": CosineMap(slope=4.84, center=0.72, offset=0.05),
}


def names(tensors: Any) -> set[str]:
    return {tensor.name for tensor in tensors}


def test_a_reranker_of_relations_reads_nothing_else(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path, compact=True, **RELATIONAL), residual_factor=1.25)
    write_repository(plan, tmp_path / "out")
    rerank = read(tmp_path / "out", "rerank")
    assert [step.model_name for step in rerank.ensemble_scheduling.step] == [*ENCODING, *PASS, "residual_scoring"]
    reranker, scoring = read(tmp_path / "out", "reranker"), read(tmp_path / "out", "residual_scoring")
    assert dims(reranker) == {
        "INPUT_IDS": [-1],
        "PASSAGE_POSITIONS": [-1],
        "RELATIONS": [-1, 19],
        "SCORE_RESIDUALS": [-1],
    }
    assert names(scoring.input) == {
        "CANDIDATES",
        "CANDIDATE_COUNT",
        "CANDIDATE_PLACES",
        "QUERY_EMBEDDING",
        "SCORE_RESIDUALS",
    }
    assert scoring.parameters["score_residual"].string_value == "1.25"
    assert mention(tmp_path / "out", "LAST_POSITION") == mention(tmp_path / "out", "QUERY_STATE") == set()
    assert not (tmp_path / "out" / "rerank_prompt" / "1" / "tokenizer.json").exists()
    for model in ("rerank", "rerank_text", "search"):
        told = {key: value.string_value for key, value in read(tmp_path / "out", model).parameters.items()}
        assert (told["lexical_weight"], told["slot_content"]) == ("0.2", "relations")
        assert json.loads(told["cosine_map"]) == {"slope": 4.84, "center": 0.72, "offset": 0.05}


def test_a_reranker_of_both_reads_vectors_too(tmp_path: Path) -> None:
    fields = {**RELATIONAL, "slots": SlotSpec(content=SlotContent.BOTH, neighbors=5), "residual_gate": 0.5}
    write_repository(make_plan(tmp_path, **fields), tmp_path / "out")
    reranker = read(tmp_path / "out", "reranker")
    assert names(reranker.input) == {"INPUT_IDS", "PASSAGE_POSITIONS", "LAST_POSITION", "CANDIDATES", "RELATIONS"}
    assert names(reranker.output) == {"PASSAGE_STATES", "QUERY_STATE", "SCORE_RESIDUALS"}
    assert (tmp_path / "out" / "rerank_prompt" / "1" / "tokenizer.json").exists()


@pytest.mark.parametrize("compact", [True, False])
def test_samples_of_relational_models_have_all_their_inputs(compact: bool, tmp_path: Path) -> None:
    write_repository(make_plan(tmp_path, compact=compact, **RELATIONAL), tmp_path / "out")
    for model in ("rerank_prompt", "reranker"):
        config = read(tmp_path / "out", model)
        for sample in config.model_warmup:
            assert set(sample.inputs) == names(config.input)
    relations = next(iter(read(tmp_path / "out", "reranker").model_warmup)).inputs["RELATIONS"]
    assert list(relations.dims) == [16, 19]


def test_warm_up_samples_are_files_in_tritons_form(plan: RepositoryPlan, tmp_path: Path) -> None:
    write_repository(plan, tmp_path / "out")
    item_bytes = {"TYPE_INT64": 8, "TYPE_FP16": 2, "TYPE_FP32": 4}
    for model in Model:
        config = read(tmp_path / "out", model)
        for sample in config.model_warmup:
            assert set(sample.inputs) == {tensor.name for tensor in config.input if not tensor.optional}
            for value in sample.inputs.values():
                content = (tmp_path / "out" / model / "warmup" / value.input_data_file).read_bytes()
                kind = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[value.data_type].name
                if kind == "TYPE_STRING":
                    assert int.from_bytes(content[:4], "little") == len(content) - 4 > 0
                else:
                    assert len(content) == item_bytes[kind] * np.prod(value.dims)


@pytest.mark.parametrize("limit", [3, 5])
def test_warm_up_texts_fit_the_checkpoints_limits(tmp_path: Path, limit: int) -> None:
    """Triton does not start when a model refuses its sample."""
    plan = make_plan(tmp_path, max_query_tokens=limit, max_passage_tokens=limit)
    write_repository(plan, tmp_path / "out")
    for model, step in (
        ("passage_tokenizer", TokenizationStep(tmp_path / "out" / "passage_tokenizer" / "1", for_queries=False)),
        ("query_tokenizer", TokenizationStep(tmp_path / "out" / "query_tokenizer" / "1", for_queries=True)),
        ("rerank_prompt", PromptingStep(tmp_path / "out" / "rerank_prompt" / "1")),
    ):
        (sample,) = read(tmp_path / "out", model).model_warmup
        folder = tmp_path / "out" / model / "warmup"
        arrays = {
            Tensor(name): warmup_array(folder / value.input_data_file, list(value.dims))
            for name, value in sample.inputs.items()
        }
        (outcome,) = step.run([StepRequest(arrays)])
        assert not isinstance(outcome, Exception), outcome


class TakesNothing:
    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        return [InvalidInputError("TEXT", "too many tokens", limit=3, value=9) for _ in requests]


def test_a_step_that_takes_no_word_is_not_warmed() -> None:
    assert text_samples("passage", Tensor.TEXT, b"too long", TakesNothing()) == {}


def warmup_array(path: Path, dims: list[int]) -> np.ndarray:
    """One row as Triton hands it over."""
    if path.suffix in (".TEXT", ".QUERY"):
        return np.array([[path.read_bytes()[4:]]], dtype=np.object_)
    kind = np.float16 if path.suffix == ".CANDIDATES" else np.float32
    return np.fromfile(path, kind).reshape(1, *dims)


QUEUED = (Model.ENCODER, Model.BULK_ENCODER, Model.RERANKER, Model.RERANK_TEXT, Model.SEARCH)


def test_engines_are_bounded_and_nothing_waits_to_be_batched(plan: RepositoryPlan, tmp_path: Path) -> None:
    write_repository(plan, tmp_path / "out")
    for model in Model:
        config = read(tmp_path / "out", model)
        if config.platform == "ensemble":
            continue
        batching = config.dynamic_batching
        assert batching.max_queue_delay_microseconds == 0
        assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]  # KIND_CPU
        # With a policy Triton stands still for half a second now and then.
        assert not batching.HasField("default_queue_policy")
        assert ("max_queue_size" in config.parameters) == (model in QUEUED)


def test_queues_are_as_long_as_engines_work_off_in_a_second(plan: RepositoryPlan, tmp_path: Path) -> None:
    speeds = {Model.ENCODER: 1.0, Model.RERANKER: 100.0}
    engines = {model: replace(engine, row_ms=speeds[model]) for model, engine in plan.engines.items()}
    write_repository(replace(plan, engines=engines), tmp_path / "out")

    def size(model: Model) -> int:
        return int(read(tmp_path / "out", model).parameters["max_queue_size"].string_value)

    assert size(Model.ENCODER) == 128  # the template's bound
    assert size(Model.RERANKER) == 10
    assert size(Model.RERANK_TEXT) == 8  # a hundred texts and a pass, 200 ms: five, but those it computes count, too


def test_an_occupied_place_is_refused(plan: RepositoryPlan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("irreplaceable")
    for force in (False, True):
        with pytest.raises(ExportError, match="not a model repository that export made"):
            write_repository(plan, out, force=force)
    assert (out / "thesis.txt").read_text() == "irreplaceable"


def test_an_earlier_repository_is_replaced_only_by_force(plan: RepositoryPlan, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    check_target(out)
    write_repository(plan, out)
    with pytest.raises(ExportError, match="--force"):
        write_repository(plan, out)
    another = make_manifest(versions={"resrank": "0.2"})
    write_repository(replace(plan, manifest=another), out, force=True)
    assert read_manifest(out) == another
    assert list(out.parent.iterdir()) == [out]


def test_what_another_export_has_written_meanwhile_is_not_replaced_without_force(
    plan: RepositoryPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, another, original = tmp_path / "out", make_manifest(versions={"resrank": "0.2"}), repository_module._fill

    def slow(folder: Path, given: RepositoryPlan) -> None:
        original(folder, given)
        if given is plan:
            write_repository(replace(plan, manifest=another), out)

    monkeypatch.setattr(repository_module, "_fill", slow)
    with pytest.raises(ExportError, match="exists; choose another --out"):
        write_repository(plan, out)
    assert read_manifest(out) == another
    assert not list(tmp_path.glob("*.partial"))


def test_a_repository_of_a_version_with_fewer_models_may_be_replaced(plan: RepositoryPlan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_repository(plan, out)
    for model in ("search", "embed_bulk", "bulk_encoder"):
        shutil.rmtree(out / model)
    write_repository(plan, out, force=True)
    assert {path.parent.name for path in out.glob("*/config.pbtxt")} == set(Model)


def test_memory_for_passages_is_written_into_the_config_of_who_uses_it(plan: RepositoryPlan, tmp_path: Path) -> None:
    write_repository(replace(plan, embedding_cache_mib=3), tmp_path / "out")
    told = {model: read(tmp_path / "out", model).parameters for model in Model}
    with_it = {model for model, parameters in told.items() if "embedding_cache_mib" in parameters}
    assert with_it == {Model.RERANK_TEXT}
    assert told[Model.RERANK_TEXT]["embedding_cache_mib"].string_value == "3"


def test_what_scores_mean_stands_in_the_manifest_and_where_clients_look(plan: RepositoryPlan, tmp_path: Path) -> None:
    checkpoint = plan.manifest.checkpoint.model_copy(update={"calibration": CALIBRATION})
    write_repository(
        replace(plan, manifest=plan.manifest.model_copy(update={"checkpoint": checkpoint})), tmp_path / "out"
    )
    assert read_manifest(tmp_path / "out").checkpoint.calibration == CALIBRATION
    for model in Model:
        parameters = {key: value.string_value for key, value in read(tmp_path / "out", model).parameters.items()}
        scores = model in (Model.RERANK, Model.RERANK_TEXT, Model.SEARCH)
        assert read_calibration(parameters) == (CALIBRATION if scores else None)


def test_a_failed_write_leaves_what_was_there(plan: RepositoryPlan, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    write_repository(plan, out)
    (plan.checkpoint / "reranker" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer\.json"):
        write_repository(replace(plan, manifest=make_manifest(versions={})), out, force=True)
    assert read_manifest(out) == plan.manifest
    assert list(out.parent.iterdir()) == [out]


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    return complete_configs(make_tiny_checkpoint(tmp_path / "checkpoint", query_residual=True), {})


def test_every_model_tells_how_many_passages_it_takes_itself(plan: RepositoryPlan) -> None:
    reranker = plan.spec.reranker.model_copy(update={"max_passages": 4096})
    configs = complete_configs(plan.spec.model_copy(update={"reranker": reranker}), {})
    told = {
        model: configs[model].parameters["max_passages"].string_value
        for model in (Model.RERANK, Model.RERANK_TEXT, Model.SEARCH)
    }
    assert told == {"rerank": "4096", "rerank_text": "1024", "search": "4096"}


def test_a_fork_is_refused(configs: Configs) -> None:
    steps = configs[Model.RERANK].ensemble_scheduling.step
    del steps[2].input_map["QUERY_STATE"]
    with pytest.raises(ExportError, match=r"query_tokenizer: .*a fork, not a chain"):
        validate_configs(configs)


def test_models_that_do_not_fit_are_refused(configs: Configs) -> None:
    configs[Model.ENCODER].output[0].dims[-1] = 31
    with pytest.raises(ExportError, match=r"embed_\w+/config.pbtxt: no step makes EMBEDDING in this form"):
        validate_configs(configs)
    configs[Model.ENCODER].output[0].dims[-1] = 32
    del configs[Model.RERANK].ensemble_scheduling.step[1].input_map["LAST_POSITION"]
    with pytest.raises(ExportError, match="reranker: input_map is not exactly the model's inputs"):
        validate_configs(configs)


def test_names_and_batch_sizes_must_agree(configs: Configs) -> None:
    configs[Model.RERANKER].max_batch_size = 8
    with pytest.raises(ExportError, match="max_batch_size 8 is below 64"):
        validate_configs(configs)
    configs[Model.RERANKER].max_batch_size = 64
    configs[Model.RERANK].max_batch_size = 32
    with pytest.raises(ExportError, match=r"rerank_text/config\.pbtxt: max_batch_size 64 is above 32 of rerank"):
        validate_configs(configs)
    configs[Model.RERANK].max_batch_size = 64
    configs[Model.ENCODER].name = "encoder_2"
    with pytest.raises(ExportError, match="name is 'encoder_2'"):
        validate_configs(configs)
