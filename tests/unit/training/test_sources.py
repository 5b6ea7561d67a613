"""What a run reads follows from its config alone, development data are kept apart, and leaks are found in time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from resrank.core.errors import InvalidInputError
from resrank.training.data_config import DataConfig
from resrank.training.exclusion import LeakError
from resrank.training.lists import LabelKind
from resrank.training.mining import Rows
from resrank.training.pool import PassagePool
from resrank.training.sources import TrainingData, load_data


class WordOverlap:
    """Retrieves by shared words, lower rows first; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[PassagePool, list[str]]] = []

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        self.asked.append((pool, list(queries)))
        words = [set(text.split()) for text in pool.texts()]
        return np.array(
            [
                sorted(
                    range(len(pool)), key=lambda row, query=query: -len(words[row] & set(query.rstrip("?").split()))
                )[:depth]
                for query in queries
            ],
            np.int32,
        )


class NoRetriever:
    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        raise AssertionError("nothing was to be retrieved")


def listwise(path: Path, count: int, *, prefix: str = "q", field: str = "label") -> dict[str, Any]:
    lines = [
        {
            "id": f"{prefix}{number}",
            "query": f"{prefix} question {number}?",
            "passages": [
                {"title": f"{prefix} {number}", "text": "no", field: 0},
                {"title": f"{prefix} {number}", "text": "yes", field: 1},
                {"title": "shared", "text": "no", field: 0},
            ],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "listwise", "path": str(path)}


def beir(folder: Path, corpus: dict[str, str], queries: dict[str, str], **qrels: str) -> dict[str, Any]:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in records.items())
        (folder / f"{name}.jsonl").write_text(lines)
    for split, rows in qrels.items():
        judgements = rows.replace(" ", "\t").replace(";", "\n")
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}\n")
    return {"kind": "beir", "path": str(folder)}


def load(
    *train: dict[str, Any], development: dict[str, Any], told: list[str] | None = None, **fields: Any
) -> TrainingData:
    """Loads sources that need no retrieval."""
    config = DataConfig.model_validate({"train": train, "development": development, **fields})
    return load_data(config, NoRetriever(), (told if told is not None else []).append)


def ids(lists: Sequence[Any]) -> set[str]:
    return {candidates.id for candidates in lists}


class TestGivenLists:
    def test_the_lists_of_a_file_are_trained_on_and_some_held_back(self, tmp_path: Path) -> None:
        told: list[str] = []
        data = load(listwise(tmp_path / "wiki.jsonl", 40), development={"hold_back": 10}, told=told)

        (source,) = data.train
        assert (source.name, source.weight) == ("wiki", 1)
        assert (len(source.lists), len(data.development)) == (30, 10)
        assert ids(source.lists) | ids(data.development) == {f"q{number}" for number in range(40)}
        assert [passage.text for passage in source.lists[0].passages] == ["no", "yes", "no"]
        assert {candidates.source for candidates in data.development} == {"wiki"}
        assert told == ["wiki: 40 lists"]

    def test_passages_that_lists_share_are_one_object(self, tmp_path: Path) -> None:
        data = load(listwise(tmp_path / "wiki.jsonl", 5), development={"hold_back": 1})
        assert len({id(candidates.passages[2]) for candidates in data.train[0].lists}) == 1

    def test_what_is_held_back_depends_on_nothing_but_the_ids(self, tmp_path: Path) -> None:
        whole = listwise(tmp_path / "wiki.jsonl", 60)
        lines = (tmp_path / "wiki.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
        reference = load(whole, development={"hold_back": 10})

        for source in ({**whole, "limit": 7}, {**whole, "path": str(tmp_path / "reversed.jsonl")}):
            assert ids(load(source, development={"hold_back": 10}).development) == ids(reference.development)
        assert ids(load(whole, development={"hold_back": 4}).development) < ids(reference.development)
        # Neither the file's beginning nor its end.
        assert ids(reference.development) != {f"q{number}" for number in range(10)}

    def test_a_limit_takes_a_part_of_what_a_larger_one_takes(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 60)
        small, large = (
            load({**source, "limit": limit}, development={"hold_back": 5}).train[0].lists for limit in (10, 20)
        )
        assert (len(small), len(large)) == (10, 20)
        assert ids(small) < ids(large)

    def test_several_sources_keep_names_and_weights(self, tmp_path: Path) -> None:
        one = {**listwise(tmp_path / "a.jsonl", 8), "weight": 3}
        two = {**listwise(tmp_path / "b.jsonl", 9, prefix="b"), "name": "second"}
        data = load(one, two, development={"hold_back": 2})

        assert [(source.name, source.weight, len(source.lists)) for source in data.train] == [
            ("a", 3, 6),
            ("second", 1, 7),
        ]
        assert len(data.development) == 4

    def test_a_development_question_is_not_trained_on_in_any_spelling(self, tmp_path: Path) -> None:
        train = listwise(tmp_path / "train.jsonl", 6)
        development = listwise(tmp_path / "dev.jsonl", 2)
        text = (tmp_path / "dev.jsonl").read_text()
        (tmp_path / "dev.jsonl").write_text(text.replace("q question 1?", "Q: question 1"))
        told: list[str] = []
        data = load(train, development=development, told=told)

        assert ids(data.train[0].lists) == {"q2", "q3", "q4", "q5"}
        assert {candidates.source for candidates in data.development} == {"dev"}
        assert told[-1] == "train; left out: 2 × list that asks a development question"

    def test_a_teachers_scores_are_read(self, tmp_path: Path) -> None:
        data = load(listwise(tmp_path / "t.jsonl", 4, field="score"), development={"hold_back": 1})
        assert data.train[0].lists[0].kind is LabelKind.SCORES


class TestRetrievedCandidates:
    def test_a_files_passages_are_pooled_and_candidates_come_from_all_of_them(self, tmp_path: Path) -> None:
        retriever, told = WordOverlap(), list[str]()
        config = DataConfig.model_validate(
            {
                "train": [listwise(tmp_path / "wiki.jsonl", 9)],
                "development": {"hold_back": 3},
                "candidates": {"origin": "retrieved", "depth": 5},
            }
        )
        data = load_data(config, retriever, told.append)

        ((pool, queries),) = retriever.asked
        assert (len(pool), len(queries)) == (19, 9)  # two passages a list, and the one they share
        assert (len(data.train[0].lists), len(data.development)) == (6, 3)
        for candidates in (*data.train[0].lists, *data.development):
            number = candidates.id[1:]
            titles = [passage.title for passage in candidates.passages]
            assert titles[:2] == [f"q {number}", f"q {number}"]
            assert len(titles) == 5
            assert candidates.labels == (0, 1, 0, 0, 0)
        assert told == ["wiki: 9 lists from a pool of 19 passages"]

    def test_a_teachers_scores_do_not_reach_other_passages(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "t.jsonl", 4, field="score")
        with pytest.raises(
            InvalidInputError, match=r"data\.candidates\.origin: retrieved needs grades, and .*t\.jsonl"
        ):
            load(source, development={"hold_back": 1}, candidates={"origin": "retrieved"})


class TestBeirFolders:
    CORPUS: ClassVar = {"a": "red lava", "b": "red ice", "c": "", "d": "blue water", "e": "red lava", "f": " "}
    QUERIES: ClassVar = {"1": "red lava?", "2": "red ice ?", "3": "blue", "4": "red", "5": "of the test"}

    def load(self, folder: Path, **fields: Any) -> tuple[TrainingData, WordOverlap, list[str]]:
        retriever, told = WordOverlap(), list[str]()
        config = DataConfig.model_validate(
            {
                "train": [{"kind": "beir", "path": str(folder)}],
                "development": {"kind": "beir", "path": str(folder), "split": "dev"},
                "candidates": {"depth": 2},
                **fields,
            }
        )
        return load_data(config, retriever, told.append), retriever, told

    def test_candidates_are_retrieved_from_the_corpus_with_graded_labels(self, tmp_path: Path) -> None:
        beir(
            tmp_path / "col",
            self.CORPUS,
            self.QUERIES,
            train="1 e 2;1 b -1;1 c 1;2 d 1;2 zz 1",
            dev="4 b 1;4 a 3",
            test="5 a 1",
        )
        data, retriever, told = self.load(tmp_path / "col")

        # One pool for both splits: empty passages left out, a and e one passage.
        (dev_pool, _), (pool, queries) = retriever.asked
        assert dev_pool is pool
        assert pool.texts() == ["red lava", "red ice", "blue water"]
        assert queries == ["red lava?", "red ice ?"]
        (source,) = data.train
        assert source.name == "col-train"
        # Of query 2 nothing relevant is among the first two; e's grade is that of its text.
        ((candidates),) = source.lists
        assert [
            (passage.text, label) for passage, label in zip(candidates.passages, candidates.labels, strict=True)
        ] == [
            ("red lava", 2),
            ("red ice", 0),
        ]
        assert [(candidates.id, candidates.labels) for candidates in data.development] == [("4", (3.0, 1.0))]
        assert told == [
            "col-dev: 1 lists from a pool of 3 passages; left out: 2 × empty passage",
            "col-train: 1 lists from a pool of 3 passages; left out: 2 × empty passage, 1 × judgement of a passage "
            "that is not in the corpus, 1 × question with no relevant passage among the first 2",
        ]

    def test_a_source_that_gives_no_list_is_named(self, tmp_path: Path) -> None:
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="2 d 1", dev="4 b 1")
        with pytest.raises(InvalidInputError, match=r"data\.train: col-train has no list to train on"):
            self.load(tmp_path / "col")
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="4 b 1", dev="2 d 1")
        with pytest.raises(InvalidInputError, match=r"data\.development: no list is left"):
            self.load(tmp_path / "col")

    def test_a_split_without_a_relevant_passage_is_named(self, tmp_path: Path) -> None:
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="1 a 0", dev="4 b 1")
        with pytest.raises(InvalidInputError, match=r"col/qrels/train\.tsv judges no passage relevant"):
            self.load(tmp_path / "col")

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        beir(tmp_path / "col", self.CORPUS, {**self.QUERIES, "1": " "}, train="1 a 1", dev="4 b 1")
        with pytest.raises(InvalidInputError, match=r"col/queries\.jsonl:1: the text of '1' is empty"):
            self.load(tmp_path / "col")
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="1 a 1", dev="4 b 1")
        with (tmp_path / "col" / "corpus.jsonl").open("a") as file:
            file.write('{"_id": "a", "text": "other"}\n')
        with pytest.raises(InvalidInputError, match=r"corpus\.jsonl:7: _id 'a' has other content above"):
            self.load(tmp_path / "col")


class TestExcludedQuestions:
    def test_a_leak_is_refused_before_anything_is_retrieved(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 9)
        excluded = tmp_path / "questions.jsonl"
        excluded.write_text('{"text": "Other"}\n{"text": "Q question 3"}\n')
        config = DataConfig.model_validate(
            {
                "train": [source],
                "development": {"hold_back": 2},
                "exclude": [str(excluded)],
                "candidates": {"origin": "retrieved"},
            }
        )
        with pytest.raises(LeakError, match=r"1 of the 2 questions of .*questions\.jsonl .* source wiki"):
            load_data(config, NoRetriever())

    def test_development_data_must_not_leak_either(self, tmp_path: Path) -> None:
        train, development = listwise(tmp_path / "a.jsonl", 5), listwise(tmp_path / "b.jsonl", 5, prefix="b")
        with pytest.raises(LeakError, match=r"questions of .*b\.jsonl stand in the data source b "):
            load(train, development=development, exclude=[development["path"]])

    def test_leaks_can_be_left_out_and_are_told(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 9)
        listwise(tmp_path / "excluded.jsonl", 4)
        told: list[str] = []
        data = load(
            source,
            development={"hold_back": 3},
            exclude=[str(tmp_path / "excluded.jsonl")],
            leaks="leave_out",
            told=told,
        )
        assert ids(data.train[0].lists) | ids(data.development) == {"q4", "q5", "q6", "q7", "q8"}
        assert told[-1] == "wiki; left out: 4 × list that asks an excluded question"


class TestConfig:
    def check(self, problem: str, **fields: Any) -> None:
        good = {"train": [{"kind": "listwise", "path": "a.jsonl"}], "development": {"hold_back": 1}}
        DataConfig.model_validate(good)
        with pytest.raises(ValidationError, match=problem):
            DataConfig.model_validate({**good, **fields})

    def test_contradictions_and_unknown_fields_are_refused(self) -> None:
        beir = {"kind": "beir", "path": "x"}
        self.check("at least 1 item", train=[])
        self.check("does not match any of the expected tags: 'listwise', 'beir'", train=[{"kind": "csv", "path": "x"}])
        self.check("Extra inputs are not permitted", train=[{"kind": "listwise", "path": "x", "split": "dev"}])
        self.check("greater than 0", train=[{**beir, "weight": 0}])
        self.check("finite number", train=[{**beir, "weight": float("nan")}])
        self.check("2 training sources are called 'x-train'", train=[beir, {**beir, "path": "y/x"}])
        self.check("must have hold_back, or kind listwise or beir", development={"path": "x"})
        self.check("greater than or equal to 1", development={"hold_back": 0})
        self.check(r"min_passages \(9\) is above max_passages \(8\)", candidates={"min_passages": 9, "max_passages": 8})
        self.check("less than or equal to 1", candidates={"shuffle": 1.5})

    def test_more_held_back_than_there_is(self, tmp_path: Path) -> None:
        with pytest.raises(
            InvalidInputError, match=r"data\.development\.hold_back: .* no list left to train on \(limit 4, got 5\)"
        ):
            load(listwise(tmp_path / "wiki.jsonl", 5), development={"hold_back": 5})
