"""Text files read line by line, plain or gzipped, however large."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from resrank.core.errors import InvalidInputError

_MARK = b"\xef\xbb\xbf"
"""U+FEFF in UTF-8, which some editors and exports put before a text (RFC 3629, section 6)."""

LineError = Callable[[int | None, str], InvalidInputError]
"""Makes the error of a line, from 1, or of the whole file where there is none, from what is wrong."""


def read_lines(path: Path, bad: LineError) -> Iterator[tuple[int, bytes]]:
    """Reads lines with their ends. A byte order mark at the start of the file is skipped.

    Args:
        path: The file; read as gzip when its name ends in ``.gz``.
        bad: Makes what is raised.

    Yields:
        The line's number, from 1, and its bytes.

    Raises:
        InvalidInputError: The file cannot be opened or unpacked, or a byte order mark stands before another line, where
            it would become part of what the line says.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(_MARK) if number == 1 else raw
                if line.startswith(_MARK):
                    raise bad(number, "begins with a byte order mark, as where files were joined: take it out")
                yield number, line
    except (OSError, EOFError, zlib.error) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise bad(number + 1 if number else None, f"cannot be read ({reason})") from failure


def decoded(number: int, line: bytes, bad: LineError) -> str:
    """A line as text.

    Args:
        number: Its number, for the error.
        line: Its bytes.
        bad: Makes what is raised.

    Raises:
        InvalidInputError: It is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise bad(number, f"is not valid UTF-8 (byte {error.start + 1} of the line)") from error


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
