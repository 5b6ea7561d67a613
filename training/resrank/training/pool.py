"""Passages that candidates are retrieved from, and the questions judged on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from resrank.training.lists import CandidateList, TrainingPassage


@dataclass(frozen=True, slots=True)
class PassagePool:
    """Distinct passages; a passage's row is its position.

    Attributes:
        passages: No two have the same encoder text.
        sha256: Hex digest of their texts in order.
    """

    passages: tuple[TrainingPassage, ...]
    sha256: str

    def __len__(self) -> int:
        """The number of passages."""
        return len(self.passages)

    def texts(self) -> list[str]:
        """What the encoder reads, row by row."""
        return [passage.encoder_text for passage in self.passages]


@dataclass(frozen=True, slots=True)
class JudgedQuestion:
    """A question with judgements of passages in a pool.

    Attributes:
        id: Distinct within its source.
        query: The question.
        grades: Row to grade, 0 for not relevant; passages that are not named are not relevant.
        own: Row of the passage that the question itself is, which is none of its candidates; None as a rule.
    """

    id: str
    query: str
    grades: Mapping[int, float]
    own: int | None = None


class PoolBuilder:
    """Collects passages, each once."""

    def __init__(self) -> None:
        self._passages: list[TrainingPassage] = []
        self._rows: dict[bytes, int] = {}

    def add(self, passage: TrainingPassage) -> int:
        """Takes a passage in if none with its encoder text is there, and tells the row of the one that is."""
        # By digest, since the text would stand in memory a second time.
        digest = hashlib.sha256(passage.encoder_text.encode()).digest()
        row = self._rows.setdefault(digest, len(self._passages))
        if row == len(self._passages):
            self._passages.append(passage)
        return row

    def build(self) -> PassagePool:
        """The pool of what was taken in."""
        return PassagePool(tuple(self._passages), hashlib.sha256(b"".join(self._rows)).hexdigest())


def pooled(lists: Iterable[CandidateList]) -> tuple[PassagePool, list[JudgedQuestion]]:
    """Makes the passages of graded lists a corpus, in which each list's own passages keep their grades.

    Args:
        lists: Lists with grades.

    Returns:
        The pool, and a question per list, in order.
    """
    builder = PoolBuilder()
    questions = [
        JudgedQuestion(
            candidates.id,
            candidates.query,
            merged_grades(
                (builder.add(passage), label)
                for passage, label in zip(candidates.passages, candidates.labels, strict=True)
            ),
        )
        for candidates in lists
    ]
    return builder.build(), questions


def merged_grades(judgements: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Grades by row; where a row is judged twice (two ids with one text), the higher grade counts.

    Args:
        judgements: Row and grade; a grade below 0 (spam, in some TREC judgements) counts as 0.
    """
    grades: dict[int, float] = {}
    for row, grade in judgements:
        grades[row] = max(grades.get(row, 0.0), grade)
    return grades
