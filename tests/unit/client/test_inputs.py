from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resrank.client.inputs import check_dimension, encode_query, encode_texts, half_precision, truth, whole_number
from resrank.core.errors import InvalidInputError
from resrank.core.limits import MAX_QUERY_BYTES
from resrank.core.names import Tensor


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "QUERY: empty or only whitespace"),
        (" \t\n\u3000", "QUERY: empty or only whitespace"),
        ("a\ud800b", "QUERY: not valid Unicode: lone surrogate at character 1"),
        ("ä" * 5000, f"QUERY: too many bytes (limit {MAX_QUERY_BYTES}, got 10000)"),
        (b"bytes", "QUERY: must be a string, not bytes"),
        (None, "QUERY: must be a string, not NoneType"),
    ],
)
def test_a_bad_query_is_refused_with_field_limit_and_value(query: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_query(query)
    assert str(caught.value) == message


def test_the_longest_query_passes_and_one_byte_more_does_not() -> None:
    assert len(encode_query("x" * MAX_QUERY_BYTES)) == MAX_QUERY_BYTES
    with pytest.raises(InvalidInputError):
        encode_query("x" * (MAX_QUERY_BYTES + 1))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_valid_text_arrives_as_its_utf8(text: str) -> None:
    assert encode_query(text) == text.encode("utf-8")


def test_the_first_bad_text_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_texts(Tensor.PASSAGES, ["good", "also", "x" * 11, ""], 10)
    assert str(caught.value) == "PASSAGES[2]: too many bytes (limit 10, got 11)"


@pytest.mark.parametrize(
    "texts",
    [
        [],
        (),
        "one string",
        b"bytes",
        None,
        7,
        (text for text in ["a"]),
        {"a"},
        {"a": 1},
        np.array("a"),
    ],
)
def test_no_texts_and_a_bare_string_are_refused(texts: Any) -> None:
    with pytest.raises(InvalidInputError, match="TEXT: "):
        encode_texts(Tensor.TEXT, texts, 10)


@pytest.mark.parametrize("texts", [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object)])
def test_any_list_of_strings_is_taken(texts: Any) -> None:
    assert encode_texts(Tensor.TEXT, texts, 10) == [b"a", b"b"]


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2)])
def test_numpys_whole_numbers_are_python_s(value: Any) -> None:
    assert type(whole_number("k", value)) is int


@pytest.mark.parametrize("value", ["2", 2.0, None, True, np.True_, [2]])
def test_what_is_no_whole_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"^k: must be a whole number, not {type(value).__name__}"):
        whole_number("k", value)


def test_yes_and_no_are_neither_words_nor_numbers() -> None:
    assert truth("rerank", np.True_) is True
    for value in ("no", 0, 1, None):
        with pytest.raises(InvalidInputError, match=r"^rerank: must be True or False"):
            truth("rerank", value)


def matrix(index: int, value: float, dtype: Any = np.float32) -> Any:
    candidates = np.ones((4, 3), dtype=dtype)
    candidates[index, 1] = value
    return candidates


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[1.0, 2.0]], "CANDIDATES: must be a NumPy array, not list"),
        (np.ones((2, 3)), "CANDIDATES: wrong dtype (limit float16 or float32, got float64)"),
        (np.ones((2, 3), np.int8), "CANDIDATES: wrong dtype (limit float16 or float32, got int8)"),
        (np.ones(3, np.float16), "CANDIDATES: wrong number of dimensions, must be [N, d] (limit 2, got 1)"),
        (np.ones((1, 2, 3), np.float16), "CANDIDATES: wrong number of dimensions, must be [N, d] (limit 2, got 3)"),
        (np.ones((0, 3), np.float16), "CANDIDATES: no candidates (limit 1, got 0)"),
        (np.ones((2, 0), np.float16), "CANDIDATES[0]: is a zero vector"),
        (matrix(2, np.nan), "CANDIDATES[2]: contains NaN"),
        (matrix(1, np.inf, np.float16), "CANDIDATES[1]: contains Inf"),
        (matrix(3, -np.inf), "CANDIDATES[3]: contains Inf"),
        (np.array([[1, 2], [0, 0], [0, 0]], np.float16), "CANDIDATES[1]: is a zero vector"),
        (np.array([[1, 2], [-0.0, 0]], np.float16), "CANDIDATES[1]: is a zero vector"),
    ],
)
def test_bad_candidates_are_refused_and_the_first_is_named(candidates: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        half_precision(candidates)
    assert str(caught.value) == message


@pytest.mark.parametrize("row", [[70000.0, 1.0], [1e-9, -1e-9]])
def test_numbers_that_half_precision_cannot_hold_are_refused(row: list[float]) -> None:
    with pytest.raises(InvalidInputError, match=r"CANDIDATES\[0\]: does not fit half precision"):
        half_precision(np.array([row], np.float32))


def test_half_precision_is_not_copied() -> None:
    candidates = np.ones((3, 4), dtype="<f2")
    assert half_precision(candidates) is candidates


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4"])
def test_every_layout_becomes_contiguous_little_endian_half_precision(dtype: str) -> None:
    candidates = np.arange(1, 25, dtype=dtype).reshape(4, 6).T[::2]
    halves = half_precision(candidates)
    assert halves.dtype == np.dtype("<f2")
    assert halves.flags.c_contiguous
    np.testing.assert_array_equal(halves, candidates)


@given(
    hnp.arrays(
        np.float16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=16) | st.just(0.0)
    )
)
def test_the_check_on_bits_agrees_with_the_plain_one(candidates: Any) -> None:
    good = np.isfinite(candidates).all(axis=1) & (candidates != 0).any(axis=1)
    if good.all():
        assert half_precision(candidates).tobytes() == candidates.tobytes()
        return
    with pytest.raises(InvalidInputError) as caught:
        half_precision(candidates)
    assert caught.value.field == f"CANDIDATES[{int(np.argmin(good))}]"


def test_another_dimension_is_refused() -> None:
    check_dimension(np.ones((2, 4), np.float16), 4)
    with pytest.raises(InvalidInputError, match=r"CANDIDATES: wrong dimension \(limit 8, got 4\)"):
        check_dimension(np.ones((2, 4), np.float16), 8)
