"""What comes out of Triton is what the torch reference computes, whatever a request is batched with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.triton_requests import rerank_inputs, tensor, texts, unit_vectors

from .conftest import Served

QUERY = "Which river flows through the capital of France?"
PASSAGES = (
    "Paris is the capital of France and lies on the Seine.",
    "The moon.",
    "In 1969 two astronauts walked on the moon while a third stayed in orbit.",
)
TOLERANCE = 1e-3


def rerank(served: Served, query: str | bytes, candidates: np.ndarray, **options: object) -> np.ndarray:
    return served.client.infer("rerank", rerank_inputs(query, candidates), **options).as_numpy("SCORES")[0]


@pytest.mark.parametrize("count", [1, 2, 16])
def test_rerank_gives_the_references_scores(served: Served, count: int) -> None:
    candidates = unit_vectors(count, served.spec.encoder.embedding_dim, seed=count)
    scores = rerank(served, QUERY, candidates)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, served.reference.rerank(QUERY, candidates), atol=TOLERANCE)


def test_rows_of_one_request_are_independent(served: Served) -> None:
    queries = [QUERY, "moon", "a fox and a dog"]
    candidates = np.stack([unit_vectors(4, served.spec.encoder.embedding_dim, seed=row) for row in range(3)])
    inputs = [texts("QUERY", queries), tensor("CANDIDATES", candidates)]
    scores = served.client.infer("rerank", inputs).as_numpy("SCORES")
    expected = [served.reference.rerank(query, row) for query, row in zip(queries, candidates, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_unequal_requests_at_the_same_time_get_what_they_get_alone(served: Served) -> None:
    words = QUERY.split()
    cases = [
        (" ".join(words[: 1 + index % len(words)]), unit_vectors(1 + 5 * index % 16, served.spec.encoder.embedding_dim))
        for index in range(48)
    ]
    before = served.counters()["reranker"].executions
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda case: rerank(served, *case), cases))
    assert served.counters()["reranker"].executions - before < len(cases), "nothing was batched, so this shows nothing"
    for (query, candidates), scores in zip(cases, together, strict=True):
        np.testing.assert_allclose(scores, served.reference.rerank(query, candidates), atol=TOLERANCE)


@pytest.mark.parametrize("model", ["embed_passage", "embed_query"])
def test_embeddings_are_the_references(served: Served, model: str) -> None:
    embeddings = served.client.infer(model, [texts("TEXT", PASSAGES)]).as_numpy("EMBEDDING")
    expected = [served.reference.encode(text) for text in PASSAGES]
    np.testing.assert_allclose(embeddings, expected, atol=TOLERANCE)


def test_rerank_text_is_embedding_and_reranking(served: Served) -> None:
    candidates = np.stack([served.reference.encode(text) for text in PASSAGES]).astype(np.float16)
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [PASSAGES])]
    scores = served.client.infer("rerank_text", inputs).as_numpy("SCORES")
    np.testing.assert_allclose(scores, [served.reference.rerank(QUERY, candidates)], atol=TOLERANCE)


def test_rerank_text_embeds_more_passages_than_one_call_takes(served: Served) -> None:
    """8 rows of 16 passages are two calls of 64."""
    rows = [[f"{PASSAGES[place % 3]} {row} {place}" for place in range(16)] for row in range(8)]
    queries = [f"{QUERY} {row}" for row in range(8)]
    inputs = [texts("QUERY", queries), texts("PASSAGES", rows)]
    scores = served.client.infer("rerank_text", inputs).as_numpy("SCORES")
    assert scores.shape == (8, 16)
    for row in (0, 7):
        candidates = np.stack([served.reference.encode(text) for text in rows[row]]).astype(np.float16)
        np.testing.assert_allclose(scores[row], served.reference.rerank(queries[row], candidates), atol=TOLERANCE)


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|> river", "[SEP] seine [CLS]"])
def test_special_tokens_in_a_query_are_plain_text(served: Served, text: str) -> None:
    candidates = unit_vectors(5, served.spec.encoder.embedding_dim)
    as_text = served.reference.ids(text, split_special_tokens=True)
    scores = rerank(served, text, candidates)
    if not served.spec.fusion.query_residual:  # the reference's encoder reads control tokens as such
        expected = served.reference.rerank(text, candidates, query_ids=as_text)
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    as_control = served.reference.ids(text)
    if as_control != as_text:
        forged = served.reference.rerank(text, candidates, query_ids=as_control)
        assert np.abs(scores - forged).max() > 10 * TOLERANCE


def test_truncate_cuts_what_is_refused_without_it(served: Served) -> None:
    candidates = unit_vectors(4, served.spec.encoder.embedding_dim)
    long_query = "river " * 100
    with pytest.raises(InferenceServerException, match="too many tokens"):
        rerank(served, long_query, candidates)
    scores = rerank(served, long_query, candidates, parameters={"truncate": True})
    # What stands behind the limit makes no difference any more.
    np.testing.assert_array_equal(
        scores, rerank(served, long_query + "and the moon", candidates, parameters={"truncate": True})
    )
    passages = ["moon " * 200, "seine"]
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [passages])]
    with pytest.raises(InferenceServerException, match=r"PASSAGES\[0\]: too many tokens \(limit 64, got \d+\)"):
        served.client.infer("rerank_text", inputs)
    assert served.client.infer("rerank_text", inputs, parameters={"truncate": True}).as_numpy("SCORES").shape == (1, 2)


def test_the_configs_tell_clients_which_checkpoint_answers(served: Served) -> None:
    for model in ("rerank", "rerank_text", "embed_query", "embed_passage"):
        parameters = served.client.get_model_config(model).config.parameters
        told = {key: value.string_value for key, value in parameters.items()}
        assert told["checkpoint_sha256"] == served.spec.digest()
        assert len(told["encoder_sha256"]) == 64
        assert told["embedding_dim"] == str(served.spec.encoder.embedding_dim)
        assert told["max_passages"] == "16"
