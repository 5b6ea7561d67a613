from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.core.filter_text import filter_text, parse_filter
from resrank.core.filters import AllOf, AnyOf, Comparison, Extent, F, Filter, Not, Operator, matches
from support.metadata_strategies import filters, metadata


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year >= 2020 and lang in (en, de)", (F("year") >= 2020) & F("lang").is_in("en", "de")),
        ("a=1 or b==2 and c!=3", AnyOf((F("a") == 1, AllOf((F("b") == 2, F("c") != 3))))),
        ("(a=1 or b=2) and c=3", AllOf((AnyOf((F("a") == 1, F("b") == 2)), F("c") == 3))),
        ("not a exists and b exists", AllOf((Not(F("a").exists()), F("b").exists()))),
        ("NOT (a EXISTS OR b Exists)", Not(AnyOf((F("a").exists(), F("b").exists())))),
        ("not not a<-1.5e3", Not(Not(F("a") < -1500))),
        ("lang not in ( 'en' )", Not(F("lang").is_in("en"))),
        ("a < 1 and a<=2 and a>3 and a>=.5", (F("a") < 1) & (F("a") <= 2) & (F("a") > 3) & (F("a") >= 0.5)),
        ("a = true and b = FALSE and c = 'true'", (F("a") == True) & (F("b") == False) & (F("c") == "true")),  # noqa: E712
        ("a = '2020' and b = 2020-01-31 and c = +7", (F("a") == "2020") & (F("b") == "2020-01-31") & (F("c") == 7)),
        ("url = http://x.y/z?a&b|c", F("url") == "http://x.y/z?a&b|c"),
        (r'"a name" = "say \"hi\"\n\u00e9"', F("a name") == 'say "hi"\né'),
        (r"""'in' = 'it\'s "so" \\'""", F("in") == 'it\'s "so" \\'),
        ("größe = groß", F("größe") == "groß"),
        ("a = ''", F("a") == ""),
        ("  a\n=\t1  ", F("a") == 1),
    ],
)
def test_text_is_read(text: str, expected: Filter) -> None:
    assert parse_filter(text) == expected
    assert parse_filter(filter_text(expected)) == expected


def test_a_filter_is_written_as_one_would() -> None:
    condition = (F("year") >= 2020) & F("lang").is_in("en", "de") & ~(F("draft") == True)  # noqa: E712
    assert filter_text(condition) == 'year >= 2020 and lang in ("en", "de") and not draft = true'


@given(filters)
def test_what_is_written_is_read_as_the_same(condition: Filter) -> None:
    assert parse_filter(filter_text(condition)) == condition


@given(st.text(min_size=1, max_size=8), st.text(max_size=8))
def test_any_name_and_string_can_be_written(name: str, value: str) -> None:
    condition = Comparison(name, Operator.EQ, (value,))
    assert parse_filter(filter_text(condition)) == condition


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_an_error_of_the_filter(text: str) -> None:
    with suppress(InvalidInputError):
        assert isinstance(parse_filter(text).extent, Extent)


@given(filters, metadata)
def test_one_condition_alone_may_be_joined(condition: Filter, record: dict[str, object]) -> None:
    alone = AllOf((AnyOf((condition,)),))
    assert matches(parse_filter(filter_text(alone)), record) is matches(condition, record)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty or only whitespace"),
        ("year", "column 5: expected =, !=, <, <=, >, >=, in, not in or exists, found the end"),
        ("year >= ", "column 9: expected a value, found the end"),
        ("year >= and", "column 9: expected a value, in quotes where it is such a word, found and"),
        ("year => 2020", "column 7: expected a value, found >"),
        ("year ~ 2020", "column 6: expected =, !=, <, <=, >, >=, in, not in or exists, found ~"),
        ("year = 2020 lang = en", "column 13: expected and, or or the end, found lang"),
        ("year = 2020 & lang = en", "column 13: expected and, or or the end, found &"),
        ("(year = 2020", "column 13: expected and, or or ), found the end"),
        ("year = 2020)", "column 12: expected and, or or the end, found )"),
        ("lang in en", "column 9: expected ( and a list of values, found en"),
        ("lang in (en de)", "column 13: expected , or ), found de"),
        ("lang in ()", "column 10: expected a value, found )"),
        ("lang not (en)", "column 10: expected in, found ("),
        ("and = 3", "column 1: expected a field, not or (, found and"),
        ("lang = 'en", "column 8: a string without an end"),
        ("lang ! en", "column 6: unexpected '!'"),
        (r'lang = "\q"', "column 8: a string with an escape that JSON does not have"),
        ('lang = "\\ud800"', "a name or string is not valid Unicode"),
        ("year = 1e999", "column 8: a number too large (limit ±1.8e+308, got 1e999)"),
        ("year = " + "9" * 5000, "column 8: a number too large (limit ±1.8e+308, got 99999"),
        ("year = 9007199254740993", "put it in quotes (limit ±9007199254740992, got 9007199254740993)"),
        ("id = " + "x" * 50 + " y", "column 57: expected and, or or the end, found y"),
        ("not " * 10_000 + "a exists", "column 129: nested too deeply, in times of not and ( (limit 32, got 33)"),
        ("(" * 10_000, "column 33: nested too deeply"),
        (" or ".join(["a exists"] * 10_000), "too many conditions (limit 256, got 257 or more)"),
        ("a in (" + ", ".join(map(str, range(100_000))) + ")", "too many values (limit 1000, got 1001 or more)"),
        ("a = '" + "x" * 1024 * 1024 + "'", "too long, in bytes (limit 1048576, got 1048582)"),
    ],
)
def test_a_mistake_is_told_with_its_column(text: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_filter(text)
    assert str(caught.value).startswith("filter: ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200
