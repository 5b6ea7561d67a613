"""Judged questions of a collection in BEIR layout; its corpus is ``resrank.core.corpus``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines

Qrels = Mapping[str, Mapping[str, int]]
"""Question id to passage id to relevance; passages that are not named are not relevant."""


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
        folder: Holds ``queries.jsonl`` (or ``.jsonl.gz``) and ``qrels/SPLIT.tsv``.
        split: Which judgements.
        qrels_file: Judgements from elsewhere, in the same form, instead of those of ``split``.

    Returns:
        The judged questions; others of ``queries.jsonl`` belong to another split.

    Raises:
        InvalidInputError: A file is missing or a line is wrong; the message names both.
    """
    qrels_file = qrels_file or folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(qrels_file)
    queries = {id_: text for id_, text in read_questions(folder) if id_ in qrels}
    if missing := qrels.keys() - queries.keys():
        raise InvalidInputError("qrels", f"{qrels_file} judges {min(missing)!r}, which is not in the queries")
    return Collection(queries, qrels)


def read_questions(folder: Path) -> Iterator[tuple[str, str]]:
    """Reads the questions of a folder in BEIR layout, judged or not.

    Args:
        folder: Holds ``queries.jsonl`` (or ``.jsonl.gz``).

    Yields:
        Id and text, in the file's order.

    Raises:
        InvalidInputError: The file is missing or cannot be read, or a line is wrong; the message names it.
    """
    file = next((path for name in ("queries.jsonl.gz", "queries.jsonl") if (path := folder / name).is_file()), None)
    if file is None:
        raise InvalidInputError("queries", f"{folder} has neither queries.jsonl nor queries.jsonl.gz")
    for line, record in read_json_lines(file):
        id_, text = record.get("_id"), record.get("text")
        if not isinstance(id_, str) or not isinstance(text, str):
            raise InvalidInputError(f"{file}:{line}", "must have _id and text, both strings")
        try:
            f"{id_}{text}".encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{file}:{line}", "is not valid Unicode: a lone surrogate") from error
        yield id_, text


def read_judgements(file: Path) -> Iterator[tuple[str, str, int]]:
    """Reads ``qrels/SPLIT.tsv``: a header, then question id, passage id and relevance in columns.

    Args:
        file: The file.

    Yields:
        Question id, passage id and relevance, in the file's order.

    Raises:
        InvalidInputError: The file is missing or cannot be read, or a line is wrong; the message names it.
    """
    if not file.is_file():
        raise InvalidInputError("qrels", f"{file} is missing")
    line = 0
    try:
        with file.open(encoding="utf-8", newline="") as text:
            for row in (rows := csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)):
                line = rows.line_num
                if row and line > 1:  # the first is the header: query-id, corpus-id, score
                    question, passage, score = row
                    yield question, passage, int(score)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("qrels", f"{file} cannot be read ({error})") from error
    except (ValueError, csv.Error):
        raise InvalidInputError("qrels", f"{file}, line {line}: not query-id, corpus-id, score") from None


def _read_qrels(file: Path) -> dict[str, dict[str, int]]:
    """Judgements by question, of those that have a relevant passage."""
    qrels: dict[str, dict[str, int]] = {}
    for question, passage, score in read_judgements(file):
        qrels.setdefault(question, {})[passage] = score
    return {question: judged for question, judged in qrels.items() if any(score > 0 for score in judged.values())}
