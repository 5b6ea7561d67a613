"""Where a store is: one URL, whose password is never shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from resrank.core.errors import InvalidInputError

LOCAL = "local"
STORE_VARIABLE = "RESRANK_STORE"
INDEX_VARIABLE = "RESRANK_INDEX"
HIDDEN = "***"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PARAMETER = re.compile(r"([^=&]*=)[^&]*")
_SECRET = re.compile(r"(?i)password|token|secret")
_NO_FOLDER = re.compile(r"(?i)[a-z][a-z0-9+.-]+:/|.*\bpassword\s*=")
"""A URL that lacks a stroke, and what libpq takes in place of a URL: read as a folder's name, it would be shown."""


@dataclass(frozen=True)
class StoreUrl:
    """The URL of a store. Its text, that of ``repr``, too, has no password: a local store's is its folder.

    Attributes:
        scheme: Which kind of store it names.
        secret: The URL as it was given.
    """

    scheme: str
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads a URL.

        Raises:
            InvalidInputError: It has no scheme, or one of its parts can be read in two ways. What was given is not
                repeated: it may hold a password.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or not _SCHEME.fullmatch(scheme):
            raise InvalidInputError("store", "must be a URL: local:///DIR, postgresql://HOST/DATABASE or milvus://HOST")
        if re.search(r"\s", url) or not url.isprintable():
            raise InvalidInputError("store", "must be printable and without white space: percent-encode what is not")
        if "@" in re.sub(r"^[^@/?#]*@", "", rest):
            # A password with one of these would be read as host or path, and would then be shown as such.
            raise InvalidInputError("store", "percent-encode @, /, ?, # and : in the URL's user and password")
        host = re.sub(r"\[[^\]]*\]", "", re.split("[/?#]", rest)[0].rpartition("@")[2])
        if not all(port.isdecimal() for port in re.findall(":([^,]*)", host)):
            # A user and password without the host behind them would be read as host and port.
            raise InvalidInputError("store", "must have a number as port: SCHEME://USER:PASSWORD@HOST:PORT/DATABASE")
        parsed = cls(scheme, url)
        if scheme == LOCAL:
            _ = parsed.folder
        return parsed

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads a URL, or a folder's name, which is short for a local store's.

        Raises:
            InvalidInputError: It is empty, or see :meth:`parse`.
        """
        if not text:
            raise InvalidInputError("store", "the path is empty: name a folder or a URL")
        if "://" in text:
            return cls.parse(text)
        if _NO_FOLDER.match(text):
            raise InvalidInputError("store", "must be a folder, or a URL with ://, as postgresql://HOST/DATABASE")
        return cls.local(Path(text))

    @classmethod
    def local(cls, folder: Path) -> Self:
        """That of an index folder."""
        return cls(LOCAL, f"{LOCAL}://{quote(os.fsencode(folder.absolute()))}")

    @property
    def folder(self) -> Path:
        """The folder of a local store.

        Raises:
            InvalidInputError: The URL names a host, or no folder.
        """
        path = self.secret.removeprefix(f"{LOCAL}://")
        if not path.startswith("/"):
            raise InvalidInputError("store", f"a local store is local:///DIR, with an absolute folder, not {path!r}")
        folder = unquote(path, errors="surrogateescape")
        if "\0" in folder:
            raise InvalidInputError("store", f"a folder's name has no NUL character, as {path!r}")
        return Path(folder)

    @property
    def password(self) -> str | None:
        """What stands between user and host, decoded; None where nothing does."""
        user, separator, _ = urlsplit(self.secret).netloc.rpartition("@")
        _, colon, password = user.partition(":")
        return unquote(password) if separator and colon else None

    def __str__(self) -> str:
        if self.scheme == LOCAL:
            return str(self.folder)
        scheme, _, rest = self.secret.partition("://")
        address, query, parameters = rest.partition("?")
        address = re.sub(r"^([^@/:]*):[^@/]*@", rf"\1:{HIDDEN}@", address)
        parameters = _PARAMETER.sub(_without_secret, parameters)
        return f"{scheme}://{address}{query}{parameters}"


def _without_secret(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}{HIDDEN}" if _SECRET.search(unquote(parameter[1])) else parameter[0]
