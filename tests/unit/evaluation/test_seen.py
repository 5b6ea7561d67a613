"""The same rankings apart by what training has read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from resrank.core.corpus import Passage
from resrank.core.errors import InvalidInputError
from resrank.evaluation.evaluation import EvaluationSettings, Row, evaluate_checkpoint
from resrank.evaluation.seen import SeenSplit, seen_documents, split_by_seen
from resrank.training.exclusion import document_key
from support.scorers import FirstComponentScorer, question

PASSAGES = {id_: Passage(line, id_, f"Title {id_}", "Some text.") for line, id_ in enumerate("abcdefgh", start=1)}
QRELS = {
    "fresh": {"a": 1, "b": 0, "elsewhere": 2},
    "half": {"c": 1, "d": 1, "b": 0},
    "read": {"e": 1},
    "outside": {"elsewhere": 1},
}
QUESTIONS = [
    question("fresh", b=0.9, a=0.5),
    question("half", c=0.9, b=0.8, d=0.5),
    question("read", e=0.9, b=0.4),
    question("outside", f=0.3, b=0.2),
]


def split(*seen: str) -> SeenSplit:
    evaluation = evaluate_checkpoint(
        QUESTIONS, QRELS, FirstComponentScorer(), EvaluationSettings(depth=5, shuffles=2, sizes=(), measures=("RR",))
    )
    return split_by_seen(evaluation, QRELS, PASSAGES, {document_key(PASSAGES[id_].encoder_text) for id_ in seen})


def test_questions_and_answers_that_training_has_not_read_by_hand() -> None:
    found = split("c", "e", "b")

    assert found.seen_passages == 3
    # Only `fresh` has all of its relevant passages unseen; a passage outside of the corpus counts for nothing.
    assert found.unseen_questions.questions == 1
    assert found.unseen_questions.means[Row.DENSE] == pytest.approx(1 / 2)
    # `half` keeps d, which moves up to the second place when c is taken out; b stays, it is not relevant.
    assert found.residual.questions == 2
    assert found.residual.means == dict.fromkeys(
        (Row.CANDIDATES, Row.DENSE, Row.ROCCHIO, Row.RERANKED, Row.SHUFFLED), pytest.approx((1 / 2 + 1 / 2) / 2)
    )
    assert found.residual.differences[Row.RERANKED].ties == 2
    assert Row.DENSE not in found.residual.differences


def test_when_everything_was_read_nothing_is_left() -> None:
    found = split("a", "c", "d", "e")
    assert found.unseen_questions.questions == 0
    assert found.residual.questions == 0
    assert found.residual.means == {}


def test_when_nothing_was_read_all_questions_with_an_answer_count() -> None:
    found = split()
    assert found.unseen_questions.questions == found.residual.questions == 3
    assert found.unseen_questions.means == found.residual.means


def test_training_data_of_both_kinds_are_read(tmp_path: Path) -> None:
    passages = [{"title": "Lava", "text": "is hot.", "label": 1}, {"text": "Ice is cold!", "label": 0}]
    lists = tmp_path / "lists.jsonl.gz"
    lists.write_bytes(gzip.compress(json.dumps({"id": "1", "query": "hot?", "passages": passages}).encode()))
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "1", "title": "A", "text": "judged"},
        {"_id": "2", "text": "not judged"},
        {"_id": "3", "text": ""},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which?"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")

    found = seen_documents([lists, folder])

    # Spelling does not matter.
    assert found == {document_key("LAVA  is hot"), document_key("ice is cold"), document_key("A judged")}
    with pytest.raises(InvalidInputError, match=r"absent.*(No such file|cannot be read)"):
        seen_documents([tmp_path / "absent.jsonl"])
