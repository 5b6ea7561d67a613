"""Labelled lists in a file: JSON lines ``{id, query, passages: [{title?, text, label | score}]}``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.core.limits import MAX_ID_BYTES, MAX_PASSAGE_BYTES, MAX_QUERY_BYTES
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage

_KIND_OF = {"label": LabelKind.GRADES, "score": LabelKind.SCORES}


class ListwiseFileError(InvalidInputError):
    """A file of lists cannot be read; its ``field`` is ``file:line``, its ``problem`` what is wrong there."""


class ListwiseFile:
    """Reads a file of lists one by one, so that its size does not matter; every line is checked.

    Lists that are sound but have nothing to rank (a single passage, or all labels equal) are left out, and a passage
    that stands twice in a list with the same label is taken once: real data have both. The counts of the last run
    through the file say how many.

    Attributes:
        path: The file; read as gzip when its name ends in ``.gz``.
        source: Name that the lists carry.
        nothing_to_rank: Lists left out.
        repeated_passages: Passages left out.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source
        self.nothing_to_rank = 0
        self.repeated_passages = 0

    def __iter__(self) -> Iterator[CandidateList]:
        """Yields the lists in the file's order.

        Raises:
            ListwiseFileError: The file cannot be opened or unpacked or holds no lists, or a line breaks a rule.
        """
        self.nothing_to_rank = self.repeated_passages = 0
        first_line: dict[str, int] = {}
        kind: LabelKind | None = None
        for number, record in read_json_lines(self.path, ListwiseFileError):
            line = _Line(f"{self.path}:{number}", record)
            passages, found = line.passages()
            if kind is not None and found is not kind:
                raise line.bad(f"has {found}, but the lines before it have {kind}: use one file for each")
            kind = found
            candidates = CandidateList(
                id=line.text("id", MAX_ID_BYTES),
                query=line.text("query", MAX_QUERY_BYTES),
                passages=tuple(passages),
                labels=tuple(passages.values()),
                kind=kind,
                source=self.source,
            )
            if (earlier := first_line.setdefault(candidates.id, number)) != number:
                raise line.bad(f"id {candidates.id!r} stands in line {earlier} already")
            if not any(candidates.relevant):
                raise line.bad("has no relevant passage (no label above 0)")
            self.repeated_passages += line.repeated_passages
            if len(set(candidates.labels)) > 1:
                yield candidates
            else:
                self.nothing_to_rank += 1
        if not first_line:
            raise ListwiseFileError(str(self.path), "holds no lists")


class _Line:
    """One line, with its checks."""

    def __init__(self, place: str, record: dict[str, Any]) -> None:
        self._place = place
        self._record = record
        self.repeated_passages = 0

    def bad(self, problem: str, *, limit: object = None, value: object = None) -> ListwiseFileError:
        """The error that names this line."""
        return ListwiseFileError(self._place, problem, limit=limit, value=value)

    def text(self, field: str, max_bytes: int) -> str:
        """A field of the list that must have text."""
        value = self._string(self._record, field, field, max_bytes)
        if not value.strip():
            raise self.bad(f"{field} is empty")
        return value

    def passages(self) -> tuple[dict[TrainingPassage, float], LabelKind]:
        """The distinct passages with their labels, in order, and what the labels mean."""
        entries = self._record.get("passages")
        if not isinstance(entries, list):
            raise self.bad(
                "lacks the field passages"
                if "passages" not in self._record
                else f"passages must be an array, not {type(entries).__name__}"
            )
        if not entries:
            raise self.bad("passages is empty")
        labels: dict[TrainingPassage, float] = {}
        kinds = set()
        for index, entry in enumerate(entries):
            where = f"passages[{index}]"
            if not isinstance(entry, dict):
                raise self.bad(f"{where} must be an object, not {type(entry).__name__}")
            passage = self._passage(where, entry)
            kind, label = self._label(where, entry)
            kinds.add(kind)
            if passage not in labels:
                labels[passage] = label
            elif labels[passage] == label:
                self.repeated_passages += 1
            else:
                raise self.bad(
                    f"{where} repeats passages[{_first_index(entries, entry)}] with another label "
                    f"({label:g}, not {labels[passage]:g})"
                )
        if len(kinds) > 1:
            raise self.bad("passages have label in part and score in part: use one of them")
        return labels, kinds.pop()

    def _passage(self, where: str, entry: dict[str, Any]) -> TrainingPassage:
        # One byte for the space that joins title and text for the encoder.
        title = self._string(entry, "title", f"{where}.title", MAX_PASSAGE_BYTES - 1) if "title" in entry else ""
        text = self._string(entry, "text", f"{where}.text", MAX_PASSAGE_BYTES - 1 - len(title.encode()))
        passage = TrainingPassage(title, text)
        if not passage.encoder_text:
            raise self.bad(f"{where} has neither title nor text")
        return passage

    def _label(self, where: str, entry: dict[str, Any]) -> tuple[LabelKind, float]:
        fields = [field for field in _KIND_OF if field in entry]
        if len(fields) != 1:
            raise self.bad(f"{where} has both label and score" if fields else f"{where} has neither label nor score")
        (field,) = fields
        value = entry[field]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(f"{where}.{field} must be a number, not {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.bad(f"{where}.{field} must be a finite number, not {number}")
        if field == "label" and (number < 0 or not number.is_integer()):
            raise self.bad(
                f"{where}.label must be a grade, a whole number from 0, not {value}: a teacher's scores go into score"
            )
        return _KIND_OF[field], number

    def _string(self, record: dict[str, Any], field: str, name: str, max_bytes: int) -> str:
        if field not in record:
            raise self.bad(f"lacks the field {name}")
        value = record[field]
        if not isinstance(value, str):
            raise self.bad(f"{name} must be a string, not {type(value).__name__}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            problem = f"{name} is not valid Unicode: a lone surrogate at character {error.start + 1}"
            raise self.bad(problem) from error
        if size > max_bytes:
            raise self.bad(f"{name} is too long, in bytes", limit=max_bytes, value=size)
        return value


def _first_index(entries: list[Any], entry: dict[str, Any]) -> int:
    """Where the passage of an entry stands first; all entries before it have been checked."""
    content = (entry.get("title", ""), entry["text"])
    return next(index for index, other in enumerate(entries) if (other.get("title", ""), other["text"]) == content)
