"""API keys: several, each with a name, of which a file holds digests alone."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resrank.core.durability import replace_file
from resrank.core.errors import InvalidInputError

logger = logging.getLogger(__name__)

_PREFIX = "resrank_"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"(?P<name>{_NAME.pattern}) sha256:(?P<digest>[0-9a-f]{{64}})")
_FIELD = "keys"
_LOOK_EVERY_S = 1.0


class KeyFile:
    """Who may call, by a file of lines ``NAME sha256:DIGEST``; a change is noticed within a second.

    A key is 32 random bytes: of those a plain digest tells nothing, and a slow one would cost every request.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It cannot be read, or a line is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._names = read_keys(path)
        self._stamp = self._refused = _stamp(path)

    def name_of(self, key: str) -> str | None:
        """The name of a key; None of one that lets nobody in.

        Args:
            key: As it was sent.
        """
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY_S:
            self._looked = now
            self._reload()
        return self._names.get(_digest(key))

    def _reload(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._names, self._stamp = read_keys(self._path), stamp
        except InvalidInputError:  # half written, or gone: what was known goes on to hold
            if stamp != self._refused:
                logger.exception("the file of keys is wrong: the keys of before go on to hold")
            self._refused = stamp


def read_keys(path: Path) -> dict[str, str]:
    """Digest to name of every key in a file.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It cannot be read, a line is none, or a name stands there twice.
    """
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise InvalidInputError(_FIELD, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(_FIELD, f"{path} is no file of keys: it must hold ASCII") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InvalidInputError(_FIELD, f"{path}, line {number}: must be NAME sha256:DIGEST")
        if match["name"] in names.values():
            raise InvalidInputError(_FIELD, f"{path}, line {number}: {match['name']} is there already")
        names[match["digest"]] = match["name"]
    return names


def add_key(path: Path, name: str) -> str:
    """Makes a key, and adds its digest to a file, which is made where it is missing.

    Args:
        path: The file.
        name: Of the key.

    Returns:
        The key, which stands nowhere else.

    Raises:
        InvalidInputError: The name is none or is there already, or the file is no file of keys or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError("name", "must be 1 to 64 letters, digits, '.', '_' or '-'")
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.parent):
            before = ""
            if path.exists():
                if name in read_keys(path).values():
                    raise InvalidInputError("name", f"{path} has a key of the name {name}: remove its line first")
                before = path.read_text("ascii")
            separator = "\n" if before and not before.endswith("\n") else ""
            replace_file(path, f"{before}{separator}{name} sha256:{_digest(key)}\n", mode=0o600)
    except OSError as error:
        raise InvalidInputError(_FIELD, f"{path} cannot be written: {error.strerror}") from error
    return key


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lets one process at a time read and replace: of two additions at once neither is lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
