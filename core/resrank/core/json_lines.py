"""Files of JSON objects, one per line, plain or gzipped, however large."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from resrank.core.errors import InvalidInputError


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
    line = 0
    try:
        with _open(path) as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    try:
                        yield line, _parse(raw)
                    except _BadLineError as bad:
                        raise error(f"{path}:{line}", str(bad)) from bad.__cause__
    except (OSError, EOFError, zlib.error) as failure:
        where = f"{path}:{line + 1}" if line else str(path)
        reason = getattr(failure, "strerror", None) or failure
        raise error(where, f"cannot be read ({reason})") from failure


class _BadLineError(ValueError):
    """A line is no JSON object; its text is what is wrong."""


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise _BadLineError(f"is not valid UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise _BadLineError(f"is not valid JSON ({error.msg} at column {error.colno})") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise _BadLineError(f"is not valid JSON ({error})") from error
    except RecursionError as error:
        raise _BadLineError("is JSON nested too deeply") from error
    if not isinstance(content, dict):
        raise _BadLineError(f"must be a JSON object, not {type(content).__name__}")
    return content
