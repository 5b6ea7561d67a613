"""What commands write: control characters of foreign texts are shown and not sent, whatever the terminal's encoding."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment

_LAYOUT = "\n\t"
# C0, DEL and C1; line and paragraph separators; what turns the direction of writing around (Unicode's bidi controls);
# halves of pairs, which no encoding has.
_UNSHOWN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_UNSHOWN}]")
_CONTROL_IN_LINES = re.compile(f"(?![{_LAYOUT}])[{_UNSHOWN}]")
_WIDEST = 1000
_OUTPUT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def visible(text: str, *, lines: bool = False) -> str:
    r"""A text with its control characters written out, ``\x1b`` for the one that begins a terminal's commands.

    Args:
        text: Any text: a stored passage's, a caller's, a log's.
        lines: Whether line breaks and tabs are layout and stay.
    """
    return (_CONTROL_IN_LINES if lines else _CONTROL).sub(lambda found: _escaped(found[0]), text)


class Terminal(Console):
    """A console on which no text can do more than be read; styles and progress bars are rich's own and do."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does it, with control characters in texts written out."""
        for segment in super().render(renderable, options):
            if segment.control is None and _CONTROL_IN_LINES.search(segment.text):
                yield Segment(visible(segment.text, lines=True), segment.style)
            else:
                yield segment


class FullWidth:
    """A table of figures as wide as it is, on a narrower terminal too: a figure without its heading says nothing.

    Args:
        table: What to show; print it with ``crop=False``.
    """

    def __init__(self, table: RenderableType) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """As rich asks for it."""
        yield from console.render(self._table, options.update(width=_WIDEST))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As rich asks for it."""
        return Measurement.get(console, options.update(width=_WIDEST), self._table)


def print_json(value: Any) -> None:
    """Prints a value as JSON: readable where standard output can have it, and the same value where it cannot.

    Args:
        value: What :func:`json.dumps` takes.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    text = json.dumps(value, indent=2, ensure_ascii=not encoding.lower().startswith("utf"))
    print(_CONTROL_IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def prepare_output() -> None:
    """Has standard output and error write out what their encoding does not have, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes out what is still to be written, while an error can still be told.

    Raises:
        OSError: It cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def discard_output() -> None:
    """Forgets what could not be written, on which the interpreter would fail once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def os_sentence(error: OSError) -> str:
    """What an error of the operating system says to whoever called a command.

    Args:
        error: The error.
    """
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    return f"the output cannot be written ({reason})" if error.errno in _OUTPUT_ERRNOS else reason


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
