"""Mined candidates are what brute force and the project's own index find, no more and no less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.stack.training_index import FlatIndexes
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.mining import Retriever, mine
from resrank.training.pool import JudgedQuestion, PassagePool, PoolBuilder, merged_grades, pooled
from support.exact_index import ExactIndex, ExactIndexes


def random_vectors(rows: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dimension)) * rng.uniform(0.1, 9, size=(rows, 1))  # lengths must not matter


def pool_of(*texts: str) -> PassagePool:
    builder = PoolBuilder()
    for text in texts:
        builder.add(TrainingPassage("", text))
    return builder.build()


class Encoder:
    """Gives each text the vector it is told; counts what it is asked."""

    def __init__(self, vectors: dict[str, Sequence[float]], identity: str = "one") -> None:
        self.vectors = vectors
        self.identity = identity
        self.passages_encoded = 0

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.passages_encoded += len(texts)
        return np.array([self.vectors[text] for text in texts], np.float16)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], np.float32)


@pytest.mark.parametrize("size", [1, 40, 2500])
def test_the_index_agrees_with_brute_force(size: int) -> None:
    vectors, queries = random_vectors(size).astype(np.float16), random_vectors(20, seed=1).astype(np.float32)
    depth = min(size, 30)
    with FlatIndexes().over(vectors) as index:
        found = index.nearest(queries, depth)

    assert found.tolist() == ExactIndex(vectors).nearest(queries, depth).tolist()
    assert found.dtype == np.int32


class TestRetriever:
    TEXTS = ("north", "east", "south", "west")
    VECTORS: ClassVar = {
        "north": [0, 1],
        "east": [1, 0.1],
        "south": [0, -1],
        "west": [-1, 0.2],
        "up?": [0, 2],
        "right?": [3, 0],
    }

    def test_finds_the_nearest_and_no_more_than_there_are(self) -> None:
        retriever = Retriever(Encoder(self.VECTORS), ExactIndexes())
        pool = pool_of(*self.TEXTS)

        assert retriever.retrieve(pool, ["up?", "right?"], 2).tolist() == [[0, 3], [1, 0]]
        assert retriever.retrieve(pool, ["up?"], 99).tolist() == [[0, 3, 1, 2]]

    def test_a_pool_is_encoded_once_for_two_splits(self) -> None:
        encoder = Encoder(self.VECTORS)
        retriever = Retriever(encoder, ExactIndexes())
        for query in ("up?", "right?"):
            retriever.retrieve(pool_of(*self.TEXTS), [query], 2)
        assert encoder.passages_encoded == 4
        retriever.retrieve(pool_of("north", "east"), ["up?"], 2)
        assert encoder.passages_encoded == 6

    def test_remembers_until_anything_changes(self, tmp_path: Path) -> None:
        pool, queries = pool_of(*self.TEXTS), ["up?", "right?"]

        def encoded(
            pool: PassagePool = pool, queries: Sequence[str] = queries, depth: int = 3, identity: str = "one"
        ) -> int:
            encoder = Encoder(self.VECTORS, identity)
            found = Retriever(encoder, ExactIndexes(), tmp_path / "cache").retrieve(pool, queries, depth)
            fresh = Retriever(Encoder(self.VECTORS), ExactIndexes()).retrieve(pool, queries, depth)
            assert found.tolist() == fresh.tolist()
            return encoder.passages_encoded

        assert [encoded(), encoded()] == [4, 0]
        assert encoded(pool=pool_of(*reversed(self.TEXTS))) == 4
        assert encoded(queries=queries[::-1]) == 4
        assert encoded(depth=2) == 4
        assert encoded(identity="two") == 4
        encoder = Encoder(self.VECTORS)
        Retriever(encoder, FlatIndexes(), tmp_path / "cache").retrieve(pool, queries, 3)
        assert encoder.passages_encoded == 4
        assert encoded() == 0
        assert not list((tmp_path / "cache").glob("*.tmp"))

    @pytest.mark.parametrize("damage", [b"", b"not an array", "cut", "foreign"])
    def test_what_is_remembered_is_checked(
        self, tmp_path: Path, damage: bytes | str, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = pool_of(*self.TEXTS)
        first = Retriever(Encoder(self.VECTORS), ExactIndexes(), tmp_path).retrieve(pool, ["up?"], 3)
        (file,) = tmp_path.iterdir()
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-30])
        elif damage == "foreign":
            np.save(file, np.array([[0, 1, 99]], np.int32))
        else:
            file.write_bytes(damage)

        again = Retriever(Encoder(self.VECTORS), ExactIndexes(), tmp_path).retrieve(pool, ["up?"], 3)

        assert again.tolist() == first.tolist()
        assert "is damaged and made anew" in caplog.text
        assert np.load(file).tolist() == first.tolist()

    def test_a_cache_that_cannot_be_written_is_told_and_no_failure(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache").write_text("a file where a folder should be")
        retriever = Retriever(Encoder(self.VECTORS), ExactIndexes(), tmp_path / "cache" / "below")

        assert retriever.retrieve(pool_of(*self.TEXTS), ["up?"], 1).tolist() == [[0]]
        assert "mined candidates are not remembered" in caplog.text

    @pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [0, 0]])
    def test_vectors_without_a_direction_are_refused(self, bad: list[float]) -> None:
        for text, what in (("south", "passage 2"), ("up?", "query 0")):
            retriever = Retriever(Encoder({**self.VECTORS, text: bad}), ExactIndexes())
            with pytest.raises(InvalidInputError, match=rf"encoder: gives a vector .* for 1 texts, first for {what}"):
                retriever.retrieve(pool_of(*self.TEXTS), ["up?"], 2)


def test_mined_lists_are_what_was_retrieved_in_its_order() -> None:
    pool = pool_of("a", "b", "c", "d")
    questions = [
        JudgedQuestion("found", "one", {2: 2.0, 0: 1.0}),
        JudgedQuestion("too deep", "two", {3: 1.0}),
        JudgedQuestion("all relevant", "three", {0: 1.0, 1: 1.0}),
        JudgedQuestion("unequal", "four", {0: 1.0, 1: 2.0}),
    ]
    mined = mine(questions, pool, np.array([[1, 2], [0, 1], [1, 0], [0, 1]], np.int32), "wiki")

    passages = [TrainingPassage("", text) for text in "abcd"]
    assert mined.lists == (
        # Passage a is relevant too, but was not retrieved: it must not be added.
        CandidateList("found", "one", (passages[1], passages[2]), (0.0, 2.0), LabelKind.GRADES, "wiki"),
        CandidateList("unequal", "four", (passages[0], passages[1]), (1.0, 2.0), LabelKind.GRADES, "wiki"),
    )
    assert (mined.without_relevant, mined.nothing_to_rank) == (1, 1)


def test_the_passages_of_lists_are_pooled_once_with_their_grades() -> None:
    shared, alone = TrainingPassage("Shared", "text"), TrainingPassage("", "alone")
    same_text = TrainingPassage("Shared text", "")  # to the encoder it is the same passage
    first = CandidateList("1", "one", (shared, alone), (1.0, 0.0), LabelKind.GRADES, "s")
    second = CandidateList("2", "two", (alone, same_text), (0.0, 3.0), LabelKind.GRADES, "s")
    pool, questions = pooled([first, second])

    assert pool.passages == (shared, alone)
    assert pool.texts() == ["Shared text", "alone"]
    assert [(question.id, question.query, dict(question.grades)) for question in questions] == [
        ("1", "one", {0: 1.0, 1: 0.0}),
        ("2", "two", {1: 0.0, 0: 3.0}),
    ]


def test_pools_differ_when_their_texts_or_order_do() -> None:
    assert pool_of("a", "b").sha256 == pool_of("a", "b", "a").sha256
    assert len({pool_of(*texts).sha256 for texts in (("a", "b"), ("b", "a"), ("ab",), ("a",), ("a", "b", "c"))}) == 5


def test_of_two_grades_for_one_text_the_higher_counts_and_none_is_below_0() -> None:
    assert merged_grades([(3, 1), (5, -2), (3, 2), (3, 0)]) == {3: 2, 5: 0}
