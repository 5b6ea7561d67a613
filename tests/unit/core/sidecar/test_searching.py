"""What client and server say to the sidecar, and how they read its answer."""

from __future__ import annotations

import numpy as np
import pytest

from resrank.core.errors import RetrievalError
from resrank.core.filters import F
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.search import SearchMode
from resrank.core.sidecar.filter_messages import filter_message
from resrank.core.sidecar.searching import read_candidates, search_request
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

ENCODER = "e" * 64
OTHER = "f" * 64


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
        mode=SearchMode(mode),
        k=3,
        encoder_sha256=ENCODER,
        include_texts=False,
        include_embeddings=True,
    )
    assert (request.mode, request.k, request.text, request.encoder_sha256) == (proto, 3, text, ENCODER)
    assert request.embedding == (b"" if vector is None else vector.tobytes())
    assert (request.include_texts, request.include_embeddings) == (False, True)


def test_hybrid_alone_sends_how_to_fuse() -> None:
    vector = np.ones(2, np.float32)
    options = {"k": 3, "encoder_sha256": None, "include_texts": False, "include_embeddings": False}
    fusion = {"fusion": Fusion.WEIGHTED, "lexical_weight": 0.5, "cosine_map": CosineMap(2.0, 0.7, 0.1)}
    request = search_request("words", vector, mode=SearchMode.HYBRID, **options, **fusion)
    assert (request.fusion, request.lexical_weight) == (pb.FUSION_WEIGHTED, 0.5)
    assert (request.cosine_map.slope, request.cosine_map.center, request.cosine_map.offset) == (2.0, 0.7, 0.1)
    request = search_request("words", vector, mode=SearchMode.HYBRID, **options, fusion=Fusion.RRF)
    assert request.fusion == pb.FUSION_RRF
    request = search_request("words", vector, mode=SearchMode.DENSE, **options, **fusion)
    assert not request.HasField("lexical_weight")


def asked(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**fields)


def answer(**fields: object) -> pb.SearchResponse:
    return pb.SearchResponse(ids=["a", "b"], scores=[0.5, 0.25], dimension=2, encoder_sha256=ENCODER, **fields)


def test_an_answer_is_read_row_by_row() -> None:
    vectors = np.array([[1, 2], [3, 4]], "<f2")
    found = read_candidates(
        answer(embeddings=vectors.tobytes(), titles=["A", "B"], texts=["1", "2"]),
        asked(encoder_sha256=ENCODER, include_embeddings=True),
    )
    assert (list(found.ids), list(found.scores), list(found.titles), list(found.texts)) == (
        *(["a", "b"], [0.5, 0.25]),
        *(["A", "B"], ["1", "2"]),
    )
    assert (found.dense_scores, found.lexical_scores) == (None, None)
    np.testing.assert_array_equal(found.embeddings, vectors)


def test_the_parts_of_scores_are_read_and_must_be_as_many_as_passages() -> None:
    parts = {"dense_scores": [0.25, 0.5], "lexical_scores": [0, 7], "max_lexical_score": 9}
    found = read_candidates(answer(**parts), asked())
    assert found.dense_scores is not None
    assert found.lexical_scores is not None
    assert (found.dense_scores.tolist(), found.lexical_scores.tolist()) == ([0.25, 0.5], [0, 7])
    assert found.max_lexical_score == 9
    with pytest.raises(RetrievalError, match="sent 1 lexical_scores for 2 passages"):
        read_candidates(answer(lexical_scores=[1]), asked())


def test_an_empty_index_is_of_no_encoder_and_has_no_vectors() -> None:
    found = read_candidates(pb.SearchResponse(), asked(encoder_sha256=ENCODER, include_embeddings=True))
    assert (list(found.ids), found.embeddings) == ([], None)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(RetrievalError, match=f"belongs to encoder {ENCODER}, Triton serves encoder {OTHER}"):
        read_candidates(answer(), asked(encoder_sha256=OTHER))
    with pytest.raises(RetrievalError, match="sent 6 bytes of embeddings where 2 x 2 fp16 take 8"):
        read_candidates(answer(embeddings=b"123456"), asked(encoder_sha256=ENCODER, include_embeddings=True))
    with pytest.raises(RetrievalError, match="sent 1 metadata for 2 passages"):
        read_candidates(answer(metadata=[pb.Metadata()]), asked())
    with pytest.raises(RetrievalError, match="sent metadata that is none: metadata 'x' has no value"):
        read_candidates(answer(metadata=[pb.Metadata(values={"x": pb.Value()})] * 2), asked())


def test_a_sidecar_that_passes_a_filter_over_is_not_believed() -> None:
    condition = filter_message(F("year") >= 2020)
    assert list(read_candidates(answer(collection="default"), asked(filter=condition)).ids) == ["a", "b"]
    for request in (asked(filter=condition), asked(collection="docs")):
        with pytest.raises(RetrievalError, match="passes filters and collections over: bring it to this release"):
            read_candidates(answer(), request)
