"""The three stages: where gradients go, what a step computes, and that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resrank.core.fusion import CosineMap
from resrank.training.batches import TextPool, Tokenizers, contrastive_masks, padded_rows, ranking_batch
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.list_scores import score_lists
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.losses.contrastive import info_nce
from resrank.training.losses.ranking import ranking_loss
from resrank.training.stage_config import (
    ContrastiveConfig,
    EncoderAlignmentConfig,
    JointConfig,
    RerankerAlignmentConfig,
)
from resrank.training.stages.encoder_alignment import EncoderAlignment
from resrank.training.stages.encoding import contrastive_loss
from resrank.training.stages.joint import Joint
from resrank.training.stages.reranker_alignment import RerankerAlignment
from resrank.training.stages.stage import Stage
from resrank.training.stored_vectors import as_stored
from resrank.training.trainable import TrainableResRank
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import disturb_adapters, tiny_lists, tiny_trainable

LISTS = tiny_lists(4)
FIRST_LAYER = "model.encoder.encoder.layer.0.attention.self.query.weight"
FULL = {"encoder": {"mode": "full"}, "reranker": {"mode": "full"}}
NO_CONTRASTIVE = {"contrastive": {"weight": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.5)
    return folder


def calm(folder: Path, config: dict[str, object] | None = None) -> tuple[TrainableResRank, Tokenizers]:
    """Without dropout, away from the start."""
    model, tokenizers = tiny_trainable(folder, config or FULL)
    disturb_adapters(model)
    model.eval()
    return model, tokenizers


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def backward(loss: Tensor) -> None:
    loss.backward()


class Refusing(nn.Module):
    def forward(self, *_: object, **__: object) -> Tensor:
        raise AssertionError("the encoder ran")


def test_the_ranking_loss_reaches_the_encoders_first_layer_in_stage_2_and_not_in_stage_1(folder: Path) -> None:
    model, tokenizers = calm(folder)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    stage_1 = RerankerAlignment(RerankerAlignmentConfig(), model, tokenizers, table)
    stage_1.step(LISTS, backward)
    assert not any(name.startswith("model.encoder") for name in gradients_of(model))
    assert gradients_of(model)["model.reranker.layers.0.self_attn.q_proj.weight"].any()

    stage_2 = Joint(JointConfig.model_validate(NO_CONTRASTIVE), model, tokenizers)
    assert stage_2.step(LISTS, backward).keys() == {"loss", "ranking"}
    assert gradients_of(model)[FIRST_LAYER].any()


def without_the_query(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...] | None:
    """A hook that keeps the ranking loss from reaching the encoder through e_q."""
    *others, query_embeddings = inputs
    return (*others, query_embeddings.detach()) if inputs[0] == "rank" else None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("gate", "through_the_residual", "reached"),
    [
        (0.5, False, True),  # x_i alone
        (0.0, True, True),  # e_i alone
        (0.0, False, False),  # neither
    ],
)
def test_the_ranking_loss_reaches_the_encoder_through_the_slots_and_through_the_residual(
    folder: Path, gate: float, through_the_residual: bool, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizers = tiny_trainable(folder, {**FULL, "fusion": {"gate": {"start": gate}}})
    model.register_forward_pre_hook(without_the_query)
    if not through_the_residual:
        score = model.model.score
        monkeypatch.setattr(
            model.model, "score", lambda states, last, vectors, *rest: score(states, last, vectors.detach(), *rest)
        )
    Joint(JointConfig.model_validate(NO_CONTRASTIVE), model, tokenizers).step(LISTS, backward)
    assert bool(gradients_of(model)[FIRST_LAYER].any()) is reached


def test_the_encoder_never_runs_in_reranker_alignment(folder: Path) -> None:
    model, tokenizers = calm(folder)
    stage = RerankerAlignment(
        RerankerAlignmentConfig(), model, tokenizers, EmbeddingTable.build(model, tokenizers, LISTS)
    )
    model.model.encoder = Refusing()
    stage.step(LISTS, backward)


def test_reranker_alignment_of_unequal_lists_is_the_mean_of_each_list_alone(folder: Path) -> None:
    model, tokenizers = calm(folder)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    stage = RerankerAlignment(RerankerAlignmentConfig(), model, tokenizers, table)
    assert len({len(candidates) for candidates in LISTS}) > 1
    parts = stage.step(LISTS, backward)
    together = {name: gradient.clone() for name, gradient in gradients_of(model).items()}
    model.zero_grad()
    alone = [stage.step([candidates], lambda loss: (loss / len(LISTS)).backward()) for candidates in LISTS]
    assert parts["ranking"] == pytest.approx(np.mean([part["ranking"] for part in alone]), rel=1e-4)
    assert parts["loss"] == pytest.approx(2.0 * parts["ranking"])  # the default weight of L_rank
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(together[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("encoding", [{"chunk_passages": 1000}, {"chunk_passages": 5, "kept_passages": 10}])
def test_joint_gradients_are_those_of_one_graph(folder: Path, encoding: dict[str, int]) -> None:
    model, tokenizers = calm(folder)
    config = JointConfig.model_validate(
        {"encoding": encoding, "contrastive": {"false_negative_margin": 2.0, "hard_negatives": 100}}
    )
    parts = Joint(config, model, tokenizers).step(LISTS, backward)
    found = {name: gradient.clone() for name, gradient in gradients_of(model).items()}
    model.zero_grad()

    # The same by hand: all texts in one pass with its graph, the reference model's own functions.
    reference = model.model
    texts = [passage.encoder_text for candidates in LISTS for passage in candidates.passages]
    passages = encode(reference, tokenizers.passages, texts)
    queries = encode(reference, tokenizers.queries, [candidates.query for candidates in LISTS])
    ranking = torch.zeros(())
    start = 0
    relevant = torch.zeros(len(LISTS), len(texts), dtype=torch.bool)
    for row, candidates in enumerate(LISTS):
        stop = start + len(candidates)
        batch = ranking_batch(tokenizers.prompt, [candidates], model.device)
        mine = Rounded.apply(passages[start:stop])[None]
        states = reference.states(batch.input_ids, batch.slots, batch.last, mine)
        scores = reference.score(*states, mine, queries[row : row + 1])
        ranking = ranking + ranking_loss("ranknet", 0.1)(scores, batch.labels, batch.valid) / len(LISTS)
        relevant[row, start:stop] = torch.tensor(candidates.relevant)
        start = stop
    contrastive = info_nce(queries @ passages.T, relevant, torch.zeros_like(relevant), 0.03)
    (2.0 * ranking + contrastive).backward()

    assert parts["ranking"] == pytest.approx(ranking.item(), rel=1e-3)
    assert parts["contrastive"] == pytest.approx(contrastive.item(), rel=1e-4)
    assert parts["loss"] == pytest.approx(2 * parts["ranking"] + parts["contrastive"])
    expected = gradients_of(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Some are 0 but for rounding: a key's bias shifts all of a query's products alike.
        assert (found[name] - gradient).norm() < 1e-2 * gradient.norm() + 1e-4, name


class Rounded(torch.autograd.Function):
    """FP16 values with the gradient of the identity, written the long way."""

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        return torch.from_numpy(values.numpy().astype(np.float16).astype(np.float32))

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


def encode(model: nn.Module, tokenizer: object, texts: Sequence[str]) -> Tensor:
    tokens = tokenizer.encode([text.encode() for text in texts], truncate=True)  # type: ignore[attr-defined]
    found: Tensor = model.encode(torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask))
    return found


def test_joint_ranks_the_vectors_that_an_index_would_hold(folder: Path) -> None:
    """Stage 2's ranking loss is stage 1b's on a table of the same encoder: both read what FP16 keeps."""
    model, tokenizers = calm(folder)
    joint = Joint(JointConfig.model_validate(NO_CONTRASTIVE), model, tokenizers).step(LISTS, lambda loss: None)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    cached = RerankerAlignment(RerankerAlignmentConfig(), model, tokenizers, table).step(LISTS, lambda loss: None)
    assert joint["ranking"] == pytest.approx(cached["ranking"], rel=1e-3)
    values = torch.tensor([0.1, 1 / 3, -0.7, 1e-9, 3e-6], requires_grad=True)
    stored = as_stored(values)
    assert torch.equal(stored.detach(), values.detach().half().float())
    (stored * torch.arange(5.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_frozen_encoder_in_stage_2_runs_without_a_graph(folder: Path) -> None:
    model, tokenizers = calm(folder, {"encoder": {"mode": "frozen"}})
    Joint(JointConfig(), model, tokenizers).step(LISTS, backward)
    assert gradients_of(model)
    assert not any(name.startswith("model.encoder") for name in gradients_of(model))


def test_the_margin_of_false_negatives_is_on_the_mapped_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = TextPool(passage.encoder_text for candidates in LISTS for passage in candidates.passages)
    queries, passages = (torch.randn(count, 4, generator=generator) for count in (len(LISTS), len(pool)))

    def loss(margin: float, cosine_map: CosineMap | None) -> float:
        config = ContrastiveConfig.model_validate({"false_negative_margin": margin})
        return contrastive_loss(config, LISTS, pool, queries, passages, cosine_map).item()

    assert loss(0.5, CosineMap(10, 0.72, 0.05)) == loss(0.05, None) != loss(0.5, None)


def test_encoder_alignment_trains_the_encoder_alone_on_chosen_passages(folder: Path) -> None:
    model, tokenizers = calm(folder)
    config = EncoderAlignmentConfig.model_validate({"contrastive": {"hard_negatives": 2, "false_negative_margin": 2.0}})
    stage = EncoderAlignment(config, model, tokenizers, chunk_count=lambda needed: 1)
    seen: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[1]))):
        parts = stage.step(LISTS, backward)
    chosen = [
        [texts[relevant.index(True)], *[t for t, r in zip(texts, relevant, strict=True) if not r][:2]]
        for candidates in LISTS
        for texts, relevant in [([p.encoder_text for p in candidates.passages], candidates.relevant)]
    ]
    assert seen == [len(LISTS), sum(len(texts) for texts in chosen)]
    with torch.no_grad():
        passages = encode(model.model, tokenizers.passages, [text for texts in chosen for text in texts])
        queries = encode(model.model, tokenizers.queries, [candidates.query for candidates in LISTS])
        positive = torch.zeros(len(LISTS), len(passages), dtype=torch.bool)
        firsts = np.cumsum([0, *(len(texts) for texts in chosen[:-1])])
        positive[torch.arange(len(LISTS)), torch.from_numpy(firsts)] = True
        expected = info_nce(queries @ passages.T, positive, torch.zeros_like(positive), 0.03)
    assert parts["contrastive"] == pytest.approx(expected.item(), rel=1e-4)
    names = gradients_of(model).keys()
    assert FIRST_LAYER in names
    assert all(name.startswith("model.encoder") for name in names)


def test_processes_that_agree_on_more_passes_compute_the_same(folder: Path) -> None:
    model, tokenizers = calm(folder)
    Joint(JointConfig(), model, tokenizers).step(LISTS, backward)
    expected = {name: gradient.clone() for name, gradient in gradients_of(model).items()}
    model.zero_grad()
    Joint(JointConfig(), model, tokenizers, chunk_count=lambda needed: needed + 2).step(LISTS, backward)
    for name, gradient in gradients_of(model).items():
        # A stored vector may round to its other fp16 neighbour when its chunk has another size.
        atol = 1e-6 + 2e-3 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("kind", ["encoder_alignment", "reranker_alignment", "joint"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_steps_lower_the_loss(folder: Path, kind: str, mode: str) -> None:
    model, tokenizers = tiny_trainable(folder, {"encoder": {"mode": mode}, "reranker": {"mode": mode}})
    model.eval()  # the loss of the same lists, without dropout's noise
    stage: Stage
    if kind == "encoder_alignment":
        stage = EncoderAlignment(EncoderAlignmentConfig(), model, tokenizers)
    elif kind == "joint":
        stage = Joint(JointConfig(), model, tokenizers)
    else:
        table = EmbeddingTable.build(model, tokenizers, LISTS)
        stage = RerankerAlignment(RerankerAlignmentConfig(), model, tokenizers, table)
    assert stage.name == kind
    optimizer = torch.optim.AdamW([part for group in stage.groups for part in group.optimizer_groups()], lr=1e-3)
    for part in optimizer.param_groups:
        part["lr"] = 3e-3
    losses = []
    for _ in range(8):
        losses.append(stage.step(LISTS, backward)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0], losses


def test_scores_of_lists_do_not_depend_on_what_shares_their_pass(folder: Path) -> None:
    model, tokenizers = calm(folder)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    together = score_lists(model, tokenizers, table, LISTS, lists_per_pass=4)
    alone = score_lists(model, tokenizers, table, LISTS, lists_per_pass=1)
    for candidates, one, other in zip(LISTS, together, alone, strict=True):
        assert one.shape == (len(candidates),)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_masks_compare_texts_and_spend_a_lists_own_negatives_in_its_order() -> None:
    a, b, c, d, e = (TrainingPassage("", text) for text in "abcde")
    first = CandidateList("1", "x", (a, b, c, d), (0.0, 2.0, 0.0, 0.0), LabelKind.GRADES, "s")
    second = CandidateList("2", "y", (b, e, a), (-1.0, 3.0, 2.0), LabelKind.SCORES, "s")
    pool = TextPool(p.encoder_text for candidates in (first, second) for p in candidates.passages)
    assert pool.texts == ["a", "b", "c", "d", "e"]
    positive, ignored = contrastive_masks([first, second], pool, hard_negatives=1)
    # First: b relevant, a its one negative, c and d beyond it; e is an in-batch negative.
    # Second: e is the best, b its one negative, a beyond it; c and d are in-batch negatives.
    assert positive.tolist() == [[False, True, False, False, False], [False, False, False, False, True]]
    assert ignored.tolist() == [[False, False, True, True, False], [True, False, False, False, False]]
    chosen = TextPool(["b", "e"])
    positive, ignored = contrastive_masks([first, second], chosen, hard_negatives=0)
    assert positive.tolist() == [[True, False], [False, True]]
    assert ignored.tolist() == [[False, False], [True, False]]


def test_padding_repeats_a_lists_last_row() -> None:
    rows = padded_rows([np.array([4, 7]), np.array([1]), np.array([2, 3, 5])])
    assert rows.tolist() == [[4, 7, 7], [1, 1, 1], [2, 3, 5]]
