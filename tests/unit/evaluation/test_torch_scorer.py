"""The torch scorer gives what the model gives one list at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resrank.core.checkpoint import SlotContent, SlotSpec
from resrank.core.fusion import CosineMap
from resrank.core.relations import canonical_order, relations
from resrank.evaluation import torch_scorer
from resrank.evaluation.baselines import dense_scores
from resrank.evaluation.scorer import CandidateVectors
from resrank.evaluation.torch_scorer import TorchScorer
from support.tiny_checkpoint import SENTENCES, make_tiny_checkpoint
from support.triton_requests import unit_vectors


@pytest.fixture(scope="module", params=[{"query_residual": True}, {}], ids=["query_residual", "plain"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchScorer:
    folder = tmp_path_factory.mktemp("scorer") / "checkpoint"
    make_tiny_checkpoint(folder, residual_gate=0.7, max_passages=6, **request.param)
    return TorchScorer(folder)


RELATIONAL = {content: SlotSpec(content=SlotContent(content), neighbors=4) for content in ("relations", "both")}
MAP = CosineMap(slope=4.84, center=0.72, offset=0.05)


@pytest.fixture(
    scope="module",
    params=[
        {"slots": RELATIONAL["relations"], "score_residual": 0.3, "residual_gate": 0.0, "compact": True},
        {"slots": RELATIONAL["both"], "score_residual": 0.3, "residual_gate": 0.0, "compact": True},
        {"slots": RELATIONAL["relations"], "score_residual": 0.3, "residual_gate": 0.0},
        {"slots": RELATIONAL["both"], "score_residual": 0.3, "residual_gate": 0.7},
        {"slots": RELATIONAL["relations"], "residual_gate": 0.7},
    ],
    ids=["compact", "compact_both", "text", "both_residuals", "vector_residual"],
)
def relational(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchScorer:
    folder = tmp_path_factory.mktemp("relational") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, cosine_map=MAP, max_passages=6, **request.param)
    return TorchScorer(folder)


def lists(counts: list[int]) -> list[CandidateVectors]:
    return [CandidateVectors(SENTENCES[n % 5], unit_vectors(count, 32, seed=n)) for n, count in enumerate(counts)]


def reference(scorer: TorchScorer, one: CandidateVectors) -> np.ndarray:
    """Scores of one list by the differentiable form of the model, without batching or padding."""
    model = scorer._model
    prompt = scorer._prompt.layout.batch(scorer._prompt.encode([one.query.encode()]), [len(one.embeddings)])
    candidates = torch.from_numpy(one.embeddings)[None]
    tokens = scorer._queries.encode([one.query.encode()])
    with torch.no_grad():
        query = model.encode(torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask))
        states, last = model.states(
            *map(torch.from_numpy, (prompt.input_ids, prompt.passage_positions, prompt.last_position)), candidates
        )
        return model.score(states, last, candidates, query)[0].numpy()


@pytest.mark.parametrize("positions", [40, 150, 4096])
def test_lists_of_any_length_get_what_they_get_alone(
    scorer: TorchScorer, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_scorer, "_PASS_POSITIONS", positions)
    wanted = lists([1, 6, 3, 6, 2, 5])
    for one, scores in zip(wanted, scorer.score(wanted), strict=True):
        np.testing.assert_allclose(scores, reference(scorer, one), atol=1e-5)


def test_what_one_pass_does_not_take_goes_in_consecutive_blocks(scorer: TorchScorer) -> None:
    (one,) = lists([14])
    blocks = [CandidateVectors(one.query, one.embeddings[start : start + 6]) for start in (0, 6, 12)]
    (scores,) = scorer.score([one])
    np.testing.assert_allclose(scores, np.concatenate([reference(scorer, block) for block in blocks]), atol=1e-5)


def test_embeddings_are_the_models_in_the_order_of_the_texts(scorer: TorchScorer) -> None:
    texts = [*SENTENCES, "moon " * 200, SENTENCES[0]]
    queries, passages = scorer.embed_queries(texts), scorer.embed_passages(texts)
    for found, tokenizer in ((queries, scorer._queries), (passages, scorer._passages)):
        for text, vector in zip(texts, found, strict=True):
            tokens = tokenizer.encode([text.encode()], truncate=True)
            with torch.no_grad():
                expected = scorer._model.encode(*map(torch.from_numpy, (tokens.input_ids, tokens.attention_mask)))
            np.testing.assert_allclose(vector, expected[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(queries, scorer.embed_queries(texts))


def test_a_gate_of_zero_gives_the_dense_scores_to_the_bit(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", query_residual=True, residual_gate=0.0)
    scorer = TorchScorer(tmp_path / "checkpoint")
    wanted = lists([5, 9, 1])
    embeddings = scorer.embed_queries([one.query for one in wanted])
    for one, query, scores in zip(wanted, embeddings, scorer.score(wanted), strict=True):
        np.testing.assert_array_equal(scores, dense_scores(query, one.embeddings))


def relational_reference(scorer: TorchScorer, one: CandidateVectors) -> np.ndarray:
    """Scores of one list in canonical order by the differentiable form of the model, put back in the list's own."""
    model, (query,) = scorer._model, scorer.embed_queries([one.query])
    order = canonical_order(query, one.embeddings)
    ordered = one.embeddings[order.order]
    features = relations(query, ordered, neighbors=4, cosine_map=MAP)
    prompt = scorer._prompt.layout.batch(scorer._prompt.encode([one.query.encode()]), [len(ordered)])
    candidates = torch.from_numpy(ordered)[None]
    with torch.no_grad():
        found = model.outputs(
            *map(torch.from_numpy, (prompt.input_ids, prompt.passage_positions, prompt.last_position)),
            candidates,
            torch.from_numpy(features)[None],
        )
        scores = model.score(
            found.passage_states,
            found.query_state,
            candidates,
            torch.from_numpy(query)[None],
            found.score_residuals,
        )
    return scores[0].numpy()[order.places]


def test_relations_are_computed_in_canonical_order(relational: TorchScorer) -> None:
    wanted = lists([1, 6, 3, 2, 5])
    for one, scores in zip(wanted, relational.score(wanted), strict=True):
        np.testing.assert_allclose(scores, relational_reference(relational, one), atol=2e-5)


def test_a_shuffled_list_has_the_same_scores_to_the_bit_in_blocks_too(relational: TorchScorer) -> None:
    (one,) = lists([14])
    repeated = CandidateVectors(one.query, one.embeddings[[0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 10, 11, 12, 2]])
    for given in (one, repeated):
        shuffle = np.random.default_rng(3).permutation(14)
        (scores,) = relational.score([given])
        (shuffled,) = relational.score([CandidateVectors(given.query, given.embeddings[shuffle])])
        assert scores[shuffle].tobytes() == shuffled.tobytes()
        assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("compact", [True, False])
def test_a_head_of_zero_gives_the_mapped_dense_scores_to_the_bit(compact: bool, tmp_path: Path) -> None:
    make_tiny_checkpoint(
        tmp_path / "checkpoint",
        query_residual=True,
        residual_gate=0.0,
        compact=compact,
        slots=RELATIONAL["relations"],
        score_residual=0.3,
        trained_head=False,
        cosine_map=MAP,
    )
    scorer = TorchScorer(tmp_path / "checkpoint")
    wanted = lists([5, 9, 1])
    embeddings = scorer.embed_queries([one.query for one in wanted])
    for one, query, scores in zip(wanted, embeddings, scorer.score(wanted), strict=True):
        np.testing.assert_array_equal(scores, MAP.apply(dense_scores(query, one.embeddings)))
