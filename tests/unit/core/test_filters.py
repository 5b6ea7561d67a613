"""What filters mean, by hand; everything else that filters is compared with ``matches``."""

from __future__ import annotations

import math

import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.filters import AllOf, AnyOf, Comparison, F, Filter, Not, Operator, check_filter, matches
from resrank.core.metadata import FieldType, MetadataValue

RECORD: dict[str, MetadataValue] = {
    "lang": "en",
    "year": 2020.0,
    "draft": False,
    "tags": ("novel", "war"),
    "none": (),
}
TYPES = {
    "lang": FieldType.STRING,
    "year": FieldType.NUMBER,
    "draft": FieldType.BOOL,
    "tags": FieldType.STRINGS,
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (F("lang") == "en", True),
        (F("lang") == "EN", False),
        (F("lang") != "en", False),
        (F("lang") != "de", True),
        (F("lang").is_in("de", "en"), True),
        (F("lang").is_in("de"), False),
        (F("lang") < "en", False),
        (F("lang") <= "en", True),
        (F("lang") < "eñ", True),  # by bytes: n is below ñ
        (F("lang") > "Z", True),
        (F("year") == 2020, True),
        (F("year") >= 2020, True),
        (F("year") > 2020, False),
        (F("year") < 2020.5, True),
        (F("draft") == False, True),  # noqa: E712  # a field, not a truth value
        (F("draft") == True, False),  # noqa: E712
        (F("tags") == "war", True),
        (F("tags") == "peace", False),
        (F("tags") != "war", False),
        (F("tags").is_in("peace", "novel"), True),
        (F("tags").exists(), True),
        (F("none").exists(), True),
        (F("none") == "", False),
        (F("nobody").exists(), False),
        (F("nobody") == "x", False),
        (F("nobody") != "x", True),
        (F("nobody").is_in("x"), False),
        (F("nobody") < 3, False),
        (~F("nobody").exists(), True),
        (~(F("nobody") < 3), True),
        (F("draft") == 0, False),  # a truth value is no number
        (F("year") == "2020", False),
        ((F("lang") == "en") & (F("year") > 2000), True),
        ((F("lang") == "en") & (F("year") > 2020), False),
        ((F("lang") == "de") | (F("year") == 2020), True),
        ((F("lang") == "de") | (F("year") == 1), False),
        (~((F("lang") == "de") | (F("year") == 1)), True),
    ],
)
def test_a_filter_holds_or_does_not(condition: Filter, holds: bool) -> None:
    assert matches(condition, RECORD) is holds


def test_what_is_joined_alike_lies_on_one_level() -> None:
    a, b, c = F("a") == 1, F("b") == 2, F("c") == 3
    assert a & b & c == AllOf((a, b, c))
    assert a | b | c == AnyOf((a, b, c))
    assert a & b | c == AnyOf((AllOf((a, b)), c))
    assert ~a == Not(Comparison("a", Operator.EQ, (1.0,)))


def test_a_filter_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match="join filters by &"):
        2019 <= F("year") <= 2021  # noqa: B015
    with pytest.raises(TypeError, match="neither true nor false"):
        (F("a") == 1) and (F("b") == 2)


def nested(levels: int) -> Filter:
    condition: Filter = F("a").exists()
    for _ in range(levels - 1):
        condition = ~condition
    return condition


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nested(10_000), "filter: nested too deeply, in levels (limit 32, got 33)"),
        (lambda: AllOf(tuple(F("a").exists() for _ in range(256))), "filter: too many conditions (limit 256, got 257)"),
        (
            lambda: F("a").is_in(*map(str, range(100_000))),
            "filter: too many values (limit 1000, got 100000)",
        ),
        (
            lambda: F("a").is_in(*range(600)) | F("b").is_in(*range(600)),
            "filter: too many values (limit 1000, got 1200)",
        ),
        (
            lambda: F("a") == "é" * 140_000,
            "filter: names and strings too long, in bytes (limit 262144, got 280001)",
        ),
        (lambda: F("a").is_in(), "filter: a in: too few or too many values (limit 1 to 1000, got 0)"),
        (
            lambda: Comparison("a", Operator.EQ, ("x", "y")),
            "filter: a =: too few or too many values (limit 1, got 2)",
        ),
        (
            lambda: Comparison("a", Operator.EXISTS, ("x",)),
            "filter: a exists: too few or too many values (limit none, got 1)",
        ),
        (lambda: AllOf(()), "filter: all_of joins no conditions (limit 1 or more, got 0)"),
        (lambda: F("a") > math.inf, "filter: a > Infinity: the value is not finite"),
        (lambda: F("a") == 2**60, "filter: a = 1152921504606846976: the value is a whole number beyond 2^53"),
        (lambda: F("a") == None, "filter: a = null: compare with a string, a number or a bool; the value is null"),  # noqa: E711
        (lambda: (F("a") == 1) & "b = 1", 'filter: all_of joins filters: "b = 1" is a string'),
        (lambda: Not("a = 1"), 'filter: not joins filters: "a = 1" is a string'),
        (lambda: F("a") > F("b"), 'filter: a > F("b"): compare with a string, a number or a bool; the value is'),
        (lambda: F("a") == ["x"], 'filter: a = ["x"]: compare with a string, a number or a bool; the value is a list'),
        (lambda: F("\udc00") == [1], r'filter: "\udc00" = [1]: compare with'),
        (lambda: F("\udc00").exists(), "filter: a name or string is not valid Unicode"),
        (lambda: F(3), "filter: a field's name must be a string: 3 is a number"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_when_it_is_made(make: object, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(sentence)


def test_the_largest_filters_can_be_made_and_walked() -> None:
    assert matches(nested(32), {}) is True
    assert not matches(F("a").is_in(*range(1000)), {})
    assert matches(AnyOf(tuple(F("a") != number for number in range(255))), {})


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (
            F("yaer") >= 2020,
            "filter: no record has the field yaer: there are draft (bool), lang (string), tags (strings), year (n",
        ),
        (~((F("lang") == "en") & F("x").exists()), "filter: no record has the field x:"),
        (
            F("year") == "2020",
            'filter: year = "2020": the field is a number, the value a string: write a number, without quotes',
        ),
        (
            F("lang").is_in("en", 3),
            "filter: lang in 3: the field is a string, the value a number: write a string, in quotes",
        ),
        (F("draft") == 0, "filter: draft = 0: the field is a bool, the value a number: write true or false"),
        (
            F("year") == True,  # noqa: E712
            "filter: year = true: the field is a number, the value a bool: write a number, without quotes",
        ),
        (
            F("tags") == 1,
            "filter: tags = 1: the field is a list of strings, the value a number: write one of its strings, in quotes",
        ),
        (
            F("tags") < "x",
            'filter: tags < "x": < compares numbers or strings, the field is a list of strings: use = or in',
        ),
        (F("draft") >= True, "filter: draft >= true: >= compares numbers or strings, the field is a bool: use = or in"),
    ],
)
def test_a_filter_that_does_not_fit_the_fields_is_refused(condition: Filter, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_filter(condition, TYPES)
    assert str(caught.value).startswith(sentence)


def test_of_very_many_fields_some_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"f018 \(string\), f019 \(string\) and 980 more$"):
        check_filter(F("x").exists(), {f"f{number:03}": FieldType.STRING for number in range(1000)})
    with pytest.raises(InvalidInputError, match="the index has no metadata"):
        check_filter(F("x").exists(), {})


def test_a_filter_that_fits_passes() -> None:
    check_filter((F("year") >= 2020) & (F("tags") == "war") | ~(F("draft") != True) & F("lang").exists(), TYPES)  # noqa: E712
