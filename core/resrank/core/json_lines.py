"""Files of JSON objects, one per line, plain or gzipped, however large."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrank.core.errors import InvalidInputError
from resrank.core.text_lines import decoded, read_lines


def read_json_lines(
    path: Path, error: type[InvalidInputError] = InvalidInputError
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads objects line by line, skipping blank lines.

    Args:
        path: The file; read as gzip when its name ends in ``.gz``.
        error: What is raised; its ``field`` is ``file:line``.

    Yields:
        The line's number, from 1, and its object.

    Raises:
        InvalidInputError: The file cannot be opened or unpacked, or a line is no JSON object.
    """

    def bad(line: int | None, problem: str) -> InvalidInputError:
        return error(str(path) if line is None else f"{path}:{line}", problem)

    for line, raw in read_lines(path, bad):
        if raw.strip():
            text = decoded(line, raw, bad)
            try:
                content = _parse(text)
            except _BadLineError as problem:
                raise bad(line, str(problem)) from problem.__cause__
            yield line, content


def parse_json(text: str | bytes) -> Any:
    """As :func:`json.loads`, of a file whose author may be anybody.

    Args:
        text: The JSON.

    Raises:
        ValueError: It is none, or is nested more deeply than Python reads, which says RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


class _BadLineError(ValueError):
    """A line is no JSON object; its text is what is wrong."""


def _parse(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise _BadLineError(f"is not valid JSON ({error.msg} at column {error.colno})") from error
    except ValueError as error:  # nested too deeply, or a number of more digits than Python reads
        raise _BadLineError(f"is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise _BadLineError(f"must be a JSON object, not {type(content).__name__}")
    return content
