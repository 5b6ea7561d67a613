"""What client and server say to the sidecar, and how they read its answer."""

from __future__ import annotations

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.sidecar.searching import check_mode, check_sizes, read_candidates, search_request
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

ENCODER = "e" * 64
OTHER = "f" * 64


@pytest.mark.parametrize(("k", "candidates"), [(0, 5), (-1, 5), (1, 0), (6, 5), (1, 1001), (1001, 1001)])
def test_sizes_that_no_search_can_have_are_refused(k: int, candidates: int) -> None:
    with pytest.raises(InvalidInputError):
        check_sizes(k, candidates)


@pytest.mark.parametrize("mode", ["fuzzy", "", "DENSE"])
def test_only_known_modes_are_taken(mode: str) -> None:
    assert check_mode("lexical") == "lexical"
    with pytest.raises(InvalidInputError, match="mode: unknown"):
        check_mode(mode)


@pytest.mark.parametrize(
    ("mode", "embedding", "proto", "text"),
    [
        ("dense", [1.0, 2.0], pb.SEARCH_MODE_DENSE, ""),
        ("lexical", None, pb.SEARCH_MODE_LEXICAL, "words"),
        ("hybrid", [1.0, 2.0], pb.SEARCH_MODE_HYBRID, "words"),
    ],
)
def test_each_mode_sends_what_it_needs(mode: str, embedding: list[float] | None, proto: int, text: str) -> None:
    vector = None if embedding is None else np.array(embedding, np.float32)
    request = search_request(
        "words",
        vector,
        mode=check_mode(mode),
        k=3,
        encoder_sha256=ENCODER,
        include_texts=False,
        include_embeddings=True,
    )
    assert (request.mode, request.k, request.text, request.encoder_sha256) == (proto, 3, text, ENCODER)
    assert request.embedding == (b"" if vector is None else vector.tobytes())
    assert (request.include_texts, request.include_embeddings) == (False, True)


def answer(**fields: object) -> pb.SearchResponse:
    return pb.SearchResponse(ids=["a", "b"], scores=[0.5, 0.25], dimension=2, encoder_sha256=ENCODER, **fields)


def test_an_answer_is_read_row_by_row() -> None:
    vectors = np.array([[1, 2], [3, 4]], "<f2")
    found = read_candidates(
        answer(embeddings=vectors.tobytes(), titles=["A", "B"], texts=["1", "2"]),
        encoder_sha256=ENCODER,
        include_embeddings=True,
    )
    assert (list(found.ids), list(found.scores), list(found.titles), list(found.texts)) == (
        *(["a", "b"], [0.5, 0.25]),
        *(["A", "B"], ["1", "2"]),
    )
    np.testing.assert_array_equal(found.embeddings, vectors)


def test_an_empty_index_is_of_no_encoder_and_has_no_vectors() -> None:
    found = read_candidates(pb.SearchResponse(), encoder_sha256=ENCODER, include_embeddings=True)
    assert (list(found.ids), found.embeddings) == ([], None)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(RetrievalError, match=f"belongs to encoder {ENCODER}, Triton serves encoder {OTHER}"):
        read_candidates(answer(), encoder_sha256=OTHER, include_embeddings=False)
    with pytest.raises(RetrievalError, match="sent 6 bytes of embeddings where 2 x 2 fp16 take 8"):
        read_candidates(answer(embeddings=b"123456"), encoder_sha256=ENCODER, include_embeddings=True)
