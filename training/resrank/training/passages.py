"""Passages and questions without judgements: what synthetic lists are made of."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from resrank.core.corpus import corpus_file, read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.core.limits import MAX_QUERY_BYTES
from resrank.core.text_lines import decoded, read_lines
from resrank.training.lists import TrainingPassage
from resrank.training.pool import PassagePool, PoolBuilder

PassageReader = Callable[[Path], Iterable[TrainingPassage]]
"""Reads the passages at a path."""


def corpus_passages(path: Path) -> Iterator[TrainingPassage]:
    """Reads a corpus; passages with neither title nor text are passed over.

    Args:
        path: A folder in BEIR layout, or its corpus file alone.

    Raises:
        InvalidInputError: It is neither, or a line is wrong.
    """
    file = corpus_file(path) if path.is_dir() else path
    for passage in read_passages(file, on_empty=lambda id_: None):
        yield TrainingPassage(passage.title, passage.text)


def drawn_pools(passages: Iterable[TrainingPassage], limit: int, *, divided: bool) -> tuple[PassagePool, PassagePool]:
    """Takes some passages, and keeps a fifth of them apart, both by a hash of their texts.

    Args:
        passages: However many; those with one text count once.
        limit: How many are taken at most.
        divided: Whether any are kept apart.

    Returns:
        The passages to make training lists of, and those for development lists: none if not ``divided``.
    """

    def distinct() -> Iterator[tuple[bytes, TrainingPassage]]:
        seen: set[bytes] = set()
        for passage in passages:
            key = hashlib.sha256(passage.encoder_text.encode()).digest()
            if key not in seen:
                seen.add(key)
                yield key, passage

    chosen = [passage for _, passage in heapq.nsmallest(limit, distinct(), key=lambda item: item[0])]
    apart = -(-len(chosen) // 5) if divided else 0
    return _pool(chosen[apart:]), _pool(chosen[:apart])


def _pool(passages: Iterable[TrainingPassage]) -> PassagePool:
    builder = PoolBuilder()
    for passage in passages:
        builder.add(passage)
    return builder.build()


def logged_questions(path: Path) -> list[str]:
    """Reads a log of questions.

    Args:
        path: JSON lines with ``query`` or ``text`` where its name ends in ``.jsonl`` or ``.jsonl.gz``, else text with a
            question in each line, gzipped where its name ends in ``.gz``.

    Returns:
        The distinct questions; empty ones and those longer than a server would take are passed over.

    Raises:
        InvalidInputError: The file cannot be read, a line is wrong, or it holds no question.
    """
    is_json = path.name.removesuffix(".gz").endswith(".jsonl")
    texts = _json_questions(path) if is_json else _text_questions(path)
    found = dict.fromkeys(text.strip() for text in texts if text.strip() and len(text.encode()) <= MAX_QUERY_BYTES)
    if not found:
        raise InvalidInputError(f"data: {path}", "holds no question")
    return list(found)


def _json_questions(path: Path) -> Iterator[str]:
    for line, record in read_json_lines(path):
        text = record.get("query", record.get("text"))
        if not isinstance(text, str):
            raise InvalidInputError(f"{path}:{line}", "must have query or text, a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{path}:{line}", "is not valid Unicode: a lone surrogate") from error
        yield text


def _text_questions(path: Path) -> Iterator[str]:
    def bad(line: int | None, problem: str) -> InvalidInputError:
        return InvalidInputError(f"data: {path}" if line is None else f"{path}:{line}", problem)

    for number, line in read_lines(path, bad):
        yield decoded(number, line, bad)
