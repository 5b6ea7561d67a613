"""A corpus as BEIR lays it out: JSON lines with ``_id``, ``title`` and ``text``, plain or gzipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.core.limits import MAX_ID_BYTES, MAX_PASSAGE_BYTES
from resrank.core.metadata import FieldType, MetadataValue, check_metadata, metadata_value, type_of
from resrank.core.passage import content_sha256, encoder_text


class CorpusError(InvalidInputError):
    """A corpus file cannot be read; its ``field`` is ``file:line``, its ``problem`` what is wrong there."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One line of a corpus.

    Attributes:
        line: Its number in the file, from 1.
        id: ``_id``.
        title: ``title``, empty if absent.
        text: ``text``, empty if absent.
        metadata: ``metadata`` with strings, numbers, truth values and lists of strings as they are, without what is
            null, and with other lists and objects as the text of their JSON.
    """

    line: int
    id: str
    title: str
    text: str
    metadata: dict[str, MetadataValue] = field(default_factory=dict)

    @property
    def encoder_text(self) -> str:
        """What the encoder reads."""
        return encoder_text(self.title, self.text)

    @property
    def content_sha256(self) -> bytes:
        """Fingerprint of the content, as the index computes it."""
        return content_sha256(self.title, self.text, self.metadata)


def read_passages(path: Path, *, on_empty: Callable[[str], None] | None = None) -> Iterator[Passage]:
    """Reads a corpus line by line, skipping blank lines.

    Args:
        path: The file; read as gzip when its name ends in ``.gz``.
        on_empty: Called with the id of a passage that has neither title nor text, which is then left out: standard
            collections have some. None: such a passage is an error.

    Yields:
        Valid passages, in the file's order.

    Raises:
        CorpusError: The file cannot be opened or unpacked, or a line breaks a rule.
    """
    for line, record in read_json_lines(path, CorpusError):
        passage = _parse(path, line, record)
        if passage.encoder_text:
            yield passage
        elif on_empty is None:
            raise CorpusError(f"{path}:{line}", f"_id {passage.id!r} has neither title nor text")
        else:
            on_empty(passage.id)


def corpus_file(folder: Path) -> Path:
    """The corpus of a folder in BEIR layout.

    Args:
        folder: Holds ``corpus.jsonl.gz`` or ``corpus.jsonl``.

    Raises:
        InvalidInputError: It holds neither.
    """
    for name in ("corpus.jsonl.gz", "corpus.jsonl"):
        if (path := folder / name).is_file():
            return path
    raise InvalidInputError("corpus", f"{folder} has neither corpus.jsonl nor corpus.jsonl.gz")


@contextmanager
def rereadable(path: Path) -> Iterator[Path]:
    """A corpus as a file that can be read as often as needed: what a pipe gives is copied before anything is read.

    Args:
        path: A file, or a pipe such as ``/dev/stdin``.

    Yields:
        The path itself, or that of a copy that goes with the context. Errors name the path itself.
    """
    if not (path.is_fifo() or path.is_char_device() or path.is_socket()):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            with path.open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise CorpusError(str(path), f"cannot be read: {error.strerror}") from error
        try:
            yield copy
        except CorpusError as error:
            name = error.place.name.replace(str(copy), str(path), 1)
            raise CorpusError(name, error.problem, limit=error.limit, value=error.value) from error.__cause__


def check_corpus(path: Path, *, on_empty: Callable[[str], None] | None = None) -> tuple[set[str], set[int]]:
    """Reads a whole corpus without keeping it, so that a bad line is known before hours of encoding, not after.

    Args:
        path: The file.
        on_empty: As :func:`read_passages`.

    Returns:
        The ids of its passages, and the numbers of the lines that repeat an earlier passage word for word.

    Raises:
        CorpusError: As :func:`read_passages`, or an id has two contents, or a field of the metadata two types.
    """
    first: dict[str, tuple[int, bytes]] = {}
    repeated: set[int] = set()
    types: dict[str, tuple[FieldType, int]] = {}
    for passage in read_passages(path, on_empty=on_empty):
        for name, value in passage.metadata.items():
            known, line = types.setdefault(name, (type_of(value), passage.line))
            if known is not type_of(value):
                raise CorpusError(
                    f"{path}:{passage.line}",
                    f"metadata {name!r} is of type {type_of(value).value}, in line {line} of type {known.value}: "
                    "a field has one type",
                )
        digest = passage.content_sha256[:8]  # 64 bits tell two contents of one id apart
        line, content = first.setdefault(passage.id, (passage.line, digest))
        if line == passage.line:
            continue
        if content != digest:
            raise CorpusError(
                f"{path}:{passage.line}",
                f"_id {passage.id!r} stands in line {line} already, with other content: make ids unique",
            )
        repeated.add(passage.line)
    if not first:
        raise CorpusError(str(path), "holds no passages")
    return set(first), repeated


def _parse(path: Path, line: int, content: dict[str, Any]) -> Passage:
    def bad(problem: str) -> CorpusError:
        return CorpusError(f"{path}:{line}", problem)

    if "_id" not in content:
        raise bad("lacks the field _id")
    texts = {name: content.get(name, "") for name in ("_id", "title", "text")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise bad(f"{name} must be a string, not {type(value).__name__}")
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise bad(f"metadata must be an object, not {type(metadata).__name__}")
    passage = Passage(
        line=line,
        id=texts["_id"],
        title=texts["title"],
        text=texts["text"],
    )
    try:
        passage.metadata.update(_metadata(f"{path}:{line}", metadata))
        check_metadata(f"{path}:{line}", passage.id, passage.metadata)
    except InvalidInputError as error:
        raise CorpusError(error.place, error.problem, limit=error.limit, value=error.value) from None
    _check(passage, bad)
    return passage


def _metadata(place: str, given: dict[str, Any]) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for name, value in given.items():
        if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            metadata[name] = json.dumps(value, ensure_ascii=False)
        elif value is not None:
            metadata[name] = metadata_value(place, name, value)
    return metadata


def _check(passage: Passage, bad: Callable[[str], CorpusError]) -> None:
    sizes: dict[str, int] = {}
    for name, value in (("_id", passage.id), ("title and text", passage.title + passage.text)):
        try:
            sizes[name] = len(value.encode())
        except UnicodeEncodeError as error:
            raise bad(f"{name} is not valid Unicode: a lone surrogate at character {error.start + 1}") from error
    if not passage.id or "\0" in passage.id:
        raise bad("_id is empty or holds a NUL character")
    # One byte for the space that joins title and text for the encoder.
    limits = {"_id": MAX_ID_BYTES, "title and text": MAX_PASSAGE_BYTES - 1}
    for name, limit in limits.items():
        if sizes[name] > limit:
            raise bad(f"{name} of {passage.id[:80]!r} too long, in bytes (limit {limit}, got {sizes[name]})")
