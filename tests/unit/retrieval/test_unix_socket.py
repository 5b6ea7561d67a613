"""The place of a socket: taken from nobody who uses it, open to nobody else, and left as it was found."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.retrieval.unix_socket import UnixSocket


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose path is short enough, wherever pytest keeps its own."""
    link = Path("/tmp") / f"s{os.getpid()}"
    link.symlink_to(tmp_path)
    yield link
    link.unlink()


def listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_socket_and_folder_are_the_users_alone_and_are_removed(short: Path) -> None:
    place = UnixSocket(short / "own" / "s")
    with place.claimed():
        listening = listen(place.path)
    with listening:
        assert (mode(place.path), mode(place.path.parent)) == (0o600, 0o700)
        assert place.target == f"unix:{short}/own/s"
    place.remove()
    place.remove()
    assert list(short.iterdir()) == []


def test_a_folder_that_was_there_stays(short: Path) -> None:
    (short / "neighbour").touch()
    place = UnixSocket(short / "s")
    with place.claimed(), listen(place.path):
        pass
    place.remove()
    assert [path.name for path in short.iterdir()] == ["neighbour"]


def test_what_a_dead_process_left_is_taken_over(short: Path) -> None:
    listen(short / "s").close()
    place = UnixSocket(short / "s")
    with place.claimed(), listen(place.path):
        assert place.path.is_socket()


def test_a_socket_in_use_and_a_file_are_refused_and_left_alone(short: Path) -> None:
    with listen(short / "s") as other:
        place = UnixSocket(short / "s")
        with (
            pytest.raises(RetrievalError, match="another process does; stop it or choose another path"),
            place.claimed(),
        ):
            pass
        place.remove()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(short / "s"))
            other.accept()[0].close()
    (short / "file").write_text("thesis")
    with pytest.raises(RetrievalError, match="not a socket"), UnixSocket(short / "file").claimed():
        pass
    assert (short / "file").read_text() == "thesis"


def test_a_path_longer_than_the_kernel_takes_is_named_with_the_limit() -> None:
    UnixSocket(Path("/" + "x" * 106))
    with pytest.raises(InvalidInputError, match=r"socket: path .* too long, in bytes \(limit 107, got 108\)"):
        UnixSocket(Path("/" + "x" * 107))


def test_a_folder_that_cannot_be_made_is_told(short: Path) -> None:
    (short / "file").touch()
    with pytest.raises(RetrievalError, match="Not a directory"), UnixSocket(short / "file" / "s").claimed():
        pass
