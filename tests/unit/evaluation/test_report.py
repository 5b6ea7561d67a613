"""What an evaluation writes can be read again, and says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resrank.core.corpus import Passage
from resrank.core.measures import evaluate, ranked
from resrank.core.run_files import read_candidates
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.evaluation import EvaluationSettings, Row, evaluate_checkpoint
from resrank.evaluation.report import CollectionReport
from resrank.evaluation.seen import split_by_seen
from support.scorers import FirstComponentScorer, question

QRELS = {"won": {"b": 1}, "same": {"c": 1, "d": 0}, "lost": {"a": 1}}
QUESTIONS = [
    question("won", a=0.9, b=0.8),
    question("same", c=0.7, d=0.2),
    question("lost", a=0.6, b=0.5),
]


class Flipping(FirstComponentScorer):
    """Turns every order around but that of one question."""

    def score(self, lists):  # type: ignore[no-untyped-def]
        for one, scores in zip(lists, super().score(lists), strict=True):
            yield -scores if one.query != "What is same?" else scores


@pytest.fixture
def report() -> CollectionReport:
    passages = {id_: Passage(1, id_, "", id_) for id_ in "abcd"}
    collection = JudgedCollection("toy", "test", {q.id: q.text for q in QUESTIONS}, QRELS, passages, frozenset("e"))
    settings = EvaluationSettings(depth=10, shuffles=2, sizes=(1, 2), measures=("RR", "nDCG@10"))
    evaluation = evaluate_checkpoint(QUESTIONS, QRELS, Flipping(), settings)
    seen = split_by_seen(evaluation, QRELS, passages, set())
    return CollectionReport(collection, "dense", evaluation, seen, ["a note"])


def test_largest_wins_and_losses(report: CollectionReport) -> None:
    wins, losses = report.changes()
    assert [(change.question, change.gain, change.text) for change in wins] == [("won", 0.5, "What is won?")]
    assert [(change.question, change.gain) for change in losses] == [("lost", -0.5)]


def test_the_summary_is_plain_json(report: CollectionReport) -> None:
    told = json.loads(json.dumps(report.as_json()))

    assert (told["collection"], told["split"], told["candidates"]) == ("toy", "test", "dense")
    assert (told["questions"], told["passages"], told["empty_passages"]) == (3, 4, 1)
    assert told["notes"] == ["a note"]
    assert told["rows"]["dense"] == {"RR": pytest.approx(2.5 / 3), "nDCG@10": pytest.approx((2 + 1 / 1.5849625) / 3)}
    assert told["differences"]["dense"]["reranked"]["wins"] == 1
    assert told["differences"]["candidates"].keys() == told["rows"].keys() - {"candidates"}
    assert told["seen"]["unseen_questions"]["means"].keys() == told["rows"].keys()
    assert [size["size"] for size in told["sizes"]] == [1, 2]
    assert len(told["order"]["means"]) == 2
    assert [block["blocks"] for block in told["blocks"]] == [1, 2, 4]


def test_the_files_say_the_same(report: CollectionReport, tmp_path: Path) -> None:
    report.write(tmp_path / "toy", {"command": "resrank eval toy"})
    (tmp_path / "toy" / "runs" / "reranked-shuffled-3.trec").write_text("of an evaluation with more shuffles")
    report.write(tmp_path / "toy", {"command": "resrank eval toy"})  # again, over what is there

    summary = json.loads((tmp_path / "toy" / "summary.json").read_text())
    assert summary == {"command": "resrank eval toy", **json.loads(json.dumps(report.as_json()))}
    lines = [json.loads(line) for line in (tmp_path / "toy" / "questions.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == ["won", "same", "lost"]
    assert lines[0]["rows"]["reranked"]["RR"] == 1
    assert [line["relevant"] for line in lines] == [1, 1, 1]
    runs = tmp_path / "toy" / "runs"
    expected = {row.value for row in report.evaluation.rows} - {Row.SHUFFLED.value}
    assert {path.stem for path in runs.iterdir()} == {*expected, "reranked-shuffled-1", "reranked-shuffled-2"}
    for row in expected:
        run = {q: ranked(ranking.ids) for q, ranking in read_candidates(runs / f"{row}.trec").items()}
        assert evaluate(QRELS, run, ("RR", "nDCG@10")) == pytest.approx(summary["rows"][row])
