from __future__ import annotations

import pytest
from hypothesis import given

from resrank.core.errors import InvalidInputError
from resrank.core.metadata import (
    FieldType,
    MetadataValue,
    check_metadata,
    metadata_value,
    read_metadata,
    type_of,
    write_metadata,
)
from support.metadata_strategies import metadata


@pytest.mark.parametrize(
    ("given_", "value", "kind"),
    [
        ("en", "en", FieldType.STRING),
        (2020, 2020.0, FieldType.NUMBER),
        (-2.5, -2.5, FieldType.NUMBER),
        (2**53, 2.0**53, FieldType.NUMBER),
        (True, True, FieldType.BOOL),
        (["a", "b"], ("a", "b"), FieldType.STRINGS),
        ([], (), FieldType.STRINGS),
    ],
)
def test_a_value_is_kept_by_its_type(given_: object, value: MetadataValue, kind: FieldType) -> None:
    kept = metadata_value("here", "x", given_)
    assert kept == value
    assert type(kept) is type(value)
    assert type_of(kept) is kind


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        (None, "metadata 'x' must be a string, a number, a bool or a list of strings, not NoneType"),
        ({"a": 1}, "not dict"),
        (["a", 1], "not list"),
        (float("nan"), "metadata 'x' is not finite"),
        (float("inf"), "is not finite"),
        (2**53 + 1, "beyond 2^53, which doubles round: give it as a string"),
        (-(10**400), "beyond 2^53"),
    ],
)
def test_what_metadata_cannot_hold_is_refused(given_: object, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        metadata_value("here", "x", given_)
    assert str(caught.value).startswith("here: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("metadata_", "problem"),
    [
        ({"é": "x" * 16383}, r"too long, in bytes \(limit 16384, got 16385\)"),
        ({"n": 1.0, "t": ("x" * 8000, "x" * 8375)}, r"got 16385"),
        ({"b": True, "s": "x" * 16382}, r"got 16385"),
        ({"": 1.0}, r"a name in the metadata of id 'a' empty or too long, in bytes \(limit 1 to 256, got 0\)"),
        ({"é" * 129: ("x",)}, r"\(limit 1 to 256, got 258\)"),
        ({"k": "\ud800"}, "is not valid Unicode"),
    ],
)
def test_metadata_that_is_too_long_is_refused(metadata_: dict[str, MetadataValue], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        check_metadata("records[3]", "a", metadata_)


def test_names_of_strings_keep_their_old_bounds() -> None:
    check_metadata("records[3]", "a", {"": "x", "k" * 1000: "y"})


@given(metadata)
def test_metadata_survives_its_json(given_: dict[str, MetadataValue]) -> None:
    read = read_metadata(write_metadata(given_))
    assert read == given_
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in given_.items()}


@pytest.mark.parametrize("text", ["[]", '{"a": null}', '{"a": 1}', '{"a": [1.0]}', "{"])
def test_json_that_is_no_metadata_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of JSON's own as well
        read_metadata(text)
