"""Rankings in files: TREC runs, read and written, and lists of candidates as JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.core.text_lines import decoded, read_lines

_LARGEST = float(np.finfo(np.float32).max)
_NO_COLUMN = re.compile(r"[ \t\n\v\f\r\0]|^\ufeff|^$")
"""What a column of a run cannot hold: the white space that separates columns in trec_eval (C's ``isspace``), C's end of
a string, and a byte order mark before it, which readers take away."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """One question's passages, best first.

    Attributes:
        ids: Of the passages, none twice.
        scores: FP32 [len(ids)], descending.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        """The number of passages."""
        return len(self.ids)


NO_RANKING = Ranking((), np.empty(0, np.float32))
"""Of a question for which nothing was found."""


def read_candidates(path: Path, retriever: str | None = None) -> dict[str, Ranking]:
    """Reads the candidates of each question.

    Args:
        path: JSON lines when its name ends in ``.jsonl`` (``{"qid": …, "docids": […], "retriever": …}``, the last being
            optional), else a TREC run (``qid Q0 docid rank score tag``, separated by white space); either may be
            gzipped (``.gz``).
        retriever: Which of several retrievers' lists, whatever the case of its letters; in a TREC run its tag.

    Returns:
        Question id to candidates, in the file's order of questions. A run's passages are sorted by score, as trec_eval
        does it, and equal scores by rank; JSON lines keep their order, and score by it.

    Raises:
        InvalidInputError: The file cannot be read, a line is wrong, a passage stands twice in a list, or it holds the
            lists of several retrievers and none or an unknown one is chosen.
    """
    is_json = path.name.removesuffix(".gz").endswith(".jsonl")
    by_retriever = _read_json(path) if is_json else _read_run(path)
    if not by_retriever:
        raise InvalidInputError("candidates", f"{path} holds no lists")
    return _chosen(path, by_retriever, retriever)


def check_run_ids(what: str, ids: Iterable[str]) -> None:
    """Refuses ids that cannot stand in a run, where no reader could tell the columns apart.

    Args:
        what: What they are ids of, for the message.
        ids: The ids.

    Raises:
        InvalidInputError: One is empty, or has white space in it.
    """
    for id_ in ids:
        if _NO_COLUMN.search(id_):
            raise InvalidInputError(
                "out", f"{what} id {id_!r} cannot be written into a TREC run, whose columns white space separates"
            )


def write_run(path: Path, rankings: Mapping[str, Ranking], tag: str) -> None:
    """Writes a TREC run.

    trec_eval reads scores in single precision and breaks ties by id; where scores are equal, the lower place therefore
    gets the next smaller number, so that whoever reads the file sees the same order.

    Args:
        path: The file.
        rankings: Question id to ranking.
        tag: Name of the run, without white space.

    Raises:
        InvalidInputError: An id has white space in it, see :func:`check_run_ids`.
    """
    check_run_ids("question", rankings)
    for ranking in rankings.values():
        check_run_ids("passage", ranking.ids)
    with path.open("w", encoding="utf-8") as file:
        for question, ranking in rankings.items():
            above = np.float32(np.inf)
            for rank, (passage, score) in enumerate(zip(ranking.ids, ranking.scores, strict=True), start=1):
                above = min(score, np.nextafter(above, np.float32(-np.inf)))
                file.write(f"{question} Q0 {passage} {rank} {above:.9g} {tag}\n")


_ByRetriever = dict[str, dict[str, Ranking]]


def _read_run(path: Path) -> _ByRetriever:
    bad = partial(_bad, path)
    rows: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for number, line in read_lines(path, bad):
        # On bytes: their split knows the white space of trec_eval alone, and none that Unicode has beside it.
        columns = [decoded(number, column, bad) for column in line.split()]
        if not columns:
            continue
        try:
            question, _, passage, rank, score, tag = columns
            value = float(score)
            place = int(rank)
        except ValueError:
            raise bad(number, "not qid Q0 docid rank score tag") from None
        if not abs(value) <= _LARGEST:  # so written, NaN is refused too
            raise bad(number, f"the score is {score}, which single precision cannot hold")
        passages = rows.setdefault(tag, {}).setdefault(question, {})
        if passage in passages:
            raise bad(number, f"passage {passage!r} stands twice among the candidates of {question!r}")
        passages[passage] = (value, place)
    found: _ByRetriever = {}
    for tag, questions in rows.items():
        found[tag] = {}
        for question, passages in questions.items():
            best_first = sorted(passages.items(), key=lambda item: (-item[1][0], item[1][1]))
            scores = np.array([score for _, (score, _) in best_first], np.float32)
            found[tag][question] = Ranking(tuple(passage for passage, _ in best_first), scores)
    return found


def _read_json(path: Path) -> _ByRetriever:
    found: _ByRetriever = {}
    for number, record in read_json_lines(path):
        question, passages, name = record.get("qid"), record.get("docids"), record.get("retriever", "")
        if not isinstance(passages, list) or not all(isinstance(part, str) for part in (question, name, *passages)):
            raise _bad(path, number, "must have qid and every one of docids as strings, and retriever if there is one")
        if len(set(passages)) < len(passages):
            twice = next(passage for place, passage in enumerate(passages) if passage in passages[:place])
            raise _bad(path, number, f"passage {twice!r} stands twice among the candidates of {question!r}")
        questions = found.setdefault(name, {})
        if question in questions:
            raise _bad(path, number, f"the candidates of {question!r} were given already")
        questions[str(question)] = Ranking(tuple(passages), np.arange(len(passages), 0, -1, dtype=np.float32))
    return found


def _chosen(path: Path, by_retriever: _ByRetriever, retriever: str | None) -> dict[str, Ranking]:
    names = ", ".join(by_retriever)
    if retriever is None:
        if len(by_retriever) > 1:
            raise InvalidInputError("retriever", f"{path} holds the lists of several, name one of: {names}")
        return next(iter(by_retriever.values()))
    for name, questions in by_retriever.items():
        if name.casefold() == retriever.casefold():
            return questions
    raise InvalidInputError("retriever", f"{path} has no lists of {retriever!r}, only of: {names}")


def _bad(path: Path, line: int | None, problem: str) -> InvalidInputError:
    return InvalidInputError("candidates", f"{path} {problem}" if line is None else f"{path}, line {line}: {problem}")
