"""Collections are read whole, as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resrank.core.corpus import CorpusError
from resrank.core.errors import InvalidInputError
from resrank.evaluation.collection import JudgedCollection

CORPUS = [
    {"_id": "a", "title": "A", "text": "first"},
    {"_id": "empty", "title": "", "text": ""},
    {"_id": "b", "text": "second"},
    {"_id": "a", "title": "A", "text": "first"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy" / "qrels").mkdir(parents=True)
    write(tmp_path / "toy", CORPUS)
    queries = [{"_id": str(number), "text": f"Question {number}?"} for number in range(5)]
    (tmp_path / "toy" / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    judged = ("3\ta\t1", "1\tempty\t2", "4\tb\t1", "0\ta\t0")
    (tmp_path / "toy" / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return tmp_path / "toy"


def write(folder: Path, corpus: list[dict[str, str]]) -> None:
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))


def test_questions_in_the_files_order_and_passages_once(folder: Path) -> None:
    found = JudgedCollection.load(folder, "test")

    assert (found.name, found.split) == ("toy", "test")
    assert list(found.queries) == ["1", "3", "4"]  # 0 has no relevant passage, 2 is not judged
    assert found.qrels["1"] == {"empty": 2}
    assert list(found.passages) == ["a", "b"]
    assert found.empty == {"empty"}


def test_the_first_questions(folder: Path) -> None:
    found = JudgedCollection.load(folder, "test", questions=2)
    assert list(found.queries) == list(found.qrels) == ["1", "3"]


def test_more_questions_than_there_are_is_all(folder: Path) -> None:
    assert len(JudgedCollection.load(folder, "test", questions=10**30).queries) == 3


def test_judgements_from_elsewhere(folder: Path) -> None:
    (folder.parent / "pooled.tsv").write_text("query-id\tcorpus-id\tscore\n2\tb\t3\n")
    found = JudgedCollection.load(folder, "test", qrels_file=folder.parent / "pooled.tsv")
    assert (found.split, dict(found.qrels)) == ("pooled", {"2": {"b": 3}})


def test_what_is_wrong_is_named(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"qrels/dev.tsv is missing"):
        JudgedCollection.load(folder, "dev")
    write(folder, [*CORPUS, {"_id": "b", "text": "other"}])
    with pytest.raises(CorpusError, match=r":5: _id 'b' stands in line 3 already, with other content"):
        JudgedCollection.load(folder, "test")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"neither corpus.jsonl nor corpus.jsonl.gz"):
        JudgedCollection.load(folder, "test")


def test_a_question_is_a_passage_itself_by_its_id_and_its_words(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    corpus = [
        {"_id": "text", "title": "Tram", "text": "The yellow tram."},
        {"_id": "title", "title": "What is BERT?", "text": "A model."},
        {"_id": "both", "title": "Salt", "text": "lake"},
        {"_id": "number", "title": "Other", "text": "Something else."},
        {"_id": "judged", "title": "", "text": "An answer to itself."},
    ]
    queries = {
        "text": "the yellow  tram",
        "title": "What is BERT",
        "both": "Salt lake",
        "number": "a question",
        "judged": "An answer to itself.",
        "none": "The yellow tram.",
    }
    write(tmp_path, corpus)
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in queries.items())
    )
    judged = "".join(f"{id_}\tnumber\t1\n" for id_ in queries) + "judged\tjudged\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text(judged)

    assert JudgedCollection.load(tmp_path, "test").own_passages == {"text", "title", "both"}
