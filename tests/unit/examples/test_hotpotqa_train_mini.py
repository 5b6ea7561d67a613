"""The sample training set: sound as it lies in the repository, apart from what is evaluated on, and made as it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resrank.core.corpus import read_passages
from resrank.training.exclusion import document_key, evaluation_questions, question_key
from resrank.training.lists import CandidateList, LabelKind
from resrank.training.listwise_file import ListwiseFile
from support.python_files import SCRIPTS, load_python_file

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "hotpotqa-train-mini"
SAMPLE = ROOT / "examples" / "hotpotqa-mini"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_python_file(SCRIPTS / "make_training_lists.py")


@pytest.fixture(scope="module")
def file() -> ListwiseFile:
    return ListwiseFile(FOLDER / "lists.jsonl.gz", "mini")


@pytest.fixture(scope="module")
def lists(file: ListwiseFile) -> list[CandidateList]:
    return list(file)


def test_every_list_has_ten_passages_two_of_them_relevant(file: ListwiseFile, lists: list[CandidateList]) -> None:
    assert len(lists) == 400
    assert (file.nothing_to_rank, file.repeated_passages) == (0, 0)
    for candidates in lists:
        assert (len(candidates), sum(candidates.labels), candidates.kind) == (10, 2, LabelKind.GRADES)
    assert [candidates.id for candidates in lists] == sorted({candidates.id for candidates in lists})
    assert len({question_key(candidates.query) for candidates in lists}) == 400


def test_the_position_in_a_list_says_nothing(lists: list[CandidateList]) -> None:
    relevant_at = [sum(candidates.labels[position] for candidates in lists) for position in range(10)]
    assert all(abs(count - 80) < 32 for count in relevant_at)  # standard deviation 8


def test_no_question_is_shared_with_the_sample_collection(lists: list[CandidateList]) -> None:
    evaluated = {question_key(question) for question in evaluation_questions(SAMPLE)}
    assert len(evaluated) == 200
    assert evaluated.isdisjoint(question_key(candidates.query) for candidates in lists)


def test_the_readme_tells_the_sizes(lists: list[CandidateList]) -> None:
    readme = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    passages = {passage for candidates in lists for passage in candidates.passages}
    documents = {document_key(passage.encoder_text) for passage in passages}
    sample = [document_key(passage.encoder_text) for passage in read_passages(SAMPLE / "corpus.jsonl.gz")]

    assert f"400 lists of 10 passages ({len(passages):,} different ones, 800 relevant)" in readme
    shared = sum(key in documents for key in sample)
    assert f"Of that collection's {len(sample):,} passages {shared} stand here as well" in readme


def record(number: int, *, gold: str = "ab", titles: str = "abc") -> dict[str, Any]:
    return {
        "_id": f"q{number}",
        "question": f" What is {number}? ",
        "context": [[f"{title}{number}", [f"{title} begins.", " It ends. "]] for title in titles],
        "supporting_facts": [[f"{title}{number}", 0] for title in gold],
        "answer": "not for training",
    }


def test_lists_are_made_of_questions_that_are_not_excluded_and_have_something_to_rank(script: ModuleType) -> None:
    records = [record(1), record(2), record(3, gold="abc"), record(4, titles="abca")]
    made = script.make_lists(records, ["what is 2"])

    assert [candidates["id"] for candidates in made] == ["q1", "q4"]
    assert made[0] == {
        "id": "q1",
        "query": "What is 1?",
        "passages": [
            {"title": "a1", "text": "a begins. It ends.", "label": 1},
            {"title": "b1", "text": "b begins. It ends.", "label": 1},
            {"title": "c1", "text": "c begins. It ends.", "label": 0},
        ],
    }
    assert [passage["title"] for passage in made[1]["passages"]] == ["a4", "b4", "c4"]
    assert script.make_lists([record(1)], [], joint=" ")[0]["passages"][0]["text"] == "a begins.  It ends."


def test_the_draw_depends_on_seed_and_ids_only(script: ModuleType) -> None:
    lists = script.make_lists([record(number) for number in range(100, 140)] + [record(7, titles="abcd")], [])
    drawn = script.draw(lists, count=10, passages=3)

    assert drawn == script.draw(lists[::-1], count=10, passages=3)
    assert [candidates["id"] for candidates in drawn] == sorted({candidates["id"] for candidates in drawn})
    assert drawn != script.draw(lists, count=10, passages=3, seed=8)
    assert [candidates["id"] for candidates in script.draw(lists, count=1, passages=4)] == ["q7"]


def test_what_is_written_is_what_training_reads_and_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    lists = script.make_lists([record(1), record(2)], [])
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        script.write_json_lines(tmp_path / name, lists)

    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    read = list(ListwiseFile(tmp_path / "one.jsonl.gz", "s"))
    assert [(candidates.id, candidates.labels) for candidates in read] == [("q1", (1, 1, 0)), ("q2", (1, 1, 0))]
    assert json.loads(json.dumps(lists))[0]["passages"][0]["text"] == read[0].passages[0].text
