"""Children of :class:`~resrank.stack.answering_process.AnsweringProcess`, here because a child imports what it runs."""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event


def echo(parent: Connection, ended: Path) -> None:
    with suppress(EOFError):
        while True:
            parent.send(parent.recv())
    ended.touch()


def last_words(parent: Connection) -> None:
    parent.send("word")
    os._exit(3)


def dies_unread(parent: Connection) -> None:
    parent.poll(None)
    os._exit(4)


def leaves_a_holder(parent: Connection) -> None:
    """Dies while a process forked from it holds the pipe's end, and all else that a parent could wait for."""
    if os.fork() == 0:
        parent.poll(None)  # until the parent closes its end
        os._exit(0)
    os._exit(6)


def falls_silent(parent: Connection) -> None:
    parent.send("last")
    Event().wait()
