from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.terms import query_terms
from resrank.retrieval.local import lexical
from resrank.retrieval.local.lexical import LexicalIndex

Fill = Callable[[list[tuple[str, str]]], sqlite3.Connection]


@pytest.fixture
def fill() -> Iterator[Fill]:
    connection = sqlite3.connect(":memory:")
    lexical.register(connection)
    connection.executescript("CREATE TABLE records(key INTEGER PRIMARY KEY, title TEXT, text TEXT);" + lexical.SCHEMA)

    def fill_(documents: list[tuple[str, str]]) -> sqlite3.Connection:
        connection.executemany("INSERT INTO records(title, text) VALUES (?, ?)", documents)
        return connection

    yield fill_
    connection.close()


def search(connection: sqlite3.Connection, query: str, k: int = 10) -> list[tuple[int, float]]:
    (documents,) = connection.execute("SELECT count(*) FROM records").fetchone()
    keys, scores = LexicalIndex().search(connection, query, k, documents)
    return list(zip(keys.tolist(), scores.tolist(), strict=True))


def bm25(documents: list[str], query: list[str]) -> dict[int, float]:
    """BM25 from its definition: k1 = 1.2, b = 0.75; words are taken as they are."""
    words = [document.split() for document in documents]
    average = sum(map(len, words)) / len(words)
    scores: dict[int, float] = {}
    for term in query:
        containing = sum(term in document for document in words)
        idf = max(math.log((len(words) - containing + 0.5) / (containing + 0.5)), 1e-6) if containing else 0.0
        for key, document in enumerate(words, start=1):
            frequency = Counter(document)[term]
            if frequency:
                gain = frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * len(document) / average))
                scores[key] = scores.get(key, 0.0) + idf * gain
    return scores


def test_scores_are_bm25_over_title_and_text(fill: Fill) -> None:
    documents = [
        ("volcano", "lava lava ash"),
        ("ocean", "water salt fish whale"),
        ("island", "lava water palm"),
        ("desert", "sand"),
        ("forest", "tree moss fern owl fox"),
    ]
    expected = bm25([" ".join(document) for document in documents], ["lava", "whale"])
    found = search(fill(documents), "lava whale")
    assert dict(found) == pytest.approx(expected, rel=1e-5)
    assert [key for key, _ in found] == sorted(expected, key=lambda key: -expected[key])


def test_words_are_stemmed_and_folded(fill: Fill) -> None:
    connection = fill([("", "the horses were running"), ("", "a café in Zürich")])
    assert [key for key, _ in search(connection, "Run, horse!")] == [1]
    assert [key for key, _ in search(connection, "CAFE zurich")] == [2]


@pytest.mark.parametrize(
    "query",
    ['"', "NOT", "a AND", "title:x", "x*", "NEAR(a b)", "^a", "a OR", "(", "-", "{a b}:c", "'; DROP TABLE records; --"],
)
def test_query_language_is_plain_text(fill: Fill, query: str) -> None:
    connection = fill([("x", "and not near a or b c drop table records")])
    search(connection, query)
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)


@given(st.text(max_size=60))
def test_any_text_is_a_query(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    lexical.register(connection)
    try:
        connection.executescript(
            "CREATE TABLE records(key INTEGER PRIMARY KEY, title TEXT, text TEXT);" + lexical.SCHEMA
        )
        connection.execute("INSERT INTO records(title, text) VALUES ('', ?)", (text,))
        found = search(connection, text)
    finally:
        connection.close()
    # A document is found by its own words; unicode61 knows fewer scripts than Python, so ASCII is what must hold.
    if any(character.isascii() and character.isalnum() for character in text) and text.isascii():
        assert [key for key, _ in found] == [1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("首都", [1]),
        ("東京都", [1, 3]),
        ("京都", [3, 1]),
        ("山", [2]),
        ("富士山", [2]),
        ("日本の首都はどこですか", [1, 2]),
        ("ｶﾞﾗｽ", [4]),
        ("กรุงเทพ", [5]),
        ("Tokyo", [3]),
        ("北海", []),
    ],
)
def test_words_are_found_in_scripts_without_blanks(fill: Fill, query: str, found: list[int]) -> None:
    connection = fill(
        [
            ("日本", "東京は日本の首都である。東京都庁は新宿にある"),
            ("富士山", "日本で最も高い山"),
            ("", "Tokyoから京都へ行く"),
            ("", "ガラスの仮面"),
            ("", "กรุงเทพมหานครเป็นเมืองหลวง"),
        ]
    )
    assert [key for key, _ in search(connection, query)] == found


def test_a_document_can_be_removed_again_whatever_its_script(fill: Fill) -> None:
    connection = fill([("日本", "東京は首都"), ("", "首都")])
    connection.execute("DELETE FROM records WHERE key = 1")
    assert [key for key, _ in search(connection, "首都")] == [2]
    assert search(connection, "東京") == []
    connection.execute("INSERT INTO lexical(lexical, rank) VALUES ('integrity-check', 1)")


def test_all_matches_are_those_of_a_search_with_the_same_scores(fill: Fill) -> None:
    words = ["lava", "ash", "water", "salt", "lava water", "lava lava salt", "owl"]
    connection = fill([("", text) for text in words * 3])
    matches = LexicalIndex().matches(connection, "lava salt", len(words) * 3)
    ranked = search(connection, "lava salt", 100)
    assert matches.ranking.tolist() == [key for key, _ in ranked]
    assert matches.scores_of(matches.ranking).tolist() == [score for _, score in ranked]
    assert matches.scores_of(np.array([2, 1, 99])).tolist() == [0, dict(ranked)[1], 0]
    assert matches.best == pytest.approx(ranked[0][1])


def test_terms_are_distinct_words() -> None:
    assert query_terms("State-of-the-art, the ART") == ["state", "of", "the", "art"]
    assert query_terms("?! …") == []


def test_flood_terms_are_left_out_of_a_large_collection(fill: Fill) -> None:
    connection = fill([("", f"the number{row}") for row in range(1500)])
    assert search(connection, "the number7") == search(connection, "number7")
    assert [key for key, _ in search(connection, "number7")] == [8]
    assert len(search(connection, "the", k=10)) == 10, "a query of nothing but flood terms is answered"


def test_long_queries_are_searched_by_their_rarest_terms(fill: Fill) -> None:
    common = [f"common{number}" for number in range(lexical.MAX_TERMS)]
    connection = fill([("", " ".join(common))] * 3 + [("", "needle")])
    assert 4 in [key for key, _ in search(connection, " ".join([*common, "needle"]))]


def test_unknown_words_find_nothing(fill: Fill) -> None:
    assert search(fill([("a", "b")]), "zebra") == []
