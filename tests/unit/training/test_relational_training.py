"""Rerankers whose slots hold relations: what training computes is what is served, in whatever order candidates come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resrank.core.errors import InvalidInputError
from resrank.core.fusion import CosineMap
from resrank.core.prompt import PromptLayout
from resrank.core.relations import canonical_order, relations
from resrank.training.batches import Tokenizers, padded_rows, ranking_batch
from resrank.training.config import check_fit
from resrank.training.development import reordered
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.stage_config import GroupName, RerankerAlignmentConfig
from resrank.training.stages.reranker_alignment import RerankerAlignment
from resrank.training.trainable import TrainableResRank
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_run import tiny_config
from support.tiny_training import tiny_lists, tiny_trainable

LISTS = tiny_lists(4)
MAP = CosineMap(slope=2.0, center=0.5, offset=0.1)
FORMS: dict[str, dict[str, Any]] = {
    "compact": {"compact": True, "slots": ("relations", 3)},
    "text": {"slots": ("relations", 5)},
    "both": {"slots": ("both", 3)},
}


@pytest.fixture(scope="module", params=list(FORMS))
def trainable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from resrank.core.checkpoint import SlotSpec

    form = dict(FORMS[request.param])
    content, neighbors = form.pop("slots")
    folder = tmp_path_factory.mktemp("relations") / "checkpoint"
    make_tiny_checkpoint(
        folder, residual_gate=0.0, query_residual=True, score_residual=0.3, cosine_map=MAP,
        slots=SlotSpec(content=content, neighbors=neighbors), **form,
    )  # fmt: skip
    return tiny_trainable(folder, {"encoder": {"mode": "frozen"}, "reranker": {"mode": "full"}})


def scores_of(model: TrainableResRank, tokenizers: Tokenizers, lists: list[CandidateList]) -> Tensor:
    table = EmbeddingTable.build(model, tokenizers, lists)
    batch = ranking_batch(tokenizers.prompt, lists, model.device)
    with torch.no_grad():
        found: Tensor = model("rank", batch.input_ids, batch.slots, batch.last, *table.gather(lists, model.device))
    return found


def test_a_question_without_text_is_read_in_the_words_it_has_been_given(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    vector = np.ones(4, "<f4").tobytes()
    worded = replace(LISTS[0], query="", query_vector=vector, wording=LISTS[0].query)
    asked, read, silent = (
        ranking_batch(tokenizers.prompt, [candidates], torch.device("cpu")).input_ids.tolist()
        for candidates in (LISTS[0], worded, replace(worded, wording=""))
    )
    assert asked == read
    assert (silent == read) == (model.spec.reranker.prompt is None)


def test_scores_are_those_of_one_list_at_a_time_in_canonical_order(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    """Through core's relations and the reference model, without padding."""
    model, tokenizers = trainable
    model.eval()
    found = scores_of(model, tokenizers, LISTS)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    slots = model.spec.reranker.slots
    for row, candidates in enumerate(LISTS):
        vectors, query = (part[0].numpy() for part in table.gather([candidates], model.device))
        order = canonical_order(query, vectors)
        stored = vectors[order.order]
        related = relations(query, stored, neighbors=slots.neighbors or 0, cosine_map=MAP)
        batch = ranking_batch(tokenizers.prompt, [candidates], model.device)
        with torch.no_grad():
            outputs = model.model.outputs(
                batch.input_ids,
                batch.slots,
                batch.last,
                torch.from_numpy(stored)[None],
                torch.from_numpy(related)[None],
            )
        assert outputs.score_residuals is not None
        cosines = stored.astype(np.float64) @ query / np.linalg.norm(stored.astype(np.float64), axis=1)
        expected = MAP.apply(cosines / np.linalg.norm(query)) + 0.3 * outputs.score_residuals[0].numpy()
        assert found[row, : len(candidates)].numpy() == pytest.approx(expected[order.places], abs=2e-5)


def test_the_order_of_candidates_does_not_matter(trainable: tuple[TrainableResRank, Tokenizers]) -> None:
    model, tokenizers = trainable
    model.eval()
    found = scores_of(model, tokenizers, LISTS)
    orders = [np.random.default_rng(row).permutation(len(candidates)) for row, candidates in enumerate(LISTS)]
    shuffled = [reordered(candidates, order) for candidates, order in zip(LISTS, orders, strict=True)]
    again = scores_of(model, tokenizers, shuffled)
    for row, order in enumerate(orders):
        torch.testing.assert_close(again[row, : len(order)], found[row, order.tolist()], atol=1e-6, rtol=0)


def test_a_step_trains_the_decoder_the_map_and_w_and_the_penalty_holds_scores_back(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    gradients = {}
    for penalty in (0.0, 7.0):
        config = RerankerAlignmentConfig.model_validate(
            {"ranking": {"kind": "softmax", "penalty": penalty, "weight": 1}}
        )
        stage = RerankerAlignment(config, model, tokenizers, table)
        assert [group.name for group in stage.groups] == [GroupName.RERANKER, GroupName.PROJECTORS]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        trained = {names[id(parameter)] for group in stage.groups for parameter in group.parameters}
        assert {"model.p_in.weight", "model.score_head.weight"} < trained
        assert all("encoder" not in name for name in trained)
        parts = stage.step(LISTS, lambda loss: loss.backward())  # type: ignore[no-untyped-call]
        assert parts["loss"] == pytest.approx(parts["ranking"] + penalty * parts.get("penalty", 0.0), rel=1e-5)
        assert all(
            parameter.grad is not None and parameter.grad.any() for g in stage.groups for parameter in g.parameters
        )
        gradients[penalty] = model.get_parameter("model.score_head.weight").grad
    batch = ranking_batch(tokenizers.prompt, LISTS, model.device)
    moved = scores_of(model, tokenizers, LISTS) - model.retriever_scores(*table.gather(LISTS, model.device))
    assert parts["penalty"] == pytest.approx(moved[batch.valid].square().mean().item(), rel=1e-4)
    assert not torch.equal(gradients[0.0], gradients[7.0])


def test_at_the_start_scores_are_mapped_cosines_and_what_is_written_can_be_read(tmp_path: Path) -> None:
    from resrank.core.checkpoint import SlotSpec

    make_tiny_checkpoint(
        tmp_path / "start", compact=True, trained_head=False, residual_gate=0.0, query_residual=True,
        score_residual=0.3, cosine_map=MAP, slots=SlotSpec(content="relations", neighbors=3),
    )  # fmt: skip
    model, tokenizers = tiny_trainable(tmp_path / "start", {"reranker": {"mode": "full"}})
    model.eval()
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    dense = model.retriever_scores(*table.gather(LISTS, model.device))
    valid = ranking_batch(tokenizers.prompt, LISTS, model.device).valid
    assert torch.equal(scores_of(model, tokenizers, LISTS)[valid], dense[valid])
    assert set(model.projector_state()) == {"p_in.weight", "score_head.weight"}
    merged = model.merged_model()
    assert merged.score_head is not None
    assert merged.spec.fusion.residual_gate == 0


def test_a_gate_beside_a_score_residual_alone_is_refused(tmp_path: Path) -> None:
    from resrank.core.checkpoint import SlotSpec

    spec = make_tiny_checkpoint(
        tmp_path / "start", compact=True, residual_gate=0.0, query_residual=True, score_residual=0.3,
        slots=SlotSpec(content="relations", neighbors=3),
    )  # fmt: skip
    check_fit(tiny_config(tmp_path / "run", model={"fusion": {"gate": {"learned": False}}}), spec, processes=1)
    config = tiny_config(tmp_path / "run", model={"fusion": {"gate": {"start": 0.5}}})
    with pytest.raises(InvalidInputError, match=r"model\.fusion\.gate\.start: the checkpoint has no P_out for it"):
        check_fit(config, spec, processes=1)


def test_a_padded_row_has_its_own_last_candidate_in_every_place() -> None:
    """What the slots of a batch tell about its rows: where padding begins."""
    layout = PromptLayout.of_slots_alone()
    batch = layout.batch([[], []], [3, 5])
    assert (1 + (np.diff(batch.passage_positions, axis=1) > 0).sum(axis=1)).tolist() == [3, 5]
    assert padded_rows([np.array([4, 6]), np.array([1, 2, 3])]).tolist() == [[4, 6, 6], [1, 2, 3]]
