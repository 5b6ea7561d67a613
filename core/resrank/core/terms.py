"""Words as the lexical index has them: split at blanks, and into pairs of letters where a script writes none.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no blanks between words, so that a whole sentence would be one
word. Of a run of such letters every two neighbours are a term, and the last letter by itself: then every letter begins
a term, and one letter alone is found as the beginning of a pair. Marks of the south-east Asian scripts, which FTS5's
unicode61 takes for separators, are left out on both sides.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_TERM_CATEGORIES = ("L", "N", "M", "Co")

_CHINESE_JAPANESE = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0002fa1f"
)
_SOUTH_EAST_ASIAN = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
_RUN = re.compile(f"[{_CHINESE_JAPANESE}{_SOUTH_EAST_ASIAN}]+")


def index_text(text: str) -> str:
    """A text as it is given to FTS5: as it is, but runs without blanks become their terms, with blanks between."""
    return _RUN.sub(lambda run: f" {' '.join(_run_terms(run[0], last=True))} ", text)


def query_terms(text: str) -> list[str]:
    """Splits a query into distinct terms where the index splits its texts.

    Letters, digits, marks and private-use characters make terms, as in unicode61; everything else separates, which
    also removes every character that means something in FTS5's query language.

    Args:
        text: Any text.

    Returns:
        Terms in order of appearance, as they are written, each once whatever its capitals; empty when the text has no
        word at all.
    """
    paired = _RUN.sub(lambda run: f" {' '.join(_run_terms(run[0], last=False))} ", text)
    spaced = "".join(
        character if unicodedata.category(character).startswith(_TERM_CATEGORIES) else " " for character in paired
    )
    # FTS5 lowers capitals itself, where it indexes and where it searches, and does not know all that Python knows.
    distinct: dict[str, str] = {}
    for term in spaced.split():
        distinct.setdefault(term.lower(), term)
    return list(distinct.values())


def match_expression(term: str) -> str:
    """One of :func:`query_terms` in FTS5's query language."""
    return f'"{term}"*' if len(term) == 1 and _RUN.fullmatch(term) else f'"{term}"'


def _run_terms(run: str, *, last: bool) -> list[str]:
    # NFKC: half-width katakana, compatibility ideographs and marks that stand apart become what they are elsewhere.
    letters = [letter for letter in unicodedata.normalize("NFKC", run) if unicodedata.category(letter)[0] in "LN"]
    pairs = [first + second for first, second in pairwise(letters)]
    return pairs + letters[-1:] if last or not pairs else pairs
