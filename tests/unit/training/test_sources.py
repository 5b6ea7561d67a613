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
from resrank.training.config import TrainConfig
from resrank.training.data_config import DataConfig
from resrank.training.exclusion import LeakError
from resrank.training.lists import CandidateList, LabelKind
from resrank.training.mining import Rows
from resrank.training.pool import PassagePool
from resrank.training.sources import TrainingData, encoder_and_reranker_lists, load_data
from resrank.training.trainer import divided


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
    *train: dict[str, Any], development: list[dict[str, Any]], told: list[str] | None = None, **fields: Any
) -> TrainingData:
    """Loads sources that need no retrieval."""
    config = DataConfig.model_validate({"train": train, "development": development, **fields})
    return load_data(config, NoRetriever(), (told if told is not None else []).append)


def ids(lists: Sequence[Any]) -> set[str]:
    return {candidates.id for candidates in lists}


def held(data: TrainingData) -> list[CandidateList]:
    """The lists of all development sets."""
    return [candidates for part in data.development for candidates in part.lists]


class TestGivenLists:
    def test_the_lists_of_a_file_are_trained_on_and_some_held_back(self, tmp_path: Path) -> None:
        told: list[str] = []
        data = load(listwise(tmp_path / "wiki.jsonl", 40), development=[{"hold_back": 10}], told=told)

        (source,) = data.train
        assert (source.name, source.weight) == ("wiki", 1)
        assert (len(source.lists), len(held(data))) == (30, 10)
        assert ids(source.lists) | ids(held(data)) == {f"q{number}" for number in range(40)}
        assert [part.name for part in data.development] == ["wiki"]
        assert [passage.text for passage in held(data)[0].passages] == ["no", "yes", "no"]
        assert {candidates.source for candidates in held(data)} == {"wiki"}
        # Of the training lists, the passage that all lists of the file share is gone.
        assert {tuple(passage.text for passage in candidates.passages) for candidates in source.lists} == {
            ("no", "yes")
        }
        assert told == ["wiki: 30 lists and 10 held back; left out: 30 × passage of a held back list"]

    def test_a_list_whose_relevant_passages_are_held_back_is_left_out(self, tmp_path: Path) -> None:
        passages = [{"text": "the answer", "label": 1}, {"text": "red ice", "label": 0}]
        lines = [{"id": f"q{number}", "query": f"question {number}", "passages": passages} for number in range(3)]
        (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = {"kind": "listwise", "path": str(tmp_path / "wiki.jsonl")}
        with pytest.raises(InvalidInputError, match=r"data\.train: wiki has no list to train on"):
            load(source, development=[{"hold_back": 1}])

        other = {**passages[1], "text": "blue water"}
        lines += [{"id": "q3", "query": "more", "passages": [*passages, {**other, "label": 2}, {**other, "text": "x"}]}]
        (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        told: list[str] = []
        data = load(source, development=[{"hold_back": 1}], told=told)
        assert {candidates.id for candidates in held(data)} < {"q0", "q1", "q2"}
        ((kept,),) = (part.lists for part in data.train)
        assert (kept.id, [passage.text for passage in kept.passages], kept.labels) == (
            "q3",
            ["blue water", "x"],
            (2, 0),
        )
        assert told == [
            "wiki: 1 lists and 1 held back; left out: 6 × passage of a held back list, 2 × list with nothing to rank "
            "without these"
        ]

    def test_passages_that_lists_share_are_one_object(self, tmp_path: Path) -> None:
        apart = listwise(tmp_path / "apart.jsonl", 2, prefix="apart")
        data = load(listwise(tmp_path / "wiki.jsonl", 5), development=[apart])
        assert len({id(candidates.passages[2]) for candidates in data.train[0].lists}) == 1

    def test_what_is_held_back_depends_on_nothing_but_the_ids(self, tmp_path: Path) -> None:
        whole = listwise(tmp_path / "wiki.jsonl", 60)
        lines = (tmp_path / "wiki.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
        reference = load(whole, development=[{"hold_back": 10}])

        for source in ({**whole, "limit": 7}, {**whole, "path": str(tmp_path / "reversed.jsonl")}):
            assert ids(held(load(source, development=[{"hold_back": 10}]))) == ids(held(reference))
        assert ids(held(load(whole, development=[{"hold_back": 4}]))) < ids(held(reference))
        # Neither the file's beginning nor its end.
        assert ids(held(reference)) != {f"q{number}" for number in range(10)}

    def test_a_limit_takes_a_part_of_what_a_larger_one_takes(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 60)
        small, large = (
            load({**source, "limit": limit}, development=[{"hold_back": 5}]).train[0].lists for limit in (10, 20)
        )
        assert (len(small), len(large)) == (10, 20)
        assert ids(small) < ids(large)

    def test_one_runs_limit_and_anothers_skip_share_no_question(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 60)

        def read(**fields: int) -> TrainingData:
            return load({**source, **fields}, development=[{"hold_back": 5}])

        first, second, others, whole = read(limit=20), read(skip=20, limit=10), read(skip=20), read()
        assert ids(held(first)) == ids(held(second)) == ids(held(others)) == ids(held(whole))
        assert [len(data.train[0].lists) for data in (second, others)] == [10, 35]
        assert ids(second.train[0].lists) < ids(others.train[0].lists)
        assert ids(others.train[0].lists) == ids(whole.train[0].lists) - ids(first.train[0].lists)

    def test_several_sources_keep_names_and_weights(self, tmp_path: Path) -> None:
        one = {**listwise(tmp_path / "a.jsonl", 8), "weight": 3}
        two = {**listwise(tmp_path / "b.jsonl", 9, prefix="b"), "name": "second"}
        data = load(one, two, development=[{"hold_back": 2}])

        assert [(source.name, source.weight, len(source.lists)) for source in data.train] == [
            ("a", 3, 6),
            ("second", 1, 7),
        ]
        assert [(part.name, len(part.lists)) for part in data.development] == [("a", 2), ("second", 2)]

    def test_a_development_question_is_not_trained_on_in_any_spelling(self, tmp_path: Path) -> None:
        train = listwise(tmp_path / "train.jsonl", 6)
        development = listwise(tmp_path / "dev.jsonl", 2)
        text = (tmp_path / "dev.jsonl").read_text()
        (tmp_path / "dev.jsonl").write_text(text.replace("q question 1?", "Q: question 1"))
        told: list[str] = []
        data = load(train, development=[development], told=told)

        assert ids(data.train[0].lists) == {"q2", "q3", "q4", "q5"}
        assert {candidates.source for candidates in held(data)} == {"dev"}
        assert told[-1] == "train; left out: 2 × list that asks a development question"

    def test_a_teachers_scores_are_read(self, tmp_path: Path) -> None:
        data = load(listwise(tmp_path / "t.jsonl", 4, field="score"), development=[{"hold_back": 1}])
        assert data.train[0].lists[0].kind is LabelKind.SCORES


class TestRetrievedCandidates:
    def test_a_files_passages_are_pooled_and_candidates_come_from_all_of_them(self, tmp_path: Path) -> None:
        retriever, told = WordOverlap(), list[str]()
        config = DataConfig.model_validate(
            {
                "train": [listwise(tmp_path / "wiki.jsonl", 9)],
                "development": [{"hold_back": 3}],
                "candidates": {"origin": "retrieved", "depth": 5},
            }
        )
        data = load_data(config, retriever, told.append)

        # Two passages a list; the one that all share is held back.
        assert [(len(pool), len(queries)) for pool, queries in retriever.asked] == [(12, 6), (7, 3)]
        trained, apart = (set(pool.texts()) for pool, _ in retriever.asked)
        assert trained.isdisjoint(apart)
        assert (len(data.train[0].lists), len(held(data))) == (6, 3)
        for candidates in (*data.train[0].lists, *held(data)):
            number = candidates.id[1:]
            titles = [passage.title for passage in candidates.passages]
            assert titles[:2] == [f"q {number}", f"q {number}"]
            assert len(titles) == 5
            assert candidates.labels == (0, 1, 0, 0, 0)
        left_out = "left out: 6 × passage of a held back list"
        assert told == [
            f"wiki: 6 lists from a pool of 12 passages; {left_out}",
            f"wiki, held back: 3 lists from a pool of 7 passages; {left_out}",
        ]

    def test_a_teachers_scores_do_not_reach_other_passages(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "t.jsonl", 4, field="score")
        with pytest.raises(
            InvalidInputError, match=r"data\.candidates\.origin: retrieved needs grades, and .*t\.jsonl"
        ):
            load(source, development=[{"hold_back": 1}], candidates={"origin": "retrieved"})


class TestBeirFolders:
    CORPUS: ClassVar = {"a": "red lava", "b": "red ice", "c": "", "d": "blue water", "e": "red lava", "f": " "}
    QUERIES: ClassVar = {"1": "red lava?", "2": "red ice ?", "3": "blue", "4": "red", "5": "of the test"}

    def load(self, folder: Path, **fields: Any) -> tuple[TrainingData, WordOverlap, list[str]]:
        retriever, told = WordOverlap(), list[str]()
        config = DataConfig.model_validate(
            {
                "train": [{"kind": "beir", "path": str(folder)}],
                "development": [{"kind": "beir", "path": str(folder), "split": "dev"}],
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
        assert [(candidates.id, candidates.labels) for candidates in held(data)] == [("4", (3.0, 1.0))]
        assert told == [
            "col-dev: 1 lists from a pool of 3 passages; left out: 2 × empty passage",
            "col-train: 1 lists from a pool of 3 passages; left out: 2 × empty passage, 1 × judgement of a passage "
            "that is not in the corpus, 1 × question with no relevant passage among the first 2",
        ]

    @pytest.mark.parametrize("given", [False, True])
    def test_a_question_that_is_a_passage_is_none_of_its_own_candidates(self, tmp_path: Path, given: bool) -> None:
        """As in an evaluation: same id, same words. One that is judged relevant to itself stays."""
        corpus = {"a": "red lava?", "b": "red ice", "c": "red moon", "d": "blue water", "e": "red sea"}
        queries = {"a": "Red lava ?", "b": "red ice", "c": "numbered alike, red", "d": "water", "5": "blue"}
        judged = "a b 1;b b 2;b c 1;c b 1"
        source = beir(tmp_path / "col", corpus, queries, train=judged, dev="d d 1;d a 1;5 d 1")
        if given:
            run = tmp_path / "run.jsonl"
            run.write_text("".join(json.dumps({"qid": q, "docids": list("abce")}) + "\n" for q in "abc"))
            source = {**source, "candidates": str(run)}
        data, _, _ = self.load(tmp_path / "col", train=[source], candidates={"depth": 3})
        found = {candidates.id: [p.text for p in candidates.passages] for candidates in data.train[0].lists}
        assert "red lava?" not in found["a"]
        assert len(found["a"]) == (2 if given else 3)
        assert "red ice" in found["b"]
        assert len(found["b"]) == 3

    def test_a_source_that_gives_no_list_is_named(self, tmp_path: Path) -> None:
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="2 d 1", dev="4 b 1")
        with pytest.raises(InvalidInputError, match=r"data\.train: col-train has no list to train on"):
            self.load(tmp_path / "col")
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="4 b 1", dev="2 d 1")
        with pytest.raises(InvalidInputError, match=r"data\.development: col-dev has no list to choose"):
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

    def test_candidates_can_be_given_in_a_file(self, tmp_path: Path) -> None:
        beir(tmp_path / "col", self.CORPUS, self.QUERIES, train="1 a 1;3 d 1;4 d 1", dev="4 b 1")
        run = tmp_path / "run.jsonl"
        rows = [("bm25", "1", "d b e c"), ("bm25", "3", "a d"), ("bm25", "9", "a"), ("dense", "1", "a")]
        lines = [{"retriever": name, "qid": question, "docids": ids.split()} for name, question, ids in rows]
        run.write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = {"kind": "beir", "path": str(tmp_path / "col"), "candidates": str(run), "retriever": "bm25"}
        data, retriever, told = self.load(tmp_path / "col", train=[source], candidates={"depth": 3})

        ((lists),) = (part.lists for part in data.train)
        assert [[passage.text for passage in candidates.passages] for candidates in lists] == [
            ["blue water", "red ice", "red lava"],  # e is a's text; c is empty
            ["red lava", "blue water"],
        ]
        assert [candidates.labels for candidates in lists] == [(0, 0, 1), (0, 1)]
        assert len(retriever.asked) == 1  # for the development questions alone
        assert told[1].endswith("left out: 2 × empty passage, 1 × question without candidates in their file")

        run.write_text(json.dumps({"qid": "1", "docids": ["a", "zz"]}) + "\n")
        with pytest.raises(
            InvalidInputError, match=r"run\.jsonl gives question '1' passage 'zz', which the corpus lacks"
        ):
            self.load(tmp_path / "col", train=[{**source, "retriever": None}])


class TestSharesOfTheStages:
    def test_the_encoders_stage_and_the_rerankers_share_no_question(self, tmp_path: Path) -> None:
        """Whatever the source: a question that stands in two of them, in two spellings, is on one side."""
        lines = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
        sources = [listwise(path, 200) for path in lines]
        lines[1].write_text(lines[1].read_text().replace("q question", "Q  Question"))
        data = load(*sources, development=[{"hold_back": 1}])
        first, second = encoder_and_reranker_lists(data.train, 0.3)
        asked = [
            {(candidates.query.casefold().replace("  ", " ")) for source in part for candidates in source.lists}
            for part in (first, second)
        ]
        assert asked[0].isdisjoint(asked[1])
        for whole, one, two in zip(data.train, first, second, strict=True):
            assert ids(one.lists) | ids(two.lists) == ids(whole.lists)
            assert 0.2 < len(one.lists) / len(whole.lists) < 0.4
            assert (one.name, one.weight) == (two.name, two.weight) == (whole.name, whole.weight)

    def test_a_run_divides_them_unless_told_otherwise(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "a.jsonl", 40)
        data = load(source, development=[{"hold_back": 1}]).train
        every = ids(data[0].lists)
        stage = {"steps": 1}

        def read_by(stages: dict[str, Any], **fields: Any) -> dict[str, set[str]]:
            config = TrainConfig.model_validate_json(
                json.dumps(
                    {
                        "name": "n",
                        "output": "out",
                        "start": {"encoder": "e5-small", "reranker": "SmolLM2-135M-Instruct"},
                        "data": {"train": [source], "development": [{"hold_back": 1}], **fields},
                        "stages": {"encoder_alignment": None, "reranker_alignment": None, "joint": None, **stages},
                    }
                )
            )
            return {name: ids(part[0].lists) for name, part in divided(config, data).items()}

        for second in ("reranker_alignment", "joint"):
            parts = read_by({"encoder_alignment": stage, second: stage})
            assert parts["encoder_alignment"].isdisjoint(parts[second])
            assert parts["encoder_alignment"] | parts[second] == every
            assert 10 < len(parts[second]) < 30
        assert read_by({"reranker_alignment": stage, "joint": stage}) == {"reranker_alignment": every, "joint": every}
        assert read_by({"encoder_alignment": stage}) == {"encoder_alignment": every}
        together = read_by({"encoder_alignment": stage, "joint": stage}, encoder_share=None)
        assert together == {"encoder_alignment": every, "joint": every}

    def test_a_source_too_small_to_be_divided_is_named(self, tmp_path: Path) -> None:
        data = load(listwise(tmp_path / "a.jsonl", 2), development=[{"hold_back": 1}])
        with pytest.raises(
            InvalidInputError, match=r"data\.encoder_share: 0\.5 of the 1 lists of a leaves a stage none"
        ):
            encoder_and_reranker_lists(data.train, 0.5)


class TestExcludedQuestions:
    def test_a_leak_is_refused_before_anything_is_retrieved(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 9)
        excluded = tmp_path / "questions.jsonl"
        excluded.write_text('{"text": "Other"}\n{"text": "Q question 3"}\n')
        config = DataConfig.model_validate(
            {
                "train": [source],
                "development": [{"hold_back": 2}],
                "exclude": [str(excluded)],
                "candidates": {"origin": "retrieved"},
            }
        )
        with pytest.raises(LeakError, match=r"1 of the 2 questions of .*questions\.jsonl .* source wiki"):
            load_data(config, NoRetriever())

    def test_development_data_must_not_leak_either(self, tmp_path: Path) -> None:
        train, development = listwise(tmp_path / "a.jsonl", 5), listwise(tmp_path / "b.jsonl", 5, prefix="b")
        with pytest.raises(LeakError, match=r"questions of .*b\.jsonl stand in the data source b "):
            load(train, development=[development], exclude=[development["path"]])

    def test_leaks_can_be_left_out_and_are_told(self, tmp_path: Path) -> None:
        source = listwise(tmp_path / "wiki.jsonl", 9)
        listwise(tmp_path / "excluded.jsonl", 4)
        told: list[str] = []
        data = load(
            source,
            development=[{"hold_back": 3}],
            exclude=[str(tmp_path / "excluded.jsonl")],
            leaks="leave_out",
            told=told,
        )
        assert ids(data.train[0].lists) | ids(held(data)) == {"q4", "q5", "q6", "q7", "q8"}
        assert told[-1] == "wiki; left out: 4 × list that asks an excluded question"


class TestConfig:
    LISTS: ClassVar = {"kind": "listwise", "path": "a.jsonl"}

    def check(self, problem: str, **fields: Any) -> None:
        good = {"train": [{"kind": "listwise", "path": "a.jsonl"}], "development": [{"hold_back": 1}]}
        DataConfig.model_validate(good)
        with pytest.raises(ValidationError, match=problem):
            DataConfig.model_validate({**good, **fields})

    def test_contradictions_and_unknown_fields_are_refused(self) -> None:
        beir = {"kind": "beir", "path": "x"}
        self.check("at least 1 item", train=[])
        self.check(
            "does not match any of the expected tags: 'listwise', 'beir', 'synthetic'",
            train=[{"kind": "csv", "path": "x"}],
        )
        self.check("Extra inputs are not permitted", train=[{"kind": "listwise", "path": "x", "split": "dev"}])
        self.check("greater than 0", train=[{**beir, "weight": 0}])
        self.check("finite number", train=[{**beir, "weight": float("nan")}])
        self.check("2 training sources are called 'x-train'", train=[beir, {**beir, "path": "y/x"}])
        self.check("must have hold_back, or kind listwise or beir", development=[{"path": "x"}])
        self.check("greater than or equal to 1", development=[{"hold_back": 0}])
        self.check(r"min_passages \(9\) is above max_passages \(8\)", candidates={"min_passages": 9, "max_passages": 8})
        self.check("less than or equal to 1", candidates={"shuffle": 1.5})
        self.check("retriever names lists of candidates, which is not given", train=[{**beir, "retriever": "bm25"}])
        self.check("hold_back stands in development more than once", development=[{"hold_back": 1}, {"hold_back": 2}])
        self.check("2 sets of development lists are called 'a'", development=[{"hold_back": 1}, self.LISTS])
        self.check("must have hold_back", development=[{"kind": "synthetic", "path": "x"}])
        derived = {"kind": "synthetic"}
        self.check("every training source is synthetic without a path", train=[derived], development=[self.LISTS])
        self.check("no training source has a path to hold lists back of", train=[derived])
        self.check("queries needs a path", train=[self.LISTS, {**derived, "queries": "log.txt"}])
        self.check("passages needs a path", train=[self.LISTS, {**derived, "passages": 10}])

    def test_more_held_back_than_there_is(self, tmp_path: Path) -> None:
        with pytest.raises(
            InvalidInputError, match=r"data\.development\.hold_back: .* no list left to train on \(limit 4, got 5\)"
        ):
            load(listwise(tmp_path / "wiki.jsonl", 5), development=[{"hold_back": 5}])

    def test_more_held_back_than_there_is_with_some_skipped(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"data\.development\.hold_back: .* \(limit 4, got 6\)"):
            load({**listwise(tmp_path / "wiki.jsonl", 5), "skip": 1}, development=[{"hold_back": 6}])

    @pytest.mark.parametrize("limit", [{}, {"limit": 2}])
    def test_more_skipped_than_there_is(self, tmp_path: Path, limit: dict[str, int]) -> None:
        with pytest.raises(
            InvalidInputError, match=r"data\.train\.skip: wiki would have no list left \(limit 2, got 3\)"
        ):
            load({**listwise(tmp_path / "wiki.jsonl", 5), "skip": 3, **limit}, development=[{"hold_back": 2}])
