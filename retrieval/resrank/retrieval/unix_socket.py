"""The Unix domain socket that a sidecar listens on beside its port: for the processes of one user on one machine."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.limits import MAX_SOCKET_PATH_BYTES

_CONNECT_S = 1.0


class UnixSocket:
    """The place of a socket in the file system, from its claim to its removal.

    gRPC binds it, and would silently take the place of a socket that another process listens on.

    Args:
        path: Where; made absolute.

    Attributes:
        path: Where, absolute.
        target: The same as gRPC writes it.

    Raises:
        InvalidInputError: The path is longer than the kernel takes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        size = len(os.fsencode(self.path))
        if size > MAX_SOCKET_PATH_BYTES:
            raise InvalidInputError(
                "socket", f"path {self.path} too long, in bytes", limit=MAX_SOCKET_PATH_BYTES, value=size
            )
        self.target = f"unix:{self.path}"
        self._made_folder = False
        self._bound = False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the place free, while the socket is bound inside: for this user alone from the first moment.

        A folder that does not exist is made with mode 0700; a socket that nobody listens on any more is removed.

        Raises:
            RetrievalError: A process listens there, something else lies there, or the folder cannot be written.
        """
        folder = self.path.parent
        try:
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True)
                self._made_folder = True
            self._remove_stale()
        except OSError as error:
            raise RetrievalError(f"cannot listen on {self.target}: {error.strerror}") from error
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)
        self._bound = True

    def remove(self) -> None:
        """Removes the socket and the folder, each where it was made here; harmless when repeated."""
        with suppress(OSError):
            if self._bound:
                self.path.unlink(missing_ok=True)
            if self._made_folder:
                self.path.parent.rmdir()

    def _remove_stale(self) -> None:
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise RetrievalError(f"cannot listen on {self.target}: what lies there is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_S)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except TimeoutError:
                pass  # somebody is there and too busy to accept
        raise RetrievalError(f"cannot listen on {self.target}: another process does; stop it or choose another path")
