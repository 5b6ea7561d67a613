from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.documents import cut_bytes, fit_query, sort_ids, sort_texts
from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES
from resrank.core.truncation import Side

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, st.integers(1, 40), st.sampled_from(Side))
def test_a_cut_text_is_the_longest_piece_of_whole_characters_at_its_end(text: str, most: int, side: Side) -> None:
    kept = cut_bytes(text, most, side)
    assert text.endswith(kept) if side is Side.LEFT else text.startswith(kept)
    assert len(kept.encode()) <= most
    if kept != text:
        more = text[-len(kept) - 1 :] if side is Side.LEFT else text[: len(kept) + 1]
        assert len(more.encode()) > most


def test_documents_that_cannot_be_ranked_are_set_aside_with_why() -> None:
    long = "é" * MAX_PASSAGE_BYTES
    found = sort_texts(["a", "", " \n", long, "b"], truncate=True, side=Side.RIGHT, strict=False, field="documents")
    assert found.places == (0, 3, 4)
    assert found.usable[1] == "é" * (MAX_PASSAGE_BYTES // 2)
    assert found.cut == {3}
    assert found.unusable == {1: "empty or only whitespace", 2: "empty or only whitespace"}


@pytest.mark.parametrize(
    ("given_texts", "options", "sentence"),
    [
        (["a", " "], {"strict": True}, r"texts\[1\]: empty or only whitespace"),
        (["a", " " * 70_000 + "x"], {"strict": True}, r"texts\[1\]: empty or only whitespace where it was cut"),
        (["a", "x" * 70_000], {"truncate": False}, r"texts\[1\]: too many bytes \(limit 65536, got 70000\)"),
    ],
)
def test_who_wants_it_gets_an_error(given_texts: list[str], options: dict[str, bool], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        sort_texts(given_texts, **{"truncate": True, "side": Side.RIGHT, "strict": False, "field": "texts"} | options)


def test_what_is_not_valid_unicode_is_set_aside_however_long_it_is() -> None:
    broken = ["a\ud800", "\ud800" + "a" * 70_000]
    found = sort_texts([*broken, "b"], truncate=True, side=Side.LEFT, strict=False, field="documents")
    assert found.usable == ("b",)
    assert found.unusable == {
        0: "not valid Unicode: lone surrogate at character 1",
        1: "not valid Unicode: lone surrogate at character 0",
    }
    with pytest.raises(InvalidInputError, match="query: not valid Unicode"):
        fit_query(broken[0], truncate=True, side=Side.RIGHT)


def test_blank_ends_of_a_cut_text_are_no_document() -> None:
    found = sort_texts(
        [" " * MAX_PASSAGE_BYTES + "end"], truncate=True, side=Side.RIGHT, strict=False, field="documents"
    )
    assert found.usable == ()
    assert found.unusable == {0: "empty or only whitespace where it was cut"}


def test_ids_are_checked_and_said_once() -> None:
    found = sort_ids(["a", "", "b", "a", "c" * 600], strict=False, field="document_ids")
    assert (found.usable, found.places) == (("a", "b"), (0, 2))
    assert found.unusable[3] == "the same id as document_ids[0]"
    assert set(found.unusable) == {1, 3, 4}
    with pytest.raises(InvalidInputError, match=r"document_ids\[1\]: the same id as document_ids\[0\]"):
        sort_ids(["a", "a"], strict=True, field="document_ids")


def test_a_query_is_cut_at_the_side_that_is_wanted_or_refused() -> None:
    long = "a" * MAX_QUERY_BYTES + "b"
    assert fit_query(long, truncate=True, side=Side.RIGHT) == "a" * MAX_QUERY_BYTES
    assert fit_query(long, truncate=True, side=Side.LEFT).endswith("b")
    assert fit_query("q", truncate=False, side=Side.LEFT) == "q"
    for query, truncate in ((long, False), ("  ", True), (" " * 9000 + "x", True)):
        with pytest.raises(InvalidInputError, match=r"^query: "):
            fit_query(query, truncate=truncate, side=Side.RIGHT)
    with pytest.raises(InvalidInputError) as refused:
        fit_query("  ", truncate=True, side=Side.RIGHT, field=Place("input", (1,)))
    assert refused.value.place == Place("input", (1,))
