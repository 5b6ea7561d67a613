"""YAML is read as it is meant, and whatever else it is, it is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from resrank.core.config_file import parse_yaml, read_fields, validate
from resrank.core.errors import InvalidInputError


class Config(BaseModel):
    """A field of each kind."""

    model_config = ConfigDict(extra="forbid")
    name: str = ""
    count: int = 0
    rate: float = 0.0
    mix: dict[str, float] = {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("012", 12),
        ("-012", -12),
        ("0o12", 10),
        ("0x1F", 31),
        ("1_000", 1000),
        ("0", 0),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 10:00:00Z", "2026-01-01 10:00:00Z"),
        ("0b11", "0b11"),
        ("'012'", "012"),
        ("true", True),
        ("~", None),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: Any) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("key", ["2026-01-01", "012", "1", "no", "true", "null", "1.5"])
def test_keys_are_text_as_it_is_written(key: str) -> None:
    fields = parse_yaml(f"mix: {{{key}: 1}}", "here")
    assert fields == {"mix": {key: 1}}
    assert validate(Config, fields).mix == {key: 1.0}


def test_merged_keys_may_be_given_again() -> None:
    assert parse_yaml("a: &a {2026-01-01: 1, y: 2}\nb: {<<: *a, y: 3}", "here")["b"] == {"2026-01-01": 1, "y": 3}
    assert parse_yaml("b: {<<: {01: 1}, y: 3}", "here")["b"] == {"01": 1, "y": 3}


def test_an_alias_may_stand_where_it_likes() -> None:
    assert parse_yaml("a: &a [1]\nb: [*a, *a]", "here") == {"a": [1], "b": [[1], [1]]}


BILLION = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))

MERGED = (
    "x: {x: {x: [&a0 {b: 1, c: 2}, "
    + "".join(f"&a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}, " for n in range(1, 10))
    + "0]}}\ny: {<<: *a9}\n"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", "nested too deeply, or an alias stands inside itself (limit 64, got more)"),
        ("a: &a {b: *a}", "nested too deeply, or an alias stands inside itself"),
        ("[" * 5000 + "]" * 5000, "nested too deeply (limit 64, got more)"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        (BILLION, "too many values, with what aliases stand for (limit 100000, got more)"),
        (MERGED, "a section of too many fields"),
        ("9" * 5000, "not valid YAML: "),
        ("!!int many", "not valid YAML: "),
        ("!!bool perhaps", "not valid YAML: "),
        ("!!timestamp x", "not valid YAML, line 1, column 1: could not determine a constructor"),
        ("!!binary x", "could not determine a constructor"),
        ("!!set {a}", "could not determine a constructor"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
        ('"\\ud800"', "holds a NUL character or half of a surrogate pair"),
        ('path: "a\\0b"', "holds a NUL character or half of a surrogate pair"),
        ('{"a\\0b": 1}', "holds a NUL character or half of a surrogate pair"),
        ("? [a]\n: 1", "not valid YAML, line 1, column 3: found unhashable key"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: b: c", "not valid YAML, line 1"),
        ("\x00", "not valid YAML: "),
    ],
)
def test_what_is_none_is_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_yaml(text, "here")
    assert caught.value.field == "here"
    assert problem in str(caught.value)


@given(st.text(st.sampled_from("{}[]&*!|>%@`'\"#:,-? \n\tab01e.<~\\x"), max_size=40))
def test_any_text_is_fields_or_a_sentence(text: str) -> None:
    try:
        fields = parse_yaml(text, "here")
        if isinstance(fields, dict):
            validate(Config, fields)
    except InvalidInputError:
        pass


def test_a_byte_order_mark_before_the_first_key_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes("\ufeffname: x\n".encode())
    assert read_fields(file) == {"name": "x"}
