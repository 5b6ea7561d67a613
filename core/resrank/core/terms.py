"""What lexical search looks for: the words of a query."""

from __future__ import annotations

import unicodedata

_CATEGORIES = ("L", "N", "M", "Co")


def query_terms(text: str) -> list[str]:
    """Splits a query into distinct terms where the tokenizer would split it.

    Letters, digits, marks and private-use characters make terms, as in unicode61; everything else separates, which
    also removes every character that means something in FTS5's query language.

    Args:
        text: Any text.

    Returns:
        Lower-cased terms in order of appearance; empty when the text has no word at all.
    """
    spaced = "".join(
        character if unicodedata.category(character).startswith(_CATEGORIES) else " " for character in text.lower()
    )
    return list(dict.fromkeys(spaced.split()))
