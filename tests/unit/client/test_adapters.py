"""What frameworks' adapters and the cross-encoder send, and how they name what is refused; no server is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from resrank.client import AsyncResRankClient, RankedPassage, RerankResult, ResRankClient, SearchResult
from resrank.client.cross_encoder import RankingCrossEncoder
from resrank.client.inputs import encode_query, encode_texts
from resrank.client.integrations.ranking import PlacedDocument, RankingOptions, rank, rank_async
from resrank.client.integrations.searching import SearchingOptions, search, search_async
from resrank.core.errors import InvalidInputError, Place, ServerUnavailableError
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES
from resrank.core.names import Tensor
from resrank.core.passage import check_id

LONG = "word " * 20_000
BLANK_WHERE_CUT = " " * 70_000 + "xx"
Rank = Callable[[str, Sequence[str], RankingOptions], list[PlacedDocument]]


class Servers:
    """What the client asks: refuses as the client does, and puts the last one first."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.query = ""
        self.refused: InvalidInputError | None = None
        self.calibration_error: Exception | None = None
        self.left_s: list[float] = []

    def rerank(self, query: str, passages: Sequence[str], timeout_s: float | None = None, **_: Any) -> RerankResult:
        encode_query(query)
        encode_texts(Tensor.PASSAGES, passages, MAX_PASSAGE_BYTES)
        return self._answer(query, passages)

    def rerank_stored(self, query: str, ids: Sequence[str], **_: Any) -> RerankResult:
        encode_query(query)
        for index, id_ in enumerate(ids):
            check_id(Place("ids", (index,)), id_)
        return self._answer(query, ids)

    def search(self, query: str, k: int, **_: Any) -> SearchResult:
        encode_query(query)
        return SearchResult(query, "hybrid", True, self._answer(query, ["a"] * k).passages, {})

    def calibration(self, *, triton: str, timeout_s: float) -> None:
        self.left_s.append(timeout_s)
        if self.calibration_error is not None:
            raise self.calibration_error

    def _answer(self, query: str, given: Sequence[str]) -> RerankResult:
        if self.refused is not None:
            raise self.refused
        self.query, self.sent = query, list(given)
        count = len(given)
        passages = tuple(
            RankedPassage(
                rank=count - index,
                index=index,
                score=float(index),
                id=None,
                title=None,
                text=given[index],
                candidate_rank=index + 1,
                candidate_score=None,
            )
            for index in reversed(range(count))
        )
        return RerankResult(passages, {})


METHODS = ("rerank", "rerank_stored", "search", "calibration")


def in_threads(servers: Servers) -> ResRankClient:
    client = ResRankClient("127.0.0.1:9")
    for method in METHODS:
        setattr(client, method, getattr(servers, method))
    return client


def in_a_loop(servers: Servers) -> AsyncResRankClient:
    def asynchronous(method: Callable[..., Any]) -> Callable[..., Any]:
        async def ask(*args: Any, **given: Any) -> Any:
            return method(*args, **given)

        return ask

    client = AsyncResRankClient("127.0.0.1:9")
    for method in METHODS:
        setattr(client, method, asynchronous(getattr(servers, method)))
    return client


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture(params=["threads", "asyncio"])
def ranked(servers: Servers, request: pytest.FixtureRequest) -> Rank:
    if request.param == "threads":
        return lambda *given: rank(in_threads(servers), *given)
    return lambda *given: asyncio.run(rank_async(in_a_loop(servers), *given))


@pytest.fixture(params=["threads", "asyncio"])
def searched(servers: Servers, request: pytest.FixtureRequest) -> Callable[[str, SearchingOptions], Any]:
    if request.param == "threads":
        return lambda query, options: search(in_threads(servers), query, 2, options)
    return lambda query, options: asyncio.run(search_async(in_a_loop(servers), query, 2, options))


def test_a_text_and_a_query_of_too_many_bytes_fail_no_list(servers: Servers, ranked: Rank) -> None:
    placed = ranked(LONG, ["", "a", LONG, BLANK_WHERE_CUT, "b", "c\ud800"], RankingOptions())
    assert [each.index for each in placed] == [4, 2, 1, 0, 3, 5]
    assert servers.sent == ["a", LONG[:MAX_PASSAGE_BYTES], "b"]
    assert servers.query == LONG[:MAX_QUERY_BYTES]
    assert [each.relevance for each in placed[3:]] == [0.0, 0.0, 0.0]


def test_who_wants_it_is_told_which_document_is_too_long(ranked: Rank) -> None:
    with pytest.raises(InvalidInputError, match=r"^documents\[2\]: too many bytes \(limit 65536, got 100000\)"):
        ranked("q", ["", "a", LONG], RankingOptions(truncate=False))
    with pytest.raises(InvalidInputError, match=r"^query: too many bytes"):
        ranked(LONG, ["a"], RankingOptions(truncate=False))


@pytest.mark.parametrize(("name", "stored"), [("PASSAGES", False), ("TEXT", False), ("ids", True)])
def test_what_the_models_refuse_is_named_by_the_callers_place(
    servers: Servers, ranked: Rank, name: str, stored: bool
) -> None:
    servers.refused = InvalidInputError(Place(name, (1,)), "no tokens", limit=1, value=0)
    with pytest.raises(InvalidInputError, match=r"^documents\[3\]: no tokens \(limit 1, got 0\)$"):
        ranked("q", ["", "a", "", "b"], RankingOptions(stored=stored))
    servers.refused = InvalidInputError("QUERY", "no tokens")
    with pytest.raises(InvalidInputError, match=r"^QUERY: no tokens$"):
        ranked("q", ["", "a"], RankingOptions(stored=stored))


def test_ids_that_can_be_none_stand_last(servers: Servers, ranked: Rank) -> None:
    placed = ranked("q", ["x" * 600, "a", "b\0", "", "a", "c"], RankingOptions(stored=True))
    assert servers.sent == ["a", "c"]
    assert [each.index for each in placed] == [5, 1, 0, 2, 3, 4]


def test_a_finished_order_does_not_need_to_be_explained(servers: Servers, ranked: Rank, searched: Any) -> None:
    servers.calibration_error = ServerUnavailableError("no server answers")
    placed = ranked("q", ["a", "b"], RankingOptions(on_failure="retrieval_order"))
    assert [(each.index, each.relevance) for each in placed] == [(1, pytest.approx(0.731, abs=1e-3)), (0, 0.5)]
    assert len(searched("q", SearchingOptions(on_failure="retrieval_order"))) == 2
    with pytest.raises(ServerUnavailableError):
        ranked("q", ["a", "b"], RankingOptions())
    with pytest.raises(ServerUnavailableError):
        searched("q", SearchingOptions())
    assert all(0 < left <= 10 for left in servers.left_s)
    servers.calibration_error = InvalidInputError("calibration", "is no calibration")
    with pytest.raises(InvalidInputError):
        ranked("q", ["a", "b"], RankingOptions(on_failure="retrieval_order"))


def test_a_query_to_search_by_is_cut_where_it_may_be(servers: Servers, searched: Any) -> None:
    assert len(searched(LONG, SearchingOptions())) == 2
    assert servers.query == LONG[:MAX_QUERY_BYTES]
    with pytest.raises(InvalidInputError, match=r"^query: too many bytes"):
        searched(LONG, SearchingOptions(truncate=False))


def test_the_cross_encoder_cuts_and_returns_texts_as_they_came(servers: Servers) -> None:
    found = RankingCrossEncoder(in_threads(servers)).rank(LONG, ["a", LONG], top_k=1, return_documents=True)
    assert found == [{"corpus_id": 1, "score": 1.0, "text": LONG}]
    assert servers.sent == ["a", LONG[:MAX_PASSAGE_BYTES]]
    assert servers.query == LONG[:MAX_QUERY_BYTES]


def test_the_cross_encoder_names_what_it_was_given(servers: Servers) -> None:
    encoder, strict = RankingCrossEncoder(in_threads(servers)), RankingCrossEncoder(in_threads(servers), truncate=False)
    wrong: Any
    for wrong, message in (
        (["a", BLANK_WHERE_CUT], r"^documents\[1\]: empty or only whitespace where it was cut"),
        (["a", 7], r"^documents\[1\]: must be a string, not int"),
        ("a text", r"^documents: must be a list of strings, not one string"),
        ([], r"^documents: no texts"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            encoder.rank("q", wrong)
    with pytest.raises(InvalidInputError, match=r"^documents\[1\]: too many bytes"):
        strict.rank("q", ["a", LONG])
    servers.refused = InvalidInputError(Place("PASSAGES", (1,)), "no tokens")
    with pytest.raises(InvalidInputError, match=r"^sentences\[1\]: no tokens"):
        encoder.predict([("q", "a"), ("q", "b")])


def test_the_cross_encoder_has_no_use_for_options_of_speed(servers: Servers) -> None:
    encoder = RankingCrossEncoder(in_threads(servers))
    speed = {"batch_size": 8, "show_progress_bar": True, "num_workers": 2, "device": "cuda:0"}
    defaults = {"activation_fn": None, "apply_softmax": False, "convert_to_numpy": True, "convert_to_tensor": False}
    np.testing.assert_array_equal(encoder.predict([("q", "a"), ("q", "b")], **speed, **defaults), [0.0, 1.0])
    assert [each["corpus_id"] for each in encoder.rank("q", ["a", "b"], **speed)] == [1, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("activation_fn", str), ("apply_softmax", True), ("convert_to_numpy", False), ("convert_to_tensor", True)],
)
def test_the_cross_encoder_refuses_by_name_what_would_change_the_result(
    servers: Servers, name: str, value: Any
) -> None:
    encoder = RankingCrossEncoder(in_threads(servers))
    for ask in (
        lambda: encoder.predict([("q", "a")], **{name: value}),
        lambda: encoder.rank("q", ["a"], **{name: value}),
    ):
        with pytest.raises(InvalidInputError, match=f"^{name}: would change the result"):
            ask()
    with pytest.raises(TypeError, match=r"predict\(\) got an unexpected keyword argument 'batchsize'"):
        encoder.predict([("q", "a")], batchsize=3)


@pytest.mark.parametrize("pair", [("q", "a"), ["q", "a"]])
def test_one_pair_gives_one_number(servers: Servers, pair: Any) -> None:
    score = RankingCrossEncoder(in_threads(servers)).predict(pair)
    assert isinstance(score, np.float32)
    assert score == 0.0
    assert RankingCrossEncoder(in_threads(servers)).predict([pair]).shape == (1,)
