"""Judged questions are read, or refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from resrank.core.collection import Collection, load_collection
from resrank.core.errors import InvalidInputError

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hotpotqa-mini"


def write(folder: Path, queries: list[dict[str, str]], qrels: str) -> Path:
    (folder / "qrels").mkdir()
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_the_sample_collection_is_read_whole() -> None:
    collection = load_collection(SAMPLE)

    assert len(collection.queries) == len(collection.qrels) == 200
    with gzip.open(SAMPLE / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        first = json.loads(file.readline())
    assert collection.queries[first["_id"]] == first["text"]


def test_only_questions_with_a_relevant_passage_are_taken(tmp_path: Path) -> None:
    queries = [{"_id": number, "text": f"Query {number}?"} for number in ("1", "2", "3")]

    assert load_collection(write(tmp_path, queries, "1\ta\t2\n1\tb\t0\n2\ta\t0\n")) == Collection(
        queries={"1": "Query 1?"}, qrels={"1": {"a": 2, "b": 0}}
    )


def test_judgements_from_elsewhere_take_the_place_of_the_splits(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"_id": "1", "text": "a"}, {"_id": "2", "text": "b"}], "1\ta\t1\n")
    elsewhere = tmp_path / "pooled.tsv"
    elsewhere.write_text("query-id\tcorpus-id\tscore\n2\tx\t3\n")

    assert load_collection(folder, qrels_file=elsewhere) == Collection(queries={"2": "b"}, qrels={"2": {"x": 3}})


@pytest.mark.parametrize(
    ("queries", "qrels", "complaint"),
    [
        ([{"_id": "1", "text": "x"}], "1\ta\n", r"test.tsv, line 2: not query-id, corpus-id, score"),
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n1\tb\tmuch\n", r"test.tsv, line 3"),
        (
            [{"_id": "1", "text": "x"}, {"_id": "2"}],
            "1\ta\t1\n",
            r"queries.jsonl:2: must have _id and text, both strings",
        ),
        ([{"_id": "1", "text": "\ud800"}], "1\ta\t1\n", r"queries.jsonl:1: is not valid Unicode: a lone surrogate"),
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n7\ta\t1\n", r"test.tsv judges '7', which is not in the queries"),
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n1\t\t1\n", r"test.tsv, line 3: an id is empty"),
        ([{"_id": "1", "text": "x"}], f"1\ta\t{2**31}\n", r"test.tsv, line 2: not query-id"),
        (
            [{"_id": "1", "text": "x"}],
            "1\ta\t1\n1\tb\t1\n1\ta\t0\n",
            r"test.tsv, line 4: judges 'a' for '1' 0, but line 2 says 1",
        ),
        (
            [{"_id": "1", "text": "x"}, {"_id": "2", "text": "y"}, {"_id": "1", "text": "z"}],
            "1\ta\t1\n",
            r"queries.jsonl:3: _id '1' stands in line 1 already, with another text",
        ),
        ([{"_id": "0", "text": "x"}, {"_id": "1", "text": " \t"}], "1\ta\t1\n", r"queries.jsonl:2: .* '1' is empty"),
        (
            [{"_id": "1", "text": "x" * 8193}],
            "1\ta\t1\n",
            r"queries.jsonl:1: the text of '1' is too long, in bytes \(limit 8192, got 8193\)",
        ),
        ([{"_id": "1", "text": "x"}], "", r"qrels: .*test.tsv judges no passage relevant"),
        ([{"_id": "1", "text": "x"}], "1\ta\t0\n1\tb\t-1\n", r"qrels: .*test.tsv judges no passage relevant"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, queries: list[dict[str, str]], qrels: str, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        load_collection(write(tmp_path, queries, qrels))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"qrels/test.tsv is missing"):
        load_collection(tmp_path)
    (write(tmp_path, [], "1\ta\t1\n") / "queries.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"neither queries.jsonl nor queries.jsonl.gz"):
        load_collection(tmp_path)


def test_queries_that_cannot_be_unpacked_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [], "1\ta\t1\n")
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(b"{}" * 100)[:-10])
    with pytest.raises(InvalidInputError, match=r"queries.jsonl.gz: cannot be read"):
        load_collection(folder)


def test_judgements_that_are_not_text_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"_id": "1", "text": "x"}], "1\ta\t1\n\n")
    assert load_collection(folder).qrels == {"1": {"a": 1}}
    (folder / "qrels" / "test.tsv").write_bytes(b"query-id\tcorpus-id\tscore\n1\t\xff\t1\n")
    with pytest.raises(InvalidInputError, match=r"qrels: .*test.tsv, line 2: is not valid UTF-8 \(byte 3 of the line"):
        load_collection(folder)


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", "qid\tpid\tlabel\n", "Query_ID\tdoc\trel\n", ""])
def test_a_header_is_passed_over_and_a_first_judgement_is_not(tmp_path: Path, header: str) -> None:
    folder = write(tmp_path, [{"_id": number, "text": "x"} for number in ("1", "2")], "")
    (folder / "qrels" / "test.tsv").write_text(f"{header}1\ta\t1\n2\tb\t1\n")

    assert load_collection(folder).qrels == {"1": {"a": 1}, "2": {"b": 1}}


@pytest.mark.parametrize("first", ["1\ta\tmuch", "1\ta\t1.5", "1\ta", "1 a 1", "1 0 a 1", "1\ta\t"])
def test_a_first_line_that_is_neither_is_named(tmp_path: Path, first: str) -> None:
    folder = write(tmp_path, [{"_id": "1", "text": "x"}], "")
    (folder / "qrels" / "test.tsv").write_text(f"{first}\n1\tb\t1\n")

    with pytest.raises(InvalidInputError, match=r"test.tsv, line 1: neither the header query-id, corpus-id, score nor"):
        load_collection(folder)


def test_what_is_said_twice_in_the_same_words_counts_once(tmp_path: Path) -> None:
    queries = [{"_id": "1", "text": "x"}, {"_id": "2", "text": "y"}, {"_id": "1", "text": "x"}]
    folder = write(tmp_path, queries, "1\ta\t1\n2\ta\t1\n1\ta\t1\n")

    assert load_collection(folder) == Collection(queries={"1": "x", "2": "y"}, qrels={"1": {"a": 1}, "2": {"a": 1}})


def test_a_question_that_nobody_judges_may_be_empty(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"_id": "1", "text": ""}, {"_id": "2", "text": "y"}], "2\ta\t1\n")

    assert load_collection(folder).queries == {"2": "y"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, [], "")
    (folder / "queries.jsonl").unlink()
    (folder / "qrels" / "test.tsv").unlink()
    files = {
        "queries.jsonl": '\ufeff{"_id": "1", "text": "x"}\n{"_id": "2", "text": "y"}\n',
        "qrels/test.tsv": "\ufeff1\ta\t1\r\n2\tb\t1\r\n",
    }
    for name, content in files.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (folder / name).write_bytes(content.encode())

    assert load_collection(folder) == Collection(queries={"1": "x", "2": "y"}, qrels={"1": {"a": 1}, "2": {"b": 1}})


def test_a_byte_order_mark_before_another_line_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"_id": "1", "text": "x"}], "1\ta\t1\n\ufeff1\tb\t1\n")
    with pytest.raises(InvalidInputError, match=r"test.tsv, line 3: begins with a byte order mark"):
        load_collection(folder)
