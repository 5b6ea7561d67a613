"""The trainable model against the reference model that is exported, against PEFT, and against brute force."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from resrank.core.checkpoint import Norm
from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.scoring import ranking, score
from resrank.training.batches import Tokenizers, ranking_batch
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.list_scores import score_lists
from resrank.training.stage_config import (
    EncoderAlignmentConfig,
    GroupName,
    GroupOptimization,
    JointConfig,
    RerankerAlignmentConfig,
)
from resrank.training.trainable import TrainableResRank
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import disturb_adapters, tiny_lists, tiny_trainable

LISTS = tiny_lists(3)
FULL = {"encoder": {"mode": "full"}, "reranker": {"mode": "full"}}
FROZEN = {"encoder": {"mode": "frozen"}, "reranker": {"mode": "frozen"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bert-llama"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.5)
    return folder


@pytest.fixture(scope="module")
def same_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's form: two decoders, identity projector, gate 1, no query residual."""
    folder = tmp_path_factory.mktemp("tiny") / "llama-llama"
    make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=32, encoder_family="llama", pooling="last")
    return folder


def scores_of(model: TrainableResRank, tokenizers: Tokenizers, table: EmbeddingTable) -> Tensor:
    """One pass with gradients over all lists."""
    batch = ranking_batch(tokenizers.prompt, LISTS, model.device)
    return model("rank", batch.input_ids, batch.slots, batch.last, *table.gather(LISTS, model.device))


def gradients_of(model: TrainableResRank) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


FORMS = {
    "lora": {},
    "full": FULL,
    "frozen": FROZEN,
}


@pytest.mark.parametrize(
    ("pair", "config"),
    [
        pytest.param(pair, config, id=f"{pair}-{form}")
        for pair in ("folder", "same_family")
        for form, config in FORMS.items()
    ],
)
def test_merged_model_and_trainers_forward_agree(
    pair: str, config: dict[str, object], request: pytest.FixtureRequest
) -> None:
    model, tokenizers = tiny_trainable(request.getfixturevalue(pair), config)
    disturb_adapters(model)
    model.eval()
    merged = model.merged_model()
    shared = {parameter.data_ptr() for parameter in merged.parameters()}
    assert not any(value.data_ptr() in shared for value in model.trained_state().values())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert merged.spec.fusion.residual_gate == pytest.approx(model.gate)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    with torch.inference_mode():
        for candidates, trained in zip(LISTS, scores_of(model, tokenizers, table), strict=True):
            # As a server would: text by text through the merged model, fusion and cosine in NumPy.
            stored, e_q = (vectors[0] for vectors in table.gather([candidates], model.device))
            for text, side, vector in [
                (candidates.query, tokenizers.queries, e_q),
                *((p.encoder_text, tokenizers.passages, e) for p, e in zip(candidates.passages, stored, strict=True)),
            ]:
                tokens = side.encode([text.encode()], truncate=True)
                alone = merged.encode(torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask))[0]
                # fp16 has steps of 2^-11 below 1, and a batch's last bits may round to the neighbour.
                torch.testing.assert_close(vector.float(), alone, atol=2**-11 if vector is not e_q else 1e-5, rtol=0)
            prompt = tokenizers.prompt.layout.batch(
                tokenizers.prompt.encode([candidates.query.encode()]), [len(candidates)]
            )
            states, query_state = merged.states(
                *(torch.from_numpy(a) for a in (prompt.input_ids, prompt.passage_positions, prompt.last_position)),
                stored[None],
            )
            fusion = merged.spec.fusion
            served = score(
                states.numpy(),
                query_state.numpy(),
                stored[None].numpy(),
                e_q[None].numpy() if fusion.query_residual else None,
                gate=fusion.residual_gate,
                normalize_states=fusion.state_norm is Norm.L2,
            )
            np.testing.assert_allclose(trained[: len(candidates)].numpy(), served[0], atol=1e-5)


@pytest.mark.parametrize("config", [{}, FROZEN], ids=["learned", "fixed"])
def test_at_gate_0_the_ranking_is_brute_force_over_the_stored_vectors(folder: Path, config: dict[str, object]) -> None:
    model, tokenizers = tiny_trainable(
        folder, {**config, "fusion": {"gate": {"start": 0.0, "learned": config is not FROZEN}}}
    )
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    found = score_lists(model, tokenizers, table, LISTS, lists_per_pass=2)
    for index, (candidates, scores) in enumerate(zip(LISTS, found, strict=True)):
        passages = table.passages[table.passage_rows(candidates)].numpy().astype(np.float64)
        query = table.queries[index].numpy().astype(np.float64)
        cosines = passages @ query / np.linalg.norm(passages, axis=1) / np.linalg.norm(query)
        np.testing.assert_allclose(scores, cosines, atol=1e-6)
        assert ranking(scores).tolist() == np.argsort(-cosines, kind="stable").tolist()


def test_groups_hold_what_their_modes_train(folder: Path) -> None:
    model, _ = tiny_trainable(folder)
    groups = {group.name: group for group in model.parameter_groups(JointConfig().groups)}
    assert list(groups) == list(GroupName)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert trained - adapters == {"model.p_in.weight", "model.p_out.weight", "model.residual_gate"}
    # Two tensors for each of 6 linear layers of 2 BERT blocks and 7 of 2 Llama blocks; none for the unused pooler.
    assert len(groups[GroupName.ENCODER].parameters) == 2 * 6 * 2
    assert len(groups[GroupName.RERANKER].parameters) == 2 * 7 * 2
    assert not any("pooler" in name for name in adapters)
    assert sum(len(group.parameters) for group in groups.values()) == len(trained)


def test_full_training_leaves_out_what_no_score_depends_on_and_the_token_table(folder: Path) -> None:
    model, tokenizers = tiny_trainable(folder, FULL)
    model.parameter_groups(JointConfig().groups)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    tokens = tokenizers.passages.encode([b"Paris is the capital"])
    encoded = model("encode", torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask))
    (scores_of(model, tokenizers, table).sum() + encoded[0, :3].sum()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients_of(model) == trained  # no parameter is trained in vain
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert frozen == {
        "model.encoder.embeddings.word_embeddings.weight",
        "model.encoder.pooler.dense.weight",
        "model.encoder.pooler.dense.bias",
        "model.reranker.embed_tokens.weight",
    }
    with_table, _ = tiny_trainable(folder, {"reranker": {"mode": "full", "train_token_embeddings": True}})
    with_table.parameter_groups(RerankerAlignmentConfig().groups)
    assert with_table.get_parameter("model.reranker.embed_tokens.weight").requires_grad


def test_frozen_weights_under_adapters_get_no_gradient(folder: Path) -> None:
    model, tokenizers = tiny_trainable(folder)
    model.parameter_groups(RerankerAlignmentConfig().groups)
    disturb_adapters(model)
    scores_of(model, tokenizers, EmbeddingTable.build(model, tokenizers, LISTS)).sum().backward()
    found = gradients_of(model)
    assert found == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("base_layer" in name or "encoder" in name or "embed_tokens" in name for name in found)


def test_vectors_do_not_decay_and_every_parameter_is_in_one_optimizer_group(folder: Path) -> None:
    model, _ = tiny_trainable(folder, FULL)
    for group in model.parameter_groups(JointConfig().groups):
        parts = group.optimizer_groups()
        assert sum(len(part["params"]) for part in parts) == len(group.parameters)
        for part in parts:
            assert part["lr"] == group.learning_rate
            for parameter in part["params"]:
                assert part["weight_decay"] == (group.weight_decay if parameter.ndim > 1 else 0.0)


def test_a_gate_of_0_lets_only_itself_learn(folder: Path) -> None:
    model, tokenizers = tiny_trainable(folder, {"fusion": {"gate": {"start": 0.0}}})
    model.parameter_groups(RerankerAlignmentConfig().groups)
    disturb_adapters(model)
    with torch.no_grad():
        model.model.residual_gate.zero_()
    scores_of(model, tokenizers, EmbeddingTable.build(model, tokenizers, LISTS)).sum().backward()
    moved = {name for name in gradients_of(model) if model.get_parameter(name).grad.any()}
    assert moved == {"model.residual_gate"}


def test_a_stage_that_would_train_nothing_is_refused(folder: Path) -> None:
    model, _ = tiny_trainable(folder, {**FROZEN, "fusion": {"gate": {"learned": False}}})
    with pytest.raises(InvalidInputError, match="encoder: the stage trains nothing"):
        model.parameter_groups(EncoderAlignmentConfig().groups)
    (group,) = model.parameter_groups(JointConfig().groups)
    assert group.name is GroupName.PROJECTORS
    still = GroupOptimization(learning_rate=0.0)
    with pytest.raises(InvalidInputError, match="projectors, gate: the stage trains nothing"):
        model.parameter_groups({GroupName.PROJECTORS: still, GroupName.GATE: still})


def test_adapter_targets_that_fit_no_layer_are_named(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"reranker\.lora_targets: .*nowhere"):
        tiny_trainable(folder, {"reranker": {"lora_targets": ["nowhere"]}})
    model, _ = tiny_trainable(folder, {"reranker": {"lora_targets": ["q_proj", "v_proj"]}})
    assert len(model.adapter_state("reranker")) == 2 * 2 * 2


@pytest.mark.parametrize("role", ["encoder", "reranker"])
def test_a_saved_adapter_loads_on_the_base_model_with_peft_alone(folder: Path, tmp_path: Path, role: str) -> None:
    model, _ = tiny_trainable(folder)
    disturb_adapters(model)
    model.eval()
    (tmp_path / "adapter_config.json").write_text(json.dumps(model.adapter_config(role)))
    save_file(model.adapter_state(role), tmp_path / "adapter_model.safetensors")
    assert str(folder) not in (tmp_path / "adapter_config.json").read_text()
    base = AutoModel.from_pretrained(folder / role).eval()
    ids = torch.tensor([[11, 12, 13, 14]])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        before = base(input_ids=ids).last_hidden_state
        loaded = PeftModel.from_pretrained(base, tmp_path)
        after = loaded(input_ids=ids).last_hidden_state
        torch.testing.assert_close(after, model.backbone(role)(input_ids=ids).last_hidden_state)
    assert not torch.allclose(before, after, atol=1e-2)


def test_trained_state_goes_back_into_a_fresh_model_and_into_no_other(folder: Path) -> None:
    trained, tokenizers = tiny_trainable(folder)
    disturb_adapters(trained, seed=1)
    table = EmbeddingTable.build(trained, tokenizers, LISTS)
    fresh, _ = tiny_trainable(folder, seed=5)
    state = {name: value.clone() for name, value in trained.trained_state().items()}
    assert not torch.allclose(scores_of(fresh, tokenizers, table), scores_of(trained, tokenizers, table), atol=1e-3)
    fresh.load_trained_state(state)
    torch.testing.assert_close(scores_of(fresh, tokenizers, table), scores_of(trained, tokenizers, table))
    other, _ = tiny_trainable(folder, {"reranker": {"mode": "frozen"}})
    with pytest.raises(CheckpointError, match=r"reranker.*not in both"):
        other.load_trained_state(state)
    narrow, _ = tiny_trainable(folder, {"reranker": {"lora_rank": 2}})
    with pytest.raises(CheckpointError, match=r"lora_A.* is saved, \[2, 48\] is needed"):
        narrow.load_trained_state(state)


def test_bf16_is_autocast_over_fp32_weights(folder: Path) -> None:
    exact, tokenizers = tiny_trainable(folder)
    rounded, _ = tiny_trainable(folder, {"compute": {"precision": "bf16"}})
    for model in (exact, rounded):
        model.parameter_groups(RerankerAlignmentConfig().groups)
        disturb_adapters(model)
        model.eval()
    table = EmbeddingTable.build(exact, tokenizers, LISTS)
    scores = scores_of(rounded, tokenizers, table)
    assert scores.dtype == torch.float32
    reference = scores_of(exact, tokenizers, table)
    torch.testing.assert_close(scores, reference, atol=0.05, rtol=0)
    assert not torch.equal(scores, reference)
    scores.sum().backward()
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model, tokenizers = tiny_trainable(
            folder, {"compute": {"precision": "fp32", "gradient_checkpointing": checkpointing}}
        )
        model.parameter_groups(RerankerAlignmentConfig().groups)
        disturb_adapters(model)
        table = EmbeddingTable.build(model, tokenizers, LISTS)
        passes: list[int] = []
        model.backbone("reranker").layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        scores_of(model, tokenizers, table).sum().backward()
        assert len(passes) == (2 if checkpointing else 1)
        found.append({name: model.get_parameter(name).grad for name in gradients_of(model)})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dropout", [True, False])
def test_the_backbones_own_dropout_is_off_unless_asked_for(folder: Path, dropout: bool) -> None:
    model, _ = tiny_trainable(folder, {"encoder": {"mode": "full", "dropout": dropout}})
    ids = torch.tensor([[11, 12, 13, 14]])
    first, second = (model("encode", ids, torch.ones_like(ids)) for _ in range(2))
    assert torch.equal(first, second) is not dropout


def test_what_training_does_to_attention_and_dropout_is_not_saved(folder: Path, tmp_path: Path) -> None:
    model, _ = tiny_trainable(folder)
    model.merged_model().encoder.save_pretrained(tmp_path)
    saved, base = (json.loads((path / "config.json").read_text()) for path in (tmp_path, folder / "encoder"))
    assert saved == base
    assert base["hidden_dropout_prob"] == base["attention_probs_dropout_prob"] == 0.1


def test_a_frozen_backbone_stays_without_dropout(folder: Path) -> None:
    model, _ = tiny_trainable(folder, {"encoder": {"mode": "frozen"}})
    assert not model.backbone("encoder").training
    assert model.backbone("reranker").training
    assert not model.eval().backbone("reranker").training
