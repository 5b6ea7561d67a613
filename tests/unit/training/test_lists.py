"""Lists are read as they are, and a bad line is named by file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from resrank.stack.cli.exit_codes import ExitCode, exit_code
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.listwise_file import ListwiseFile, ListwiseFileError

GOOD: dict[str, Any] = {
    "id": "q1",
    "query": "Is lava hot?",
    "passages": [
        {"title": "Lava", "text": "is hot", "label": 2},
        {"text": "Ice is cold.", "label": 0, "rank": 7},
        {"title": "Magma", "text": "", "label": 1.0},
    ],
    "origin": "ignored",
}
SCORED = {**GOOD, "id": "q2", "passages": [{"text": "a", "score": -1.5}, {"text": "b", "score": 3}]}


def write(path: Path, *lines: object) -> Path:
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def with_passages(*passages: object, **fields: object) -> dict[str, Any]:
    return {**GOOD, "id": "other", "passages": list(passages), **fields}


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.jsonl.gz"])
def test_graded_lists_are_read(tmp_path: Path, name: str) -> None:
    second = {**GOOD, "id": "q2"}
    lists = list(ListwiseFile(write(tmp_path / name, GOOD, b"", second), "wiki"))

    assert [candidates.id for candidates in lists] == ["q1", "q2"]
    assert lists[0] == CandidateList(
        id="q1",
        query="Is lava hot?",
        passages=(TrainingPassage("Lava", "is hot"), TrainingPassage("", "Ice is cold."), TrainingPassage("Magma", "")),
        labels=(2.0, 0.0, 1.0),
        kind=LabelKind.GRADES,
        source="wiki",
    )
    assert [passage.encoder_text for passage in lists[0].passages] == ["Lava is hot", "Ice is cold.", "Magma"]
    assert lists[0].relevant == (True, False, True)
    assert len(lists[0]) == 3


def test_of_a_teachers_scores_the_best_is_relevant(tmp_path: Path) -> None:
    (scored,) = ListwiseFile(write(tmp_path / "lists.jsonl", SCORED), "teacher")

    assert (scored.labels, scored.kind) == ((-1.5, 3.0), LabelKind.SCORES)
    assert scored.relevant == (False, True)


def test_lists_with_nothing_to_rank_and_repeated_passages_are_left_out_and_counted(tmp_path: Path) -> None:
    gold = {"text": "gold", "label": 1}
    file = ListwiseFile(
        write(
            tmp_path / "lists.jsonl",
            with_passages(gold, {"text": "also gold", "label": 1}, id="all relevant"),
            with_passages(gold, id="alone"),
            with_passages(gold, gold, {"title": "", "text": "gold", "label": 1}, {"text": "b", "label": 0}, id="twice"),
        ),
        "s",
    )
    for _ in range(2):  # the counts are of one run, not of all
        (kept,) = file
        assert [passage.text for passage in kept.passages] == ["gold", "b"]
        assert (file.nothing_to_rank, file.repeated_passages) == (2, 2)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "must be a JSON object, not list"),
        ({"id": "x", "query": "y"}, "lacks the field passages"),
        (with_passages(id=None), "passages is empty"),
        ({**GOOD, "passages": {}}, "passages must be an array, not dict"),
        (with_passages("text"), "passages[0] must be an object, not str"),
        (with_passages({"label": 1}), "lacks the field passages[0].text"),
        (with_passages({"text": "a", "label": 1}, {"text": None, "label": 0}), "passages[1].text must be a string"),
        (with_passages({"text": "a", "title": 3, "label": 1}), "passages[0].title must be a string, not int"),
        (with_passages({"title": " ", "text": "\n", "label": 1}), "passages[0] has neither title nor text"),
        (with_passages({"text": "a"}), "passages[0] has neither label nor score"),
        (with_passages({"text": "a", "label": 1, "score": 0.5}), "passages[0] has both label and score"),
        (with_passages({"text": "a", "label": True}), "passages[0].label must be a number, not bool"),
        (with_passages({"text": "a", "label": "1"}), "passages[0].label must be a number, not str"),
        (with_passages({"text": "a", "label": None}), "passages[0].label must be a number, not NoneType"),
        (with_passages({"text": "a", "label": float("nan")}), "passages[0].label must be a finite number, not nan"),
        (with_passages({"text": "a", "score": float("-inf")}), "passages[0].score must be a finite number, not -inf"),
        (with_passages({"text": "a", "score": 10**400}), "passages[0].score must be a finite number, not inf"),
        (
            with_passages({"text": "a", "label": 0.7}),
            "a whole number from 0, not 0.7: a teacher's scores go into score",
        ),
        (with_passages({"text": "a", "label": -1}), "a whole number from 0, not -1"),
        (with_passages({"text": "a", "label": 1}, {"text": "b", "score": 0}), "label in part and score in part"),
        (with_passages({"text": "a", "label": 0}, {"text": "b", "label": 0}), "has no relevant passage"),
        (
            with_passages({"text": "a", "label": 1}, {"text": "b", "label": 0}, {"title": "", "text": "a", "label": 0}),
            "passages[2] repeats passages[0] with another label (0, not 1)",
        ),
        (SCORED, "has scores, but the lines before it have grades"),
        ({**GOOD, "id": 7}, "id must be a string, not int"),
        ({**GOOD, "id": " "}, "id is empty"),
        ({**GOOD, "query": ""}, "query is empty"),
        ({key: value for key, value in GOOD.items() if key != "query"}, "lacks the field query"),
        (GOOD, "id 'q1' stands in line 1 already"),
        ({**GOOD, "id": "o", "query": "é" * 4097}, "query is too long, in bytes (limit 8192, got 8194)"),
        (with_passages({"text": "é" * 32768, "label": 1}), "passages[0].text is too long, in bytes (limit 65535"),
        (
            with_passages({"title": "t" * 35, "text": "x" * 65501, "label": 1}),
            "passages[0].text is too long, in bytes (limit 65500, got 65501)",
        ),
        (b'{"id": "o", "query": "\\ud800", "passages": [{"text": "a", "label": 1}]}', "query is not valid Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    file = write(tmp_path / "lists.jsonl", GOOD, line)
    with pytest.raises(ListwiseFileError) as caught:
        list(ListwiseFile(file, "s"))
    assert str(caught.value).startswith(f"{file}:2: ")
    assert problem in str(caught.value)
    assert exit_code(caught.value) is ExitCode.BAD_INPUT


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ListwiseFileError, match="No such file"):
        list(ListwiseFile(tmp_path / "absent.jsonl", "s"))
    with pytest.raises(ListwiseFileError, match="holds no lists"):
        list(ListwiseFile(write(tmp_path / "empty.jsonl", b""), "s"))
    whole = write(tmp_path / "cut.jsonl.gz", *[{**GOOD, "id": str(number)} for number in range(3000)]).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ListwiseFileError, match=r"cut\.jsonl\.gz:\d+: cannot be read"):
        list(ListwiseFile(tmp_path / "cut.jsonl.gz", "s"))
