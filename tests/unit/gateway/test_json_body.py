from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.gateway import json_body
from resrank.gateway.failures import RefusedError
from resrank.gateway.json_body import read_json

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
