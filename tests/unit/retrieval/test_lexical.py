from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import RetrievalError
from resrank.core.terms import match_expression, query_terms
from resrank.retrieval.local import lexical, postings
from resrank.retrieval.local.lexical import LexicalIndex
from resrank.retrieval.local.postings import KeptPostings, Lengths, open_occurrences
from resrank.retrieval.matches import MAX_TERMS, LexicalMatches

Fill = Callable[[list[tuple[str, str]]], sqlite3.Connection]


def make_index(connection: sqlite3.Connection) -> None:
    lexical.register(connection)
    connection.executescript("CREATE TABLE records(key INTEGER PRIMARY KEY, title TEXT, text TEXT);" + lexical.SCHEMA)
    open_occurrences(connection)


@pytest.fixture
def fill() -> Iterator[Fill]:
    connection = sqlite3.connect(":memory:")
    make_index(connection)

    def fill_(documents: list[tuple[str, str]]) -> sqlite3.Connection:
        connection.executemany("INSERT INTO records(title, text) VALUES (?, ?)", documents)
        return connection

    yield fill_
    connection.close()


def search(connection: sqlite3.Connection, query: str, k: int = 10) -> list[tuple[int, float]]:
    matches = LexicalIndex().matches(connection, query)
    keys = matches.first(k)
    return list(zip(keys.tolist(), matches.scores_of(keys).tolist(), strict=True))


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
    try:
        make_index(connection)
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


WORDS = ["lava", "lavas", "ash", "water", "salt", "running", "run", "owl", "東京都", "北", "café"]
DOCUMENT = st.tuples(*[st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)] * 2)


def fts5_scores(connection: sqlite3.Connection, query: str) -> dict[int, float]:
    """BM25 as SQLite computes it for the whole query."""
    expression = " OR ".join(map(match_expression, query_terms(query)))
    return dict(connection.execute("SELECT rowid, -bm25(lexical) FROM lexical WHERE lexical MATCH ?", (expression,)))


@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=12),
    later=st.lists(DOCUMENT, max_size=4),
    removed=st.sets(st.integers(1, 12)),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5, unique=True).map(" ".join),
)
def test_scores_are_those_of_fts5_whatever_was_written_before(
    documents: list[tuple[str, str]], later: list[tuple[str, str]], removed: set[int], query: str
) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        make_index(connection)
        index = LexicalIndex()
        for batch, gone in ((documents, set()), (later, removed)):
            connection.executemany("INSERT INTO records(title, text) VALUES (?, ?)", batch)
            present = {key for key in gone if connection.execute("DELETE FROM records WHERE key = ?", (key,)).rowcount}
            index.follow(np.array(sorted(present), np.int64))
            for _ in range(2):  # the second time from memory
                matches = index.matches(connection, query)
                found = dict(zip(matches.keys.tolist(), matches.scores.tolist(), strict=True))
                assert found == pytest.approx(fts5_scores(connection, query), rel=1e-12)
    finally:
        connection.close()


def test_removals_that_no_search_follows_are_not_hoarded(fill: Fill) -> None:
    connection = fill([("", f"lava number{number}") for number in range(3 * lexical._REMOVALS_AT_ONCE)])
    index = LexicalIndex()
    index.matches(connection, "lava")
    for key in range(1, 2 * lexical._REMOVALS_AT_ONCE + 3):
        connection.execute("DELETE FROM records WHERE key = ?", (key,))
        index.follow(np.array([key]))
        assert len(index._removed) <= lexical._REMOVALS_AT_ONCE
    assert index.matches(connection, "lava").keys.tolist() == list(range(2003, 3001))


def test_what_is_kept_in_memory_is_bounded(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "LEAST_BYTES", 0)
    monkeypatch.setattr(postings, "BYTES_A_DOCUMENT", 700)  # of two documents, two terms with what holds them
    connection = fill([("", "lava ash water"), ("", "ash water lava lava")])
    kept = KeptPostings(Lengths.none().with_later(connection))
    for words in (["lava", "ash", "water"], ["water", "lava"], ["ash"]):
        expected = fts5_scores(connection, " ".join(words))
        assert dict(enumerate(kept.scores(connection, words).tolist(), start=1)) == pytest.approx(expected, rel=1e-12)
        assert 0 < kept.bytes <= 1400


def test_spellings_of_one_word_are_kept_once(fill: Fill) -> None:
    connection = fill([("", "lava ash"), ("", "water")])
    kept = KeptPostings(Lengths.none().with_later(connection))
    expected = kept.scores(connection, ["lava"]).tolist()
    taken = kept.bytes
    for word in ("lavas", "láva", "lava" + 60 * "\u0301", "lava" + 4000 * "\u0301"):
        assert kept.scores(connection, [word]).tolist() == expected
        assert kept.bytes == taken


@pytest.mark.parametrize("length", [None, "2", b"", b"\x02", b"\x00\x02\x02", b"\x00\x82"])
def test_a_length_that_is_none_is_damage(fill: Fill, length: object) -> None:
    connection = fill([("", "lava ash"), ("", "lava")])
    connection.execute("UPDATE lexical_docsize SET sz = ? WHERE id = 1", (length,))
    with pytest.raises(RetrievalError, match="the index of words"):
        LexicalIndex().load(connection)


def test_a_word_of_a_document_that_is_not_there_is_damage(fill: Fill) -> None:
    connection = fill([("", "lava ash"), ("", "lava"), ("", "owl")])
    connection.execute("DELETE FROM lexical_docsize WHERE id = 2")
    with pytest.raises(RetrievalError, match="the index of words"):
        search(connection, "lava")
    assert [key for key, _ in search(connection, "owl")] == [3]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=9), st.integers(1, 10))
def test_the_first_matches_are_those_of_a_whole_sort(scores: list[float], k: int) -> None:
    matches = LexicalMatches(np.arange(len(scores)) * 3, np.array(scores))
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert matches.first(k).tolist() == [3 * place for place in expected]


def test_terms_are_distinct_words() -> None:
    assert query_terms("State-of-the-art, the ART") == ["State", "of", "the", "art"]
    assert query_terms("?! …") == []


def test_capitals_of_scripts_that_got_small_letters_later_are_found(fill: Fill) -> None:
    connection = fill([("", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"), ("", "Straße")])
    assert [[key for key, _ in search(connection, text)] for text in ("ᏣᎳᎩ", "STRAßE", "straße")] == [[1], [2], [2]]


def test_a_word_with_more_occurrences_than_a_text_can_list_is_read_in_parts(fill: Fill) -> None:
    connection = fill([("", f"{'walrus ' * (row % 7 + 1)} other{row}") for row in range(400)])
    expected = search(connection, "walrus", 400)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    assert search(connection, "walrus", 400) == expected


def test_flood_terms_are_left_out_of_a_large_collection(fill: Fill) -> None:
    connection = fill([("", f"the number{row}") for row in range(1500)])
    assert search(connection, "the number7") == search(connection, "number7")
    assert [key for key, _ in search(connection, "number7")] == [8]
    assert len(search(connection, "the", k=10)) == 10, "a query of nothing but flood terms is answered"


def test_long_queries_are_searched_by_their_rarest_terms(fill: Fill) -> None:
    common = [f"common{number}" for number in range(MAX_TERMS)]
    connection = fill([("", " ".join(common))] * 3 + [("", "needle")])
    assert 4 in [key for key, _ in search(connection, " ".join([*common, "needle"]))]


def test_unknown_words_find_nothing(fill: Fill) -> None:
    assert search(fill([("a", "b")]), "zebra") == []
