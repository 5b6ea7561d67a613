"""Judged questions of a collection in BEIR layout; its corpus is ``resrank.core.corpus``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.core.limits import MAX_QUERY_BYTES
from resrank.core.text_lines import decoded, read_lines

Qrels = Mapping[str, Mapping[str, int]]
"""Question id to passage id to relevance; passages that are not named are not relevant."""

_RELEVANCE = re.compile(r"[+-]?[0-9]{1,9}")  # what a C int holds, in which trec_eval reads it
_HEADER = {"queryid", "query", "qid", "questionid", "question", "topicid", "topic"}
"""What the first column is called in a header, without case, hyphens and the like. Whatever else is no judgement is
refused: a first line that is passed over is a question that nobody misses, and training's exclusion list reads the same
files."""


@dataclass(frozen=True, slots=True)
class Question:
    """One line of ``queries.jsonl``.

    Attributes:
        place: ``file:line``, for messages.
        id: ``_id``.
        text: ``text``.
    """

    place: str
    id: str
    text: str


@dataclass(frozen=True)
class Collection:
    """Questions with judged passages.

    Attributes:
        queries: Question id to text, in the file's order.
        qrels: Judgements; every id in ``queries`` has at least one relevant passage.
    """

    queries: Mapping[str, str]
    qrels: Qrels


def load_collection(folder: Path, split: str = "test", *, qrels_file: Path | None = None) -> Collection:
    """Reads the questions and judgements of a folder in BEIR layout.

    Args:
        folder: Holds ``queries.jsonl`` and ``qrels/SPLIT.tsv``, each plain or gzipped (``.gz``).
        split: Which judgements.
        qrels_file: Judgements from elsewhere, in the same form, instead of those of ``split``.

    Returns:
        The judged questions; others of ``queries.jsonl`` belong to another split.

    Raises:
        InvalidInputError: A file is missing or a line is wrong, and the message names both; or no passage is judged
            relevant.
    """
    qrels_file = qrels_file or judgements_file(folder, split)
    qrels = _read_qrels(qrels_file)
    queries: dict[str, str] = {}
    for question in read_questions(folder):
        if question.id in qrels:
            _check(question)
            queries[question.id] = question.text
    if missing := qrels.keys() - queries.keys():
        raise InvalidInputError("qrels", f"{qrels_file} judges {min(missing)!r}, which is not in the queries")
    return Collection(queries, qrels)


def read_questions(folder: Path) -> Iterator[Question]:
    """Reads the questions of a folder in BEIR layout, judged or not.

    Args:
        folder: Holds ``queries.jsonl`` (or ``.jsonl.gz``).

    Yields:
        The questions in the file's order; one that stands there twice word for word only once.

    Raises:
        InvalidInputError: The file is missing or cannot be read, a line is wrong, or an id has two texts; the message
            names the line.
    """
    file = next((path for name in ("queries.jsonl.gz", "queries.jsonl") if (path := folder / name).is_file()), None)
    if file is None:
        raise InvalidInputError("queries", f"{folder} has neither queries.jsonl nor queries.jsonl.gz")
    first: dict[str, tuple[int, str]] = {}
    for line, record in read_json_lines(file):
        place = f"{file}:{line}"
        id_, text = record.get("_id"), record.get("text")
        if not isinstance(id_, str) or not isinstance(text, str):
            raise InvalidInputError(place, "must have _id and text, both strings")
        try:
            f"{id_}{text}".encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(place, "is not valid Unicode: a lone surrogate") from error
        earlier, known = first.setdefault(id_, (line, text))
        if known != text:
            raise InvalidInputError(
                place, f"_id {id_!r} stands in line {earlier} already, with another text: make ids unique"
            )
        if earlier == line:
            yield Question(place, id_, text)


def judgements_file(folder: Path, split: str) -> Path:
    """The judgements of a split: ``qrels/SPLIT.tsv``, or with ``.gz`` where only that is there."""
    plain = folder / "qrels" / f"{split}.tsv"
    packed = plain.with_name(f"{plain.name}.gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def read_judgements(file: Path) -> Iterator[tuple[str, str, int]]:
    """Reads ``qrels/SPLIT.tsv``: question id, passage id and relevance in columns, below a header or without one.

    Args:
        file: The file; read as gzip when its name ends in ``.gz``.

    Yields:
        Question id, passage id and relevance, in the file's order; one that stands there twice only once.

    Raises:
        InvalidInputError: The file is missing or cannot be read, a line is wrong, or two judge the same passage
            differently; the message names the line.
    """
    if not file.is_file():
        raise InvalidInputError("qrels", f"{file} is missing")
    bad = partial(_bad_judgement, file)
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for line, raw in read_lines(file, bad):
        if not raw.strip():
            continue
        columns = decoded(line, raw, bad).rstrip("\r\n").split("\t")
        relevance = columns[-1].strip()
        if len(columns) != 3 or not _RELEVANCE.fullmatch(relevance):
            if line > 1:
                raise bad(line, "not query-id, corpus-id, score")
            if len(columns) != 3 or re.sub(r"[\W_]", "", columns[0].casefold()) not in _HEADER:
                raise bad(line, "neither the header query-id, corpus-id, score nor a judgement")
            continue
        question, passage, grade = columns[0], columns[1], int(relevance)
        if not question or not passage:
            raise bad(line, "an id is empty")
        earlier, known = first.setdefault((question, passage), (line, grade))
        if known != grade:
            raise bad(line, f"judges {passage!r} for {question!r} {grade}, but line {earlier} says {known}")
        if earlier == line:
            yield question, passage, grade


def _bad_judgement(file: Path, line: int | None, problem: str) -> InvalidInputError:
    return InvalidInputError("qrels", f"{file} {problem}" if line is None else f"{file}, line {line}: {problem}")


def _check(question: Question) -> None:
    """Refuses what no encoder takes, where it still has a line."""
    if not question.text.strip():
        raise InvalidInputError(question.place, f"the text of {question.id!r} is empty or only whitespace")
    if (size := len(question.text.encode())) > MAX_QUERY_BYTES:
        raise InvalidInputError(
            question.place, f"the text of {question.id!r} is too long, in bytes", limit=MAX_QUERY_BYTES, value=size
        )


def _read_qrels(file: Path) -> dict[str, dict[str, int]]:
    """Judgements by question, of those that have a relevant passage: at least one."""
    qrels: dict[str, dict[str, int]] = {}
    for question, passage, score in read_judgements(file):
        qrels.setdefault(question, {})[passage] = score
    judged = {question: judged for question, judged in qrels.items() if any(score > 0 for score in judged.values())}
    if not judged:
        raise InvalidInputError("qrels", f"{file} judges no passage relevant (a score above 0)")
    return judged
