from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.core.errors import IndexFolderError
from resrank.retrieval.local.lock import LOCK_FILE, FolderLock, Owner, read_owner

HOLD = """
import sys, pathlib
from resrank.retrieval.local.lock import FolderLock
lock = FolderLock.acquire(pathlib.Path(sys.argv[1]))
lock.announce("127.0.0.1:1234")
print("held", flush=True)
sys.stdin.read()
"""

ASK = """
import sys, pathlib
from resrank.retrieval.local.lock import read_owner
print("asking", flush=True)
while True:
    read_owner(pathlib.Path(sys.argv[1]))
"""


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert read_owner(tmp_path) == Owner(pid=holder.pid, address="127.0.0.1:1234")
        with pytest.raises(IndexFolderError, match=rf"process {holder.pid}, which serves it at 127.0.0.1:1234"):
            FolderLock.acquire(tmp_path)
        holder.kill()
        holder.wait()
        # The kernel gave the lock back; what the dead process wrote means nothing.
        assert (tmp_path / LOCK_FILE).read_text() != ""
        assert read_owner(tmp_path) is None
        FolderLock.acquire(tmp_path).release()


def test_release_lets_the_next_one_in(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path)
    assert read_owner(tmp_path) == Owner(pid=os.getpid(), address=None)
    lock.release()
    assert read_owner(tmp_path) is None
    FolderLock.acquire(tmp_path).release()


def test_nobody_owns_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert read_owner(tmp_path / "nowhere") is None


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexFolderError, match=r"file/lock cannot be read \(Not a directory\)"):
        read_owner(tmp_path / "file")


def test_asking_for_the_owner_does_not_shut_out_an_owner(tmp_path: Path) -> None:
    FolderLock.acquire(tmp_path).release()
    command = [sys.executable, "-c", ASK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        try:
            assert asker.stdout is not None
            assert asker.stdout.readline() == "asking\n"
            for _ in range(20):
                FolderLock.acquire(tmp_path).release()
        finally:
            asker.kill()
