"""Foreign texts can be read on a terminal and do nothing to it."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from resrank.core.terminal import FullWidth, Terminal, print_json, visible

HOSTILE = "red \x1b[31m\x1b]0;title\x07 \x9b2J \r\b\x00 \u202eright to left\u2028"
SHOWN = r"red \x1b[31m\x1b]0;title\x07 \x9b2J \r\x08\x00 \u202eright to left\u2028"


def test_control_characters_are_written_out_and_nothing_else_is() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\nb\tc") == r"a\nb\tc"
    assert visible("a\nb\tc", lines=True) == "a\nb\tc"
    for text in ("北京 — naïve", "नि\u200dन", "👩\u200d🚀", "שלום", ""):
        assert visible(text) == text


@given(st.text())
def test_whatever_is_shown_can_be_encoded_and_printed(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


@pytest.mark.parametrize("colour", [False, True])
def test_no_renderable_sends_what_its_texts_hold(colour: bool) -> None:
    table = Table("column", HOSTILE.replace("[", r"\["), title="title \x1b[2J")
    table.add_row(HOSTILE.replace("[", r"\["), Text(HOSTILE, style="red"))
    written = io.StringIO()
    console = Terminal(file=written, width=200, force_terminal=colour, color_system="standard" if colour else None)
    console.print(table)
    console.print(HOSTILE, style="bold", markup=False, soft_wrap=True)

    said = written.getvalue()
    for part in ("\x1b[2J", "\x1b]0", "\x9b", "\u202e", "\u2028", "\x07", "\r"):
        assert part not in said
    assert ("\x1b[31m" in said) == colour  # the table's own style, and no text's
    assert r"\x9b2J" in said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_the_same_value_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    value: dict[str, Any] = {"北京": [HOSTILE, "naïve", 1.5, None]}
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))

    print_json(value)

    sys.stdout.flush()
    said = raw.getvalue().decode(encoding)
    assert json.loads(said) == value
    assert ("北京" in said) == (encoding == "utf-8")
    assert not any(character in said for character in "\x1b\x9b\u202e\u2028")


def test_a_table_of_figures_is_whole_on_a_narrow_terminal() -> None:
    table = Table("collection", "nDCG@10", "R@100", box=None)
    table.add_row("reranked + lexical", "0.1234", "0.9876")
    written = io.StringIO()
    Terminal(file=written, width=12).print(FullWidth(table), crop=False)
    assert [line.split() for line in written.getvalue().splitlines()] == [
        ["collection", "nDCG@10", "R@100"],
        ["reranked", "+", "lexical", "0.1234", "0.9876"],
    ]
