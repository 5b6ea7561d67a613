"""A question is recognised in another spelling, and what is evaluated on is not trained on."""

from __future__ import annotations

import gzip
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.training.exclusion import (
    Exclusion,
    LeakError,
    document_key,
    evaluation_questions,
    normalised,
    question_key,
    refuse_leaks,
)


@dataclass(frozen=True)
class Questions:
    name: str
    queries: tuple[str, ...]


def folder_with(folder: Path, queries: dict[str, str], **splits: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    lines = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in queries.items())
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for split, ids in splits.items():
        rows = "".join(f"{id_}\tp\t1\n" for id_ in ids.split())
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Who   is\tthe\nKing? ", "who is the king"),
        ("who is “the” king—really…", "who is the king really"),
        ("ＷＨＯ　ｉｓ ﬁrst?", "who is first"),  # full width, ideographic space, a ligature
        ("Cafe\u0301 STRASSE straße", "café strasse strasse"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("C++ is not C, $5 + 3", "c++ is not c $5 + 3"),
        ("東京は、どこ？", "東京は どこ"),
        ("?!", ""),
    ],
)
def test_texts_are_reduced_to_what_tells_them_apart(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text())
@example("e\u00ad\u0301")  # dropping the soft hyphen lets the accent join
@example("\u1e9e \u0345\u0399")
def test_reducing_twice_changes_nothing(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "Zs"]), max_size=30))
def test_spacing_punctuation_and_unicode_form_do_not_matter(text: str) -> None:
    key = question_key(f"why {text}")
    assert question_key("  Why,\n" + "\t ".join(text.split(" ")) + " ?") == key
    assert question_key("why " + unicodedata.normalize("NFD", text)) == key


def test_other_questions_have_other_keys() -> None:
    questions = ["who is king", "who was king", "whois king", "", "?", "!", "??", "C", "C+", "\ud800"]
    assert len({question_key(question) for question in questions}) == len(questions)


class TestEvaluationQuestions:
    QUERIES: ClassVar = {"1": "train?", "2": "test?", "3": "both?", "4": "dev?", "5": "unjudged?"}

    def test_of_a_folder_what_may_not_be_trained_on(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", self.QUERIES, train="1 3", dev="4", test="2 3")
        assert evaluation_questions(folder) == ["test?", "both?", "unjudged?"]

    def test_of_a_folder_without_splits_everything(self, tmp_path: Path) -> None:
        assert len(evaluation_questions(folder_with(tmp_path / "c", self.QUERIES))) == 5

    def test_of_one_split_what_it_judges(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", self.QUERIES, train="1 3", dev="4")
        assert evaluation_questions(folder / "qrels" / "dev.tsv") == ["dev?"]

    def test_of_judgements_without_a_header_all(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", self.QUERIES, train="1")
        judgements = folder / "qrels" / "test.tsv"
        judgements.write_text("\ufeff2\tp\t1\n3\tp\t1\n")

        assert evaluation_questions(judgements) == ["test?", "both?"]
        assert evaluation_questions(folder) == ["test?", "both?", "dev?", "unjudged?"]

    def test_of_a_packed_split_what_it_judges(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", self.QUERIES)
        for split, id_ in (("train", "1"), ("test", "2")):
            (folder / "qrels" / f"{split}.tsv.gz").write_bytes(gzip.compress(f"{id_}\tp\t1\n".encode()))

        assert evaluation_questions(folder / "qrels" / "test.tsv.gz") == ["test?"]
        assert "train?" not in evaluation_questions(folder)

    def test_a_judged_question_without_a_text_could_not_be_kept_out(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", self.QUERIES, test="2 9")
        for path in (folder, folder / "qrels" / "test.tsv"):
            with pytest.raises(InvalidInputError, match=r"data\.exclude: .*/c judges '9', which is not in its queries"):
                evaluation_questions(path)

    def test_of_a_file_all(self, tmp_path: Path) -> None:
        file = tmp_path / "lists.jsonl"
        file.write_text('{"query": "one?", "text": "not this"}\n\n{"_id": "7", "text": "two?"}\n')
        assert evaluation_questions(file) == ["one?", "two?"]

    def test_nothing_to_exclude_is_a_mistake(self, tmp_path: Path) -> None:
        only_train = folder_with(tmp_path / "c", {"1": "train?"}, train="1")
        with pytest.raises(InvalidInputError, match=r"data\.exclude: .*/c holds no question that training could leak"):
            evaluation_questions(only_train)

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("absent.jsonl", None, r"absent\.jsonl: cannot be read \(No such file"),
            ("absent.tsv", None, r"qrels: .*absent\.tsv is missing"),
            ("lists.jsonl", '{"query": "x"}\n{"id": "7"}\n', r"lists\.jsonl:2: must have query or text"),
            ("lists.jsonl", '{"query": 3}\n', r"lists\.jsonl:1: must have query or text, a string"),
            ("folder/other", "", r"queries: .*folder has neither queries\.jsonl nor"),
            ("folder/queries.jsonl", '{"_id": 3, "text": "x"}\n', r"queries\.jsonl:1: must have _id and text, both"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path: Path, name: str, content: str | None, problem: str) -> None:
        path = tmp_path / name
        if content is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        with pytest.raises(InvalidInputError, match=problem):
            evaluation_questions(path.parent if name.startswith("folder") else path)


class TestRefuseLeaks:
    def test_the_file_the_count_and_the_first_question_are_named(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path / "c", {"1": "Who is king?", "2": "What is lava?", "3": "Who was queen?"})
        clean = Questions("clean", ("Who is a king?", "What is lava made of?"))
        leaky = Questions("leaky", ("what is LAVA", "Who is king?", "Something else"))
        exclusions = [Exclusion.read(folder)]

        refuse_leaks([clean], exclusions)
        with pytest.raises(LeakError) as caught:
            refuse_leaks([clean, leaky], exclusions)

        assert str(caught.value) == (
            f"data.exclude: 2 of the 3 questions of {folder} stand in the data source leaky (1 word for word, the "
            "others but for case, punctuation or spacing), the first is 'Who is king?': take them out of the data, or "
            "set data.leaks to leave_out"
        )


def test_documents_are_recognised_in_another_spelling() -> None:
    assert document_key("Lava is hot.") == document_key("lava IS  hot")
    assert document_key("Lava is hot.") != document_key("Lava is not hot.")
