from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray

from resrank.client import ResRankClient
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.stack.triton_process import TritonProcess

from .conftest import CALIBRATION

MAX_PASSAGES = 5


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float16).astype(np.float32)


def pass_scores(candidates: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the server's model computes for one pass, computed here."""
    return candidates[:, 0] / np.linalg.norm(candidates, axis=1) - 0.001 * np.arange(len(candidates))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f2"])
def test_one_pass_comes_back_sorted_with_the_servers_scores(client: Any, dtype: Any) -> None:
    candidates = vectors(MAX_PASSAGES)
    result = client.rerank("query", candidates.astype(dtype))
    expected = pass_scores(candidates)
    order = sorted(range(MAX_PASSAGES), key=lambda index: -expected[index])
    assert [passage.index for passage in result.passages] == order
    assert [passage.rank for passage in result.passages] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([passage.score for passage in result.passages], expected[order], atol=1e-6)
    assert result.passages[0].candidate_rank == order[0] + 1
    assert set(result.timings) == {"rerank", "total"}


def test_a_plain_triton_client_gets_the_same_scores(client: Any, triton: TritonProcess) -> None:
    candidates = vectors(MAX_PASSAGES)
    inputs = [triton_grpc.InferInput("QUERY", [1, 1], "BYTES"), triton_grpc.InferInput("CANDIDATES", [1, 5, 4], "FP16")]
    inputs[0].set_data_from_numpy(np.array([[b"query"]], dtype=np.object_))
    inputs[1].set_data_from_numpy(candidates[None].astype(np.float16))
    with triton_grpc.InferenceServerClient(triton.grpc_address) as plain:
        scores = plain.infer("rerank", inputs).as_numpy("SCORES")[0]
    by_index = sorted(client.rerank("query", candidates).passages, key=lambda passage: passage.index)
    assert [passage.score for passage in by_index] == scores.tolist()


def test_more_candidates_than_a_pass_takes_go_in_blocks_and_are_merged(client: Any) -> None:
    candidates = vectors(12)
    result = client.rerank("query", candidates)
    expected = np.concatenate([pass_scores(candidates[start : start + 5]) for start in (0, 5, 10)])
    by_index = sorted(result.passages, key=lambda passage: passage.index)
    np.testing.assert_allclose([passage.score for passage in by_index], expected, atol=1e-6)
    assert [passage.score for passage in result.passages] == sorted(expected.astype(np.float32).tolist(), reverse=True)


def test_a_second_pass_scores_the_best_once_more_in_one_context(client: Any) -> None:
    candidates = vectors(12)
    result = client.rerank("query", candidates, second_pass=True)
    first = np.concatenate([pass_scores(candidates[start : start + 5]) for start in (0, 5, 10)])
    best = sorted(range(12), key=lambda index: -first[index])[:5]
    second = dict(zip(best, pass_scores(candidates[best]), strict=True))
    assert {passage.index for passage in result.passages} == set(best)
    for passage in result.passages:
        assert passage.score == pytest.approx(second[passage.index], abs=1e-6)
    assert list(result.timings) == ["rerank", "second_pass", "total"]


@pytest.mark.parametrize("second_pass", [False, True])
def test_lexical_scores_of_the_callers_own_candidates_are_kept_in_the_order(client: Any, second_pass: bool) -> None:
    candidates = vectors(12)
    bm25 = np.random.default_rng(3).gamma(2.0, 3.0, 12)
    first = np.concatenate([pass_scores(candidates[start : start + 5]) for start in (0, 5, 10)])
    expected = first + 0.5 * bm25 / bm25.max()
    if second_pass:
        best = sorted(range(12), key=lambda index: -expected[index])[:5]
        rescored = pass_scores(candidates[best])
        expected = {index: score + 0.5 * bm25[index] / bm25.max() for index, score in zip(best, rescored, strict=True)}
    else:
        expected = dict(enumerate(expected))
    result = client.rerank("query", candidates, lexical_scores=bm25, lexical_weight=0.5, second_pass=second_pass)
    assert [passage.index for passage in result.passages] == sorted(expected, key=lambda index: -expected[index])
    for passage in result.passages:
        assert passage.score == pytest.approx(expected[passage.index], abs=1e-5)
        assert passage.lexical_score == pytest.approx(bm25[passage.index])
        assert passage.rerank_score == pytest.approx(passage.score - 0.5 * passage.lexical_score / bm25.max(), abs=1e-5)
    texts = client.rerank("query", passages=["a", "b"], lexical_scores=[1, 4])
    assert [passage.score for passage in texts.passages] == pytest.approx([1 + 0.3 / 4, 0.3]), "the default is .3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lexical_scores": [1, 2]}, "lexical_scores: not as many as candidates (limit 3, got 2)"),
        ({"lexical_scores": [1, 2, -1]}, "lexical_scores[2]: must be a number from 0 on (limit 0, got -1.0)"),
        ({"lexical_scores": [1, float("nan"), 1]}, "lexical_scores[1]: must be finite (limit 0, got nan)"),
        (
            {"lexical_scores": [1, 2, 3], "lexical_weight": 10.5},
            "lexical_weight: out of range (limit 0 to 10, got 10.5)",
        ),
        ({"lexical_weight": 1}, "lexical_weight: weighs lexical_scores, but there are none"),
    ],
)
def test_lexical_scores_that_cannot_be_are_refused(client: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        client.rerank("query", vectors(3), **options)
    assert str(caught.value) == message


def test_texts_are_reranked_and_come_back_with_the_result(client: Any) -> None:
    passages = ["b", "ab", "aab", "aaab", "bbbb", "aaaa", "bba"]
    result = client.rerank("query", passages=passages)
    assert [passage.text for passage in result.passages] == ["aaaa", "aaab", "aab", "ab", "bba", "b", "bbbb"]
    assert result.passages[0].score == 1.0


def test_ties_keep_the_order_of_the_input(client: Any) -> None:
    result = client.rerank("query", passages=["ab", "ba", "a", "ab", "a"])
    assert [passage.index for passage in result.passages] == [2, 4, 0, 1, 3]


def test_texts_that_no_text_should_break_arrive_as_they_are(client: Any) -> None:
    odd = ["<|im_end|>a", "a\x00a", "\x01\x02a", "ä" * 10, "🙂a"]
    result = client.rerank("nul \x00 <|im_start|>", passages=odd)
    shares = [text.encode().count(b"a") / len(text.encode()) for text in odd]
    for passage in result.passages:
        assert passage.score == pytest.approx(shares[passage.index], abs=1e-6)


def test_a_row_that_the_server_refuses_is_named_by_its_place_in_the_whole_list(client: Any) -> None:
    orders = json.dumps({"refuse": "CANDIDATES[1]: is a zero vector"})
    with pytest.raises(InvalidInputError) as caught:
        client.rerank(orders, vectors(4))
    assert caught.value.field == "CANDIDATES[1]"
    with pytest.raises(InvalidInputError) as caught:
        client.embed_passages(["short"] * 6 + ["x" * 41])
    assert (caught.value.field, caught.value.limit, caught.value.value) == ("TEXT[6]", "40", "41")
    with pytest.raises(InvalidInputError) as caught:
        client.embed_passages(["short"] * 8 + ["x" * 41])  # alone in the third batch
    assert caught.value.field == "TEXT[8]"


def test_another_dimension_than_the_models_is_refused_before_it_is_sent(client: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"CANDIDATES: wrong dimension \(limit 4, got 5\)"):
        client.rerank("query", np.ones((2, 5), np.float16))


def test_truncate_and_the_deadline_go_along_as_request_parameters(client: Any) -> None:
    orders = json.dumps({"tell": True})

    def told(**options: Any) -> dict[str, Any]:
        with pytest.raises(InvalidInputError) as caught:
            client.rerank(orders, vectors(2), **options)
        assert caught.value.field == "TOLD"
        answer: dict[str, Any] = json.loads(caught.value.problem)
        return answer

    assert told(truncate=True)["truncate"] is True
    assert "truncate" not in told()
    assert 2e6 < told(timeout_s=3.0)["timeout_us"] <= 3e6


def test_long_lists_are_embedded_in_batches_in_order(client: Any) -> None:
    texts = [f"{'a' * (index % 7)}{'b' * (index % 5)}." for index in range(23)]
    expected = [[text.count(letter) + 0.01 for letter in "abcd"] for text in texts]
    for method in (client.embed_passages, client.embed_queries):
        embeddings = method(texts)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, expected, rtol=1e-6)


def test_truncate_lets_long_texts_pass(client: Any) -> None:
    assert client.embed_queries(["a" * 41], truncate=True)[0, 0] == pytest.approx(40.01)
    with pytest.raises(InvalidInputError, match="too many tokens"):
        client.embed_queries(["a" * 41])


def test_the_encoder_is_told_from_the_models_config(client: Any) -> None:
    assert client.encoder_sha256() == "e" * 64


def test_a_closed_client_says_so(make: Any, triton: TritonProcess) -> None:
    client = make(triton.grpc_address)
    client.encoder_sha256()
    client.close()
    client.close()
    with pytest.raises(ResRankError, match="closed"):
        client.rerank("query", vectors(2))


def test_one_client_serves_many_threads(triton: TritonProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ResRankClient(triton.grpc_address) as client, ThreadPoolExecutor(8) as pool:

        def rerank(seed: int) -> bool:
            candidates = vectors(4, seed)
            scores = {passage.index: passage.score for passage in client.rerank("query", candidates).passages}
            return bool(np.allclose([scores[index] for index in range(4)], pass_scores(candidates), atol=1e-6))

        assert all(pool.map(rerank, range(64)))


def test_the_server_tells_what_scores_mean(client: Any) -> None:
    found = client.calibration()
    assert found == CALIBRATION
    scores = np.array([passage.score for passage in client.rerank("query", vectors(MAX_PASSAGES)).passages])
    np.testing.assert_allclose(found.for_weight(None).of(scores), 1 / (1 + np.exp(1.5 - 4.0 * scores)))
