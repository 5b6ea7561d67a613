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
    (folder / "qrels" / "test.tsv").write_bytes(b"header\n1\t\xff\t1\n")
    with pytest.raises(InvalidInputError, match=r"qrels: .*test.tsv cannot be read \(.*utf-8"):
        load_collection(folder)
