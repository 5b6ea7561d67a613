from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.gateway import bounded_json, json_body
from resrank.gateway.failures import RefusedError
from resrank.gateway.json_body import read_json

from .conftest import Serve

LONGEST = {"documents": 3, "texts": 3}


@pytest.mark.parametrize(
    "body", [b'{"documents": ["a", "b", "c", "d"]}', b'{"a": [1,2,3,4], "texts": ["", "", "", ""]}']
)
def test_a_list_that_is_too_long_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"too many in one request \(limit 3, got more\)"):
        read_json(body, LONGEST)


def test_what_stands_behind_the_bound_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million documents cost what three do."""
    seen: list[int] = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> Any:
            seen.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_body, "_decoder", Counting())
    body = b'{"query": "q", "documents": [' + b",".join([b'"x"'] * 1_000_000) + b"]}"
    with pytest.raises(InvalidInputError):
        read_json(body, LONGEST)
    assert len(seen) < 10


def test_lists_of_other_names_and_texts_full_of_commas_are_no_matter() -> None:
    value = {"documents": [",,,,,", "b", '","'], "other": [1, 2, 3, 4, 5], "deep": {"documents": [1, 2, 3, 4]}}
    assert read_json(json.dumps(value).encode(), LONGEST) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
        max_leaves=20,
    ),
    st.lists(st.text(), max_size=6),
)
def test_json_is_read_as_the_standard_library_reads_it(other: Any, documents: list[str]) -> None:
    """Where the list is short enough; else it is refused."""
    body = json.dumps({"other": other, "documents": documents}).encode()
    if len(documents) > 3:
        with pytest.raises(InvalidInputError):
            read_json(body, LONGEST)
    else:
        assert read_json(body, LONGEST) == json.loads(body)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(r'"\ud800"', "\ufffd"), (r'"a\udc00b"', "a\ufffdb"), (r'"\ud800A"', "\ufffdA"), (r'"\ud83d\ude00"', "😀")],
)
def test_half_of_a_surrogate_pair_is_read_as_a_replacement(text: str, expected: str) -> None:
    body = f'{{"documents": [{text}, "whole"], "{"key"}": {text}}}'.encode()
    assert read_json(body, LONGEST) == {"documents": [expected, "whole"], "key": expected}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": "\\ud800", "b": NaN}',
        b'{"a": 1,}',
        b'{"a" 1}',
        b"[" * 100_000,
        b'{"a":' * 5000,
        b'{"documents": [,,,,,,,]}',
        b'{"documents": ["a" "b",,,,]}',
        b'{"a": "\\ud800", "b": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": "\\ud800", "b": ' + b"1" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        read_json(body, LONGEST)
    assert caught.value.failure.status == 400
    assert caught.value.failure.message.startswith("body: no valid JSON: ")


HOSTILE: dict[str, bytes] = {
    "lists in a field that nobody knows": b'{"query": "q", "x": [' + b"[]," * 300_000 + b"[]]}",
    "objects in one": b'{"query": "q", "x": [' + b"{}," * 300_000 + b"{}]}",
    "fields that nobody knows": b'{"query": "q"' + b',"x": 0' * 300_000 + b"}",
    "lists in a document": b'{"query": "q", "documents": [{"text": "a", "x": [' + b"[]," * 300_000 + b"[]]}]}",
    "lists behind a short list": b'{"query": "q", "documents": ["a"], "x": [' + b"[]," * 300_000 + b"[]]}",
    "one level in the other": b'{"query": "q", "x": ' + b"[" * 300_000,
    "after texts with signs of their own": rb'{"query": "a \" [ \\", "y": "\\\"", "x": [' + b"[]," * 300_000 + b"[]]}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_body_of_more_elements_than_any_request_needs_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(json_body, "from_json", lambda *given, **more: pytest.fail("parsed"))
    with pytest.raises(RefusedError) as caught:
        read_json(HOSTILE[kind], LONGEST)
    failure = caught.value.failure
    assert (failure.status, failure.kind, failure.field) == (413, "too_large", "body")
    assert failure.message == "body: too many lists, objects and elements (limit 200000, got more)"


@pytest.mark.parametrize(
    "text",
    ["[{," * 100_000, '"[",' * 100_000, "\\[{," * 100_000, '\\"[,' * 100_000, "\\" * 500_001 + "[,", "é[,{" * 100_000],
)
@pytest.mark.parametrize("before", ["", "a"])  # so that pieces end before and within escapes
def test_signs_within_texts_are_no_elements(text: str, before: str) -> None:
    for ascii_alone in (True, False):
        value = {"query": before + text, "documents": [text, "b"]}
        assert read_json(json.dumps(value, ensure_ascii=ascii_alone).encode(), LONGEST) == value


def test_elements_are_told_from_signs_wherever_a_piece_of_the_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a\\"[{,\\\\"' * 40
    body = json.dumps({"query": text, "x": [[], {}, text, [1, 2]]}).encode()
    monkeypatch.setattr(json_body, "_MOST_ELEMENTS", 10)  # which it has outside of its texts
    for piece in range(2, 40):
        monkeypatch.setattr(json_body, "_PIECE", piece)
        read_json(body, {})
        with pytest.raises(RefusedError):
            read_json(body.replace(b"[1, 2]", b"[1, 2, 3]"), {})


def test_as_many_documents_as_the_settings_allow_are_read_with_their_fields() -> None:
    """The most that ``max_documents`` can be, each an object of a few fields."""
    document = {"id": "1", "title": "t", "text": "a", "url": "u"}
    body = json.dumps({"query": "q", "documents": [document] * 100_000}).encode()
    assert len(read_json(body, {"documents": 100_000})["documents"]) == 100_000


async def test_the_loop_answers_while_a_long_body_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of it hold the interpreter for milliseconds; all of it together does not hold the loop."""
    answered = threading.Event()

    def slow(*given: Any, **more: Any) -> Any:
        assert answered.wait(30)  # on the loop nobody would ever be answered
        return {"query": "q", "documents": ["a"]}

    monkeypatch.setattr(json_body, "from_json", slow)
    body = json.dumps({"query": "q", "documents": ["a" * 300_000]}).encode()
    async with serve() as http:
        reading = asyncio.create_task(
            http.post("/v2/rerank", content=body, headers={"Content-Type": "application/json"})
        )
        await asyncio.sleep(0.2)
        assert (await http.get("/v1/health/live")).status_code == 200
        assert not reading.done()
        answered.set()
        assert (await reading).status_code == 200


@pytest.mark.parametrize(
    ("path", "keys"),
    [("/rerank", {"message", "error"}), ("/v1/ranking", {"detail"}), ("/v1/search", {"error"}), ("/embed", {"error"})],
)
async def test_a_body_of_too_many_elements_is_answered_as_one_of_too_many_bytes(
    serve: Serve, path: str, keys: set[str]
) -> None:
    sentence = "body: too many lists, objects and elements (limit 200000, got more)"
    headers = {"Content-Type": "application/json"}
    async with serve() as http:
        answer = await http.post(path, content=HOSTILE["objects in one"], headers=headers)
    assert answer.status_code == 413
    said = answer.json()
    assert keys <= set(said)
    for key in keys:
        told = said[key]["message"] if isinstance(said[key], dict) else said[key]
        assert told == sentence


async def test_of_a_hundred_thousand_fields_that_there_are_not_one_sentence_is_made(serve: Serve) -> None:
    """Of each pydantic would make a finding, which takes more than to read it."""
    body = b'{"query": "q"' + b"".join(b',"x%d": 0' % number for number in range(150_000)) + b"}"
    async with serve() as http:
        answer = await http.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "body: too many fields (limit 1000, got 150001)"


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_refused_body_is_let_go_with_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """What was raised holds the frames that it went through, and they hold the body."""
    raised: list[weakref.ref[Exception]] = []

    def refuse(*given: Any) -> Any:
        error = InvalidInputError("documents", "too many")
        raised.append(weakref.ref(error))
        raise error

    monkeypatch.setattr(bounded_json, "read_json", refuse)
    gc.disable()
    try:
        async with serve() as http:
            answer = await http.post("/rerank", json={"query": "q" * size})
            assert answer.status_code == 422
            deadline = time.monotonic() + 5  # the thread lets go after it has told
            while raised[0]() is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert raised[0]() is None
    finally:
        gc.enable()
