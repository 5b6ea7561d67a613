"""What is written against sentence-transformers' CrossEncoder ranks with the server's scores: the share of a's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resrank.client import InvalidInputError, ResRankClient
from resrank.client.cross_encoder import RankingCrossEncoder
from resrank.stack.triton_process import TritonProcess

DOCUMENTS = ["ab", "aaab", "bbbb"]


def test_it_ranks_and_predicts_for_one_query(triton: TritonProcess) -> None:
    with ResRankClient(triton.grpc_address) as client:
        encoder = RankingCrossEncoder(client)
        assert encoder.rank("q", DOCUMENTS, top_k=2, return_documents=True) == [
            {"corpus_id": 1, "score": 0.75, "text": "aaab"},
            {"corpus_id": 0, "score": 0.5, "text": "ab"},
        ]
        assert encoder.rank("q", DOCUMENTS)[2] == {"corpus_id": 2, "score": 0.0}
        np.testing.assert_array_equal(encoder.predict([("q", text) for text in DOCUMENTS]), [0.5, 0.75, 0.0])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("q", "a"), ("p", "b")], r"scores the documents of one query together: .* \(limit 1 query, got 2\)"),
        ([], "got 0"),
        ([("q", "a"), ("q",)], r"sentences\[1\]: must be a pair"),
        (["qa"], r"sentences\[0\]: must be a pair"),
        ([(["q"], "d")], r"sentences\[0\]: must be a pair"),
        ((pair for pair in [("q", "a"), 7]), r"sentences\[1\]: must be a pair"),
    ],
)
def test_pairs_that_are_no_list_of_one_query_are_refused(pairs: Any, message: str) -> None:
    with ResRankClient("127.0.0.1:9") as client, pytest.raises(InvalidInputError, match=message):
        RankingCrossEncoder(client).predict(pairs)


def test_a_top_k_of_nothing_is_refused() -> None:
    with ResRankClient("127.0.0.1:9") as client, pytest.raises(InvalidInputError, match="top_k: too small"):
        RankingCrossEncoder(client).rank("q", DOCUMENTS, top_k=0)
