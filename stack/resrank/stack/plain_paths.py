"""Paths that a shell and Triton's Python backend take for what they are."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


class PlainPaths:
    """Gives folders a second path without a blank, a quote or a letter beyond ASCII, where their own has one.

    Triton 2.51 starts a Python model through a shell, with the paths of the repository and of its backends unquoted:
    behind a blank the stub takes a part of the path for a number, waits out its start-up timeout and dies of ``stol``,
    and whatever else a shell reads in a path is executed.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._links = 0

    def plain(self, path: Path) -> Path:
        """The path, absolute, or that of a link to it in a temporary folder."""
        path = path.absolute()
        if _PLAIN.fullmatch(str(path)):
            return path
        if self._folder is None:
            usual = tempfile.gettempdir()
            self._folder = tempfile.TemporaryDirectory(
                prefix="resrank-paths-", dir=usual if _PLAIN.fullmatch(usual) else "/tmp"
            )
        self._links += 1
        link = Path(self._folder.name, str(self._links))
        link.symlink_to(path, target_is_directory=True)
        return link

    def remove(self) -> None:
        """Removes the links; harmless when repeated."""
        if self._folder is not None:
            self._folder.cleanup()
