"""Measures agree with hand-worked examples, and collections are read or refused by name."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from resrank.errors import InvalidInputError
from resrank_stack.evaluation import Collection, evaluate, load_collection, ranked

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hotpotqa-mini"


def write(folder: Path, queries: list[dict[str, str]], qrels: str) -> Path:
    (folder / "qrels").mkdir()
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_ndcg_recall_and_reciprocal_rank_by_hand() -> None:
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    run = {"q1": ranked(["x", "a", "y", "b"]), "q2": ranked(["c"])}

    found = evaluate(qrels, run, ("nDCG@10", "R@10", "R@2", "RR@10"))

    ideal = 1 + 1 / math.log2(3)
    first = (1 / math.log2(3) + 1 / math.log2(5)) / ideal
    assert found == pytest.approx({"nDCG@10": (first + 1) / 2, "R@10": 1, "R@2": 0.75, "RR@10": 0.75})
    assert list(found) == ["nDCG@10", "R@10", "R@2", "RR@10"]


def test_unanswered_questions_count_as_zero() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}}

    assert evaluate(qrels, {"q1": ranked(["a"]), "q2": {}}, ("nDCG@10",)) == {"nDCG@10": pytest.approx(0.25)}


def test_ranks_decide_where_scores_would_tie() -> None:
    qrels = {"q": {"b": 1}}

    assert evaluate(qrels, {"q": ranked(["b", "a", "c"])}, ("RR@10",)) == {"RR@10": 1}
    assert evaluate(qrels, {"q": ranked(["c", "a", "b"])}, ("RR@10",)) == {"RR@10": pytest.approx(1 / 3)}


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"measures: .*Niceness"):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, ("Niceness@10",))


def test_the_sample_collection_is_read_whole() -> None:
    collection = load_collection(SAMPLE)

    assert len(collection.queries) == len(collection.qrels) == 200
    with gzip.open(SAMPLE / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        first = json.loads(file.readline())
    assert collection.queries[first["_id"]] == first["text"]
    perfect = {query: ranked(sorted(judged)) for query, judged in collection.qrels.items()}
    assert evaluate(collection.qrels, perfect) == pytest.approx({"nDCG@10": 1, "R@10": 1, "R@100": 1, "RR@10": 1})


def test_only_questions_with_a_relevant_passage_are_taken(tmp_path: Path) -> None:
    queries = [{"_id": number, "text": f"Query {number}?"} for number in ("1", "2", "3")]

    assert load_collection(write(tmp_path, queries, "1\ta\t2\n1\tb\t0\n2\ta\t0\n")) == Collection(
        queries={"1": "Query 1?"}, qrels={"1": {"a": 2, "b": 0}}
    )


@pytest.mark.parametrize(
    ("queries", "qrels", "complaint"),
    [
        ([{"_id": "1", "text": "x"}], "1\ta\n", r"test.tsv, line 2: not query-id, corpus-id, score"),
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n1\tb\tmuch\n", r"test.tsv, line 3"),
        ([{"_id": "1", "text": "x"}, {"_id": "2"}], "1\ta\t1\n", r"queries.jsonl, line 2: not a record"),
        ([{"_id": "1", "text": "x"}], "1\ta\t1\n7\ta\t1\n", r"judges '7', which is not in queries.jsonl"),
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
    with pytest.raises(InvalidInputError, match=r"queries.jsonl.gz cannot be read"):
        load_collection(folder)
