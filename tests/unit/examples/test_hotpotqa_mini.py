"""The sample collection: sound as it lies in the repository, and the same bytes whenever it is made."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.python_files import SCRIPTS, load_python_file

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "hotpotqa-mini"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_python_file(SCRIPTS / "make_hotpotqa_mini.py")


def records(name: str) -> list[dict[str, str]]:
    with gzip.open(FOLDER / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def qrels() -> list[dict[str, str]]:
    with (FOLDER / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_passages_and_questions_are_complete_and_unique() -> None:
    corpus, queries = records("corpus.jsonl.gz"), records("queries.jsonl.gz")

    assert len(queries) == 200
    assert 1_900 <= len(corpus) <= 2_100
    for items, fields in ((corpus, ("_id", "title", "text")), (queries, ("_id", "text"))):
        assert all(tuple(item) == fields and all(value.strip() for value in item.values()) for item in items)
        assert len({item["_id"] for item in items}) == len(items)
    assert len({item["title"] for item in corpus}) == len(corpus)
    assert len({item["text"] for item in queries}) == len(queries)


def test_every_question_has_its_two_gold_passages_in_the_corpus() -> None:
    rows = qrels()

    assert {row["corpus-id"] for row in rows} <= {item["_id"] for item in records("corpus.jsonl.gz")}
    per_question = Counter(row["query-id"] for row in rows)
    assert per_question == dict.fromkeys((item["_id"] for item in records("queries.jsonl.gz")), 2)
    assert {row["score"] for row in rows} == {"1"}
    assert len({(row["query-id"], row["corpus-id"]) for row in rows}) == len(rows)


def test_the_readme_tells_the_sizes() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")

    for size, noun in (
        (len(records("corpus.jsonl.gz")), "passages"),
        (len(records("queries.jsonl.gz")), "questions"),
        (len(qrels()), "judgements"),
    ):
        assert f"| {size:,} {noun}:" in readme


def source(number: int) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Questions that share a distractor, each with two gold passages and one more distractor of its own."""
    questions = [
        {
            "_id": f"q{index}",
            "question": f"Question {index}? ",
            "context": [[f"Title {index}{part}", []] for part in "abc"] + [["Shared", []]],
            "supporting_facts": [[f"Title {index}a", 0], [f"Title {index}b", 0], [f"Title {index}a", 2]],
        }
        for index in range(number)
    ]
    titles = ["Shared", "Never used", *(f"Title {index}{part}" for index in range(number) for part in "abc")]
    return questions, {title: [f"{title} begins.", " It ends."] for title in titles}


def test_selection_takes_gold_and_distractors_of_the_drawn_questions_only(script: ModuleType) -> None:
    questions, passages = source(10)
    made = script.select(questions + questions, passages, count=3)  # some records come twice

    drawn = [query["_id"].removeprefix("q") for query in made.queries]
    assert len(set(drawn)) == 3
    titles = {record["title"] for record in made.corpus}
    assert titles == {"Shared"} | {f"Title {index}{part}" for index in drawn for part in "abc"}
    by_id = {record["_id"]: record for record in made.corpus}
    assert len(by_id) == len(made.corpus)
    assert [(query, by_id[passage]["title"]) for query, passage, _ in made.qrels] == [
        (f"q{index}", f"Title {index}{part}") for index in drawn for part in "ab"
    ]
    assert by_id["p0001"] == {"_id": "p0001", "title": "Shared", "text": "Shared begins. It ends."}
    assert made.queries[0]["text"] == f"Question {drawn[0]}?"


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_the_source(
    script: ModuleType, tmp_path: Path
) -> None:
    questions, passages = source(40)
    script.write(script.select(questions, passages, count=10), tmp_path / "one")
    script.write(script.select(questions[::-1], dict(reversed(passages.items())), count=10), tmp_path / "two")

    for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels/test.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert script.select(questions, passages, count=10) != script.select(questions, passages, count=10, seed=8)
