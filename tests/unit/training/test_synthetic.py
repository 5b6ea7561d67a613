"""Lists without judgements: made as the formulas say, of a corpus, or of other sources' passages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.training.data_config import DataConfig
from resrank.training.lists import CandidateList, TrainingPassage
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex, Rows
from resrank.training.passages import drawn_pools, logged_questions
from resrank.training.pool import PassagePool, PoolBuilder
from resrank.training.sources import TrainingData, load_data
from resrank.training.synthetic import DEPTH, Wordings, sentences, synthetic_lists, wordings
from support.exact_index import ExactIndex

D, COUNT = 16, 60


def clustered(count: int, seed: int = 0) -> HalfMatrix:
    """Vectors around 40 centres, fp16 [count, D]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, D))
    return (centres[rng.integers(40, size=count)] + 0.5 * rng.normal(size=(count, D))).astype(np.float16)


def pool_of(count: int) -> PassagePool:
    builder = PoolBuilder()
    for row in range(count):
        builder.add(TrainingPassage("", f"passage {row}. It has two sentences!"))
    return builder.build()


def unit(vectors: Any) -> Any:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def made() -> tuple[HalfMatrix, list[CandidateList]]:
    vectors = clustered(400)
    index = ExactIndex(vectors)
    return vectors, synthetic_lists(pool_of(400), vectors, index, asked(vectors, index), COUNT, "mine")


def asked(vectors: HalfMatrix, index: NegativeIndex) -> Wordings:
    """How fifty questions are worded."""
    texts = [f"question {number}?" for number in range(50)]
    return wordings(texts, clustered(50, seed=1).astype(np.float32), vectors, index)


class TestLists:
    def test_candidates_are_the_hundred_nearest_to_the_question(
        self, made: tuple[HalfMatrix, list[CandidateList]]
    ) -> None:
        vectors, lists = made
        assert len(lists) == len({candidates.id for candidates in lists}) == COUNT
        for candidates in lists:
            assert (candidates.query, candidates.source, len(candidates)) == ("", "mine", DEPTH)
            question = np.frombuffer(candidates.query_vector or b"", "<f4")
            assert np.linalg.norm(question) == pytest.approx(1, abs=1e-5)
            nearest = np.argsort(-(unit(vectors) @ question), kind="stable")[:DEPTH]
            assert [int(p.text.split()[1].rstrip(".")) for p in candidates.passages] == nearest.tolist()

    def test_what_is_relevant_hangs_together_and_is_not_simply_the_nearest(
        self, made: tuple[HalfMatrix, list[CandidateList]]
    ) -> None:
        """Relevant passages are nearer to each other than to the other candidates, and seldom just the first m."""
        vectors, lists = made
        units = unit(vectors)
        inside, outside, first = [], [], 0
        for candidates in lists:
            rows = np.array([int(p.text.split()[1].rstrip(".")) for p in candidates.passages])
            relevant = np.array(candidates.relevant)
            assert 1 <= relevant.sum() <= 30
            cosines = units[rows] @ units[rows].T
            if relevant.sum() > 1:
                pairs = ~np.eye(relevant.sum(), dtype=bool)
                inside.append(cosines[np.ix_(relevant, relevant)][pairs].mean())
                outside.append(cosines[np.ix_(relevant, ~relevant)].mean())
            first += relevant[: relevant.sum()].all()
        assert np.mean(inside) > np.mean(outside) + 0.2
        assert first < COUNT / 2

    def test_the_same_data_give_the_same_lists(self, made: tuple[HalfMatrix, list[CandidateList]]) -> None:
        vectors, lists = made
        index = ExactIndex(vectors)
        assert synthetic_lists(pool_of(400), vectors, index, asked(vectors, index), COUNT, "mine") == lists

    def test_a_list_has_the_text_whose_wording_its_question_has(
        self, made: tuple[HalfMatrix, list[CandidateList]]
    ) -> None:
        """The question is a·c + √(1 − a²)·r with a ≤ 0.8: among all residuals it is nearest to its own, as a rule."""
        vectors, lists = made
        worded = asked(vectors, ExactIndex(vectors))
        questions = np.array([np.frombuffer(candidates.query_vector or b"", "<f4") for candidates in lists])
        nearest = [worded.texts[row] for row in (questions @ worded.residuals.T).argmax(axis=1)]
        own = [candidates.wording for candidates in lists]
        assert np.mean([one == other for one, other in zip(own, nearest, strict=True)]) > 0.7

    def test_a_residual_is_what_a_question_has_beside_what_it_finds(self) -> None:
        vectors = np.eye(4, dtype=np.float16)[[0, 0, 0, 1, 2]]
        questions = np.array([[2.0, 0.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]], np.float32)
        # The nearest three to the second are e_2, and two of e_1; the first is its passages' own direction.
        worded = wordings(["along", "beside"], questions, vectors, ExactIndex(vectors))
        assert worded.texts == ("beside",)
        (found,) = worded.residuals
        mean = unit([2.0, 1.0, 0.0, 0.0])
        expected = unit(unit(questions[1]) - (unit(questions[1]) @ mean) * mean)
        assert found == pytest.approx(expected, abs=1e-5)
        assert found @ mean == pytest.approx(0, abs=1e-5)

    def test_passages_that_are_all_alike_are_refused(self) -> None:
        vectors = np.ones((DEPTH, D), np.float16)
        worded = Wordings(("a", "b", "c"), unit(clustered(3)).astype(np.float32))
        with pytest.raises(
            InvalidInputError, match=r"data: mine: gives 0 lists with relevant passages and others in 20"
        ):
            synthetic_lists(pool_of(DEPTH), vectors, _NothingNear(), worded, 5, "mine")
        with pytest.raises(InvalidInputError, match="no question differs from the passages that it finds"):
            synthetic_lists(pool_of(DEPTH), vectors, ExactIndex(vectors), Wordings((), worded.residuals[:0]), 5, "mine")


class _NothingNear:
    """Finds other passages for topics (30 of them) than for questions (all)."""

    def nearest(self, queries: FloatMatrix, k: int) -> Rows:
        rows = np.arange(k, dtype=np.int32) if k < DEPTH else np.arange(30, 130, dtype=np.int32) % 70 + 30
        return np.tile(rows, (len(queries), 1))


class Encoding:
    """A retriever whose vectors follow from the texts; remembers the texts of questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def _encode(self, texts: Sequence[str]) -> FloatMatrix:
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=D) for text in texts]).astype(
            np.float32
        )

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        raise AssertionError

    def vectors(self, pool: PassagePool) -> HalfMatrix:
        return self._encode(pool.texts()).astype(np.float16)

    def query_vectors(self, texts: Sequence[str]) -> FloatMatrix:
        self.asked += texts
        return self._encode(texts)

    @contextmanager
    def index(self, pool: PassagePool) -> Iterator[NegativeIndex]:
        yield ExactIndex(self.vectors(pool))


def corpus(path: Path, count: int) -> Path:
    lines = [
        {"_id": str(row), "title": f"t{row}", "text": f"One sentence {row}. Another one {row}."} for row in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def load(told: list[str], retriever: Encoding, *train: dict[str, Any], **fields: Any) -> TrainingData:
    config = DataConfig.model_validate({"train": train, **fields})
    return load_data(config, retriever, told.append)


class TestSources:
    def test_a_corpus_gives_lists_to_train_on_and_lists_of_other_passages_to_choose_by(self, tmp_path: Path) -> None:
        source = {"kind": "synthetic", "path": str(corpus(tmp_path / "docs.jsonl", 600)), "lists": 20}
        told, retriever = list[str](), Encoding()
        data = load(told, retriever, source, development=[{"hold_back": 8}])
        (trained,), (held_back,) = data.train, data.development
        assert (trained.name, held_back.name) == ("docs-synthetic", "docs-synthetic")
        assert (len(trained.lists), len(held_back.lists)) == (20, 8)
        texts = [{p.text for c in lists for p in c.passages} for lists in (trained.lists, held_back.lists)]
        assert texts[0].isdisjoint(texts[1])
        assert told == ["docs-synthetic: 20 lists and 8 held back made of 480 passages and sentences of them"]
        assert len(retriever.asked) == 28
        assert all(text.startswith(("One sentence", "Another one")) and text.endswith(".") for text in retriever.asked)

    def test_a_log_of_questions_gives_the_wording_but_for_excluded_ones(self, tmp_path: Path) -> None:
        (tmp_path / "log.txt").write_text("who wrote it?\n\nWhere is it\nwho wrote it?\n")
        (tmp_path / "exclude.jsonl").write_text('{"text": "where is it?"}\n')
        retriever = Encoding()
        load(
            [], retriever,
            {"kind": "synthetic", "path": str(corpus(tmp_path / "corpus.jsonl", 120)), "lists": 5,
             "queries": str(tmp_path / "log.txt")},
            development=[lists_file(tmp_path)], exclude=[str(tmp_path / "exclude.jsonl")],
        )  # fmt: skip
        assert retriever.asked == ["who wrote it?"]

    def test_held_back_lists_are_worded_by_other_questions_than_training(self, tmp_path: Path) -> None:
        (tmp_path / "log.txt").write_text("".join(f"what of {number}?\n" for number in range(50)))
        source = {"kind": "synthetic", "path": str(corpus(tmp_path / "docs.jsonl", 600)), "lists": 80,
                  "queries": str(tmp_path / "log.txt")}  # fmt: skip
        data = load([], Encoding(), source, development=[{"hold_back": 20}])
        (trained,), (held_back,) = data.train, data.development
        worded = [{candidates.wording for candidates in part.lists} for part in (trained, held_back)]
        assert worded[0].isdisjoint(worded[1])
        assert (len(worded[0]) > 20, len(worded[1]) > 5) == (True, True)

    def test_a_development_question_in_the_log_words_no_training_list(self, tmp_path: Path) -> None:
        development = lists_file(tmp_path)
        asked = json.loads(Path(development["path"]).read_text().splitlines()[0])["query"]
        (tmp_path / "log.txt").write_text(f"{asked.upper()}\nwho wrote it?\n")
        source = {"kind": "synthetic", "path": str(corpus(tmp_path / "docs.jsonl", 200)), "lists": 40,
                  "queries": str(tmp_path / "log.txt")}  # fmt: skip
        told = list[str]()
        data = load(told, Encoding(), source, development=[development])
        assert {candidates.wording for candidates in data.train[0].lists} == {"who wrote it?"}
        assert any("list that asks a development question" in sentence for sentence in told)

    def test_without_a_path_it_is_made_of_the_other_sources(self, tmp_path: Path) -> None:
        told, retriever = list[str](), Encoding()
        data = load(
            told, retriever, lists_file(tmp_path, count=30, name="wiki"), {"kind": "synthetic", "lists": 7},
            development=[{"hold_back": 5}],
        )  # fmt: skip
        judged, synthetic = data.train
        assert (len(judged.lists), len(synthetic.lists), synthetic.name) == (25, 7, "synthetic")
        texts = {passage.text for candidates in judged.lists for passage in candidates.passages}
        assert {passage.text for candidates in synthetic.lists for passage in candidates.passages} <= texts
        assert set(retriever.asked) <= {candidates.query for candidates in judged.lists}
        assert [part.name for part in data.development] == ["wiki"]
        assert told[-1] == "synthetic: 7 lists made of 125 passages and 25 questions"

    @pytest.mark.parametrize(
        ("passages", "hold_back", "sentence"),
        [
            (99, False, "data: few-synthetic: synthetic lists need 100 distinct passages, a list's length; it has 99"),
            (499, True, "data: few-synthetic: synthetic lists need 500 distinct passages, of which development lists "
             "take a fifth (a list has 100); it has 499"),
        ],
    )  # fmt: skip
    def test_too_small_a_corpus_says_how_many_passages_are_needed(
        self, tmp_path: Path, passages: int, hold_back: bool, sentence: str
    ) -> None:
        source = {"kind": "synthetic", "path": str(corpus(tmp_path / "few.jsonl", passages))}
        development = [{"hold_back": 1}] if hold_back else [lists_file(tmp_path)]
        with pytest.raises(InvalidInputError) as caught:
            load([], Encoding(), source, development=development)
        assert str(caught.value) == sentence

    def test_a_limit_that_leaves_too_few_is_named_as_the_cause(self, tmp_path: Path) -> None:
        source = {"kind": "synthetic", "path": str(corpus(tmp_path / "many.jsonl", 600)), "passages": 300}
        with pytest.raises(InvalidInputError, match=r"need 500 distinct .*; its field passages lets 300 be read$"):
            load([], Encoding(), source, development=[{"hold_back": 1}])

    def test_what_is_neither_corpus_nor_log_is_named(self, tmp_path: Path) -> None:
        development = [lists_file(tmp_path)]
        for path, problem in (
            (tmp_path, "corpus: .* has neither corpus.jsonl nor corpus.jsonl.gz"),
            (tmp_path / "none.jsonl", r"none\.jsonl: cannot be read \(No such file"),
            (tmp_path / "lists.jsonl", r"lists\.jsonl:1: lacks the field _id"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                load([], Encoding(), {"kind": "synthetic", "path": str(path)}, development=development)
        docs = str(corpus(tmp_path / "docs.jsonl", 100))
        (tmp_path / "empty.txt").write_text("\n \n")
        (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
        for name, problem in (
            ("empty.txt", r"empty\.txt: holds no question"),
            ("none.txt", r"none\.txt: cannot be read \(No such file"),
            ("bad.jsonl", r"bad\.jsonl:1: must have query or text, a string"),
        ):
            source = {"kind": "synthetic", "path": docs, "queries": str(tmp_path / name)}
            with pytest.raises(InvalidInputError, match=problem):
                load([], Encoding(), source, development=development)


def lists_file(folder: Path, *, count: int = 2, name: str = "lists") -> dict[str, Any]:
    lines = [
        {
            "id": f"q{number}",
            "query": f"question {number}?",
            "passages": [{"text": f"of {number}, {slot}", "label": int(slot == 0)} for slot in range(5)],
        }
        for number in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "listwise", "path": str(folder / f"{name}.jsonl")}


def test_passages_are_drawn_by_their_texts_and_a_fifth_kept_apart() -> None:
    passages = [TrainingPassage("", f"passage {row}") for row in range(60)]
    pool, apart = drawn_pools([*passages, *passages[:5]], 1000, divided=True)
    assert (len(pool), len(apart)) == (48, 12)
    assert set(pool.passages) | set(apart.passages) == set(passages)
    again, none = drawn_pools(reversed(passages), 20, divided=False)
    assert (len(again), len(none)) == (20, 0)
    assert set(apart.passages) < set(again.passages)  # of the smallest hashes


def test_questions_are_read_from_text_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("one\n  two \n\none\n" + "x" * 9000 + "\n")
    (tmp_path / "log.jsonl").write_text('{"query": "one", "text": "no"}\n{"text": "two"}\n')
    assert logged_questions(tmp_path / "log.txt") == logged_questions(tmp_path / "log.jsonl") == ["one", "two"]


def test_a_log_may_begin_with_a_mark_or_be_gzipped(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"\xef\xbb\xbfwho?\r\nwhat?\r\nwho?\r\n")
    with gzip.open(tmp_path / "log.txt.gz", "wt") as file:
        file.write("who?\nwhat?\n")
    assert logged_questions(tmp_path / "log.txt") == logged_questions(tmp_path / "log.txt.gz") == ["who?", "what?"]
    (tmp_path / "bad.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(InvalidInputError, match=r"bad\.txt:2: "):
        logged_questions(tmp_path / "bad.txt")


def test_a_sentence_of_a_passage_without_text_is_its_title() -> None:
    assert sentences([TrainingPassage("Etna", "")], 2) == ["Etna", "Etna"]
