"""Data files, and the calls that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from resrank.client import ResRankClient
from resrank.core.errors import InvalidInputError
from resrank.loadtest.callers import Callers
from resrank.loadtest.dataset import Dataset, load_dataset
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.scenario import Data, Scenario, load_scenario

from .conftest import SCENARIO


@pytest.fixture
def files(tmp_path: Path) -> Data:
    (tmp_path / "queries.jsonl").write_text('{"text": "one two three"}\n{"_id": "q", "text": "four five"}\n')
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "a", "title": "A", "text": "first"}\n{"_id": "empty"}\n{"_id": "b", "text": "second"}\n'
        '{"_id": "c", "text": "third"}\n'
    )
    return Data(queries=tmp_path / "queries.jsonl", passages=tmp_path / "corpus.jsonl", distinct_passages=2)


def test_files_are_read_as_far_as_they_are_needed(files: Data) -> None:
    assert load_dataset(files, with_passages=True) == Dataset(("one two three", "four five"), ("A first", "second"))
    assert load_dataset(files, with_passages=False).passages == ()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("queries.jsonl", "", "data.queries: .*queries.jsonl holds no queries"),
        ("queries.jsonl", '{"text": " "}\n', "queries.jsonl:1: must have text"),
        ("queries.jsonl", '{"query": "a"}\n', "queries.jsonl:1: must have text"),
        ("queries.jsonl", "a question\n", "queries.jsonl:1: is not valid JSON"),
        ("corpus.jsonl", "\n", "data.passages: .*corpus.jsonl holds no passages"),
        ("corpus.jsonl", '{"text": "a"}\n', "corpus.jsonl:1: lacks the field _id"),
    ],
)
def test_data_that_is_none_is_one_sentence(files: Data, tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=sentence):
        load_dataset(files, with_passages=True)


def test_missing_data_is_named(files: Data, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"queries.jsonl: cannot be read \(No such file or directory\)"):
        load_dataset(files, with_passages=True)


def test_queries_have_as_many_words_as_asked_for() -> None:
    dataset, rng = Dataset(("one two three", "four five"), ()), np.random.default_rng(0)
    assert {dataset.query(rng, None) for _ in range(50)} == {"one two three", "four five"}
    assert {dataset.query(rng, 4) for _ in range(50)} == {"one two three four", "four five one two"}
    assert {dataset.query(rng, 1) for _ in range(50)} == {"one", "four"}


class Client:
    """Takes down what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.asked.append((name, args, kwargs))


def calls(scenario: Scenario, kind: CallKind) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    client = Client()
    dataset = Dataset(("one two three",), ("a", "b", "c"))
    vectors = np.arange(12, dtype=np.float16).reshape(3, 4)
    callers = Callers(scenario, cast(ResRankClient, client), dataset, vectors)
    callers.of_kind(kind, np.random.default_rng(0)).make(1.5)
    (asked,) = client.asked
    assert asked[2].pop("timeout_s") == 1.5
    assert asked[2].pop("truncate")
    return asked


def test_calls_look_as_the_scenario_says(write: Callable[[str], Path]) -> None:
    text = SCENARIO.replace("rerank: 1", "rerank: 1, search: 1, rerank_text: 1")
    scenario = load_scenario(
        write(text + "candidates: {kind: fixed, value: 2}\nquery_words: {kind: fixed, value: 2}\nsearch: {k: 2}\n")
    )
    name, (query, candidates), rest = calls(scenario, CallKind.RERANK)
    assert (name, query, candidates.shape, candidates.dtype, rest) == ("rerank", "one two", (2, 4), np.float16, {})
    assert len({tuple(row) for row in candidates.tolist()}) == 2  # no candidate twice
    name, args, rest = calls(scenario, CallKind.RERANK_TEXT)
    assert (name, args, len(set(rest["passages"]))) == ("rerank", ("one two",), 2)
    name, args, rest = calls(scenario, CallKind.SEARCH)
    assert (name, args) == ("search", ("one two", 2))
    assert rest.items() >= {"candidates": 2, "mode": "hybrid"}.items()
    assert calls(scenario, CallKind.EMBED) == ("embed_queries", (["one two"],), {})


def test_passages_are_embedded_where_the_scenario_says_so(write: Callable[[str], Path]) -> None:
    scenario = load_scenario(write(SCENARIO + "embed: {role: passage, texts: {kind: fixed, value: 5}}\n"))
    name, (texts,), _ = calls(scenario, CallKind.EMBED)
    assert (name, len(texts), set(texts) <= {"a", "b", "c"}) == ("embed_passages", 5, True)


def test_kinds_are_drawn_by_their_weights(scenario: Scenario) -> None:
    callers = Callers(
        scenario, cast(ResRankClient, Client()), Dataset(("q",), ("p",) * 200), np.ones((200, 4), np.float16)
    )
    rng = np.random.default_rng(1)
    drawn = [callers.draw(rng).kind for _ in range(2000)]
    assert abs(drawn.count(CallKind.EMBED) - 1500) < 4 * np.sqrt(2000 * 0.25 * 0.75)
    assert set(drawn) == {CallKind.EMBED, CallKind.RERANK}
