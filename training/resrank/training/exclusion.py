"""Evaluation questions and training questions kept apart; questions and documents recognised in other spellings."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from resrank.core.collection import read_judgements, read_questions
from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines

_SPLITS_TO_TRAIN_WITH = {"train", "dev"}  # BEIR's names of what a model may be trained and chosen on


class LeakError(InvalidInputError):
    """Training data holds questions that the model is to be evaluated on."""


class QuestionSource(Protocol):
    """Anything with a name and questions."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def queries(self) -> Sequence[str]:
        """The questions' texts."""


class Document(Protocol):
    """A passage, wherever it was read."""

    @property
    def title(self) -> str:
        """Its title; may be empty."""

    @property
    def text(self) -> str:
        """Its body."""

    @property
    def encoder_text(self) -> str:
        """What the encoder reads."""


def normalised(text: str) -> str:
    """A text reduced to what tells it apart from others: compared as such, spelling variants count as equal.

    NFKC (widths, ligatures, composed accents), case folded, invisible format characters dropped, and every run of
    punctuation and white space made one space. Symbols such as + and $ stay, so that C++ is not C.

    Args:
        text: Any text.

    Returns:
        The reduced text; empty when the text is punctuation only.
    """
    # Folding the case can undo the composition, so that it is done again.
    composed = unicodedata.normalize("NFKC", text.translate(_VISIBLE))
    folded = unicodedata.normalize("NFKC", composed.casefold())
    return " ".join(folded.translate(_SPACED).split())


def is_question_itself(query: str, passage: Document) -> bool:
    """Whether a passage is the question, word for word but for spelling: text, title or both.

    Args:
        query: The question.
        passage: One with the question's id. It says nothing about any other.
    """
    return normalised(query) in map(normalised, (passage.text, passage.title, passage.encoder_text))


def question_key(text: str) -> bytes:
    """Digest (32 bytes) under which two spellings of one question are the same question.

    Args:
        text: The question.
    """
    return _digest(text)


def document_key(encoder_text: str) -> bytes:
    """Digest (32 bytes) under which two spellings of one passage are the same document.

    Args:
        encoder_text: What the encoder reads of it (title and text).
    """
    return _digest(encoder_text)


def evaluation_questions(path: Path) -> list[str]:
    """The questions that must not be trained on.

    Args:
        path: One of

            - a folder in BEIR layout: all its questions but those that only ``qrels/train.tsv`` and ``qrels/dev.tsv``
              judge;
            - a file ``qrels/SPLIT.tsv`` (or ``.tsv.gz``) of such a folder: the questions it judges;
            - a file of JSON lines (``.jsonl``, ``.jsonl.gz``) with ``query`` or else ``text``: all of them.

    Returns:
        The questions, at least one.

    Raises:
        InvalidInputError: The path is missing, is none of these, holds no question, or judges one without a text, which
            could not be kept out.
    """
    if path.is_dir():
        open_to_training, evaluated = set[str](), set[str]()
        for qrels in sorted([*(path / "qrels").glob("*.tsv"), *(path / "qrels").glob("*.tsv.gz")]):
            split = qrels.name.partition(".tsv")[0]
            (open_to_training if split in _SPLITS_TO_TRAIN_WITH else evaluated).update(_judged(qrels))
        texts = _texts(path, evaluated)
        questions = [text for id_, text in texts.items() if id_ not in open_to_training - evaluated]
    elif path.name.removesuffix(".gz").endswith(".tsv"):
        judged = _judged(path)
        questions = [text for id_, text in _texts(path.parent.parent, judged).items() if id_ in judged]
    else:
        questions = list(_file_questions(path))
    if not questions:
        raise InvalidInputError("data.exclude", f"{path} holds no question that training could leak")
    return questions


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Evaluation questions of one path.

    Attributes:
        path: Where they stand.
        questions: By :func:`question_key`; of several spellings the last.
    """

    path: Path
    questions: Mapping[bytes, str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the questions, see :func:`evaluation_questions`."""
        return cls(path, {question_key(question): question for question in evaluation_questions(path)})


def refuse_leaks(sources: Iterable[QuestionSource], exclusions: Iterable[Exclusion]) -> None:
    """Stops before training on what is evaluated on.

    Args:
        sources: Everything that is trained on or selected by.
        exclusions: Evaluation data.

    Raises:
        LeakError: An excluded question stands in a source, in the same words or in another spelling.
    """
    exclusions = list(exclusions)
    for source in sources:
        spellings = {question_key(query): query for query in source.queries}
        for exclusion in exclusions:
            leaked = [key for key in exclusion.questions if key in spellings]
            if leaked:
                same_words = sum(spellings[key].strip() == exclusion.questions[key].strip() for key in leaked)
                raise LeakError(
                    "data.exclude",
                    f"{len(leaked)} of the {len(exclusion.questions)} questions of {exclusion.path} stand in the data "
                    f"source {source.name} ({same_words} word for word, the others but for case, punctuation or "
                    f"spacing), the first is {exclusion.questions[leaked[0]]!r}: take them out of the data, or set "
                    "data.leaks to leave_out",
                )


def _digest(text: str) -> bytes:
    # A text of punctuation alone is compared as it stands, or all of them would be one.
    return hashlib.sha256((normalised(text) or text.strip()).encode(errors="surrogatepass")).digest()


class _Translation(dict[int, str]):
    """A table for ``str.translate`` that looks each character's category up once."""

    def __init__(self, replacement: Mapping[str, str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = replaced = self._replacement.get(category, self._replacement.get(category[0], chr(code)))
        return replaced


_VISIBLE = _Translation({"Cf": ""})
_SPACED = _Translation({"P": " ", "Z": " ", "Cc": " ", "Cs": " "})  # Cs: half of a pair, which cannot be encoded


def _texts(folder: Path, judged: set[str]) -> dict[str, str]:
    """Id to text of a folder's questions, all that are judged among them."""
    texts = {question.id: question.text for question in read_questions(folder)}
    if missing := judged - texts.keys():
        raise InvalidInputError("data.exclude", f"{folder} judges {min(missing)!r}, which is not in its queries")
    return texts


def _file_questions(path: Path) -> Iterator[str]:
    for line, record in read_json_lines(path):
        text = record.get("query", record.get("text"))
        if not isinstance(text, str):
            raise InvalidInputError(f"{path}:{line}", "must have query or text, a string")
        yield text


def _judged(qrels: Path) -> set[str]:
    return {question for question, _, _ in read_judgements(qrels)}
