"""A child process that runs a function of this program and answers through a pipe."""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from resrank.core.errors import StackError
from resrank.stack.process import describe_exit

_LOOK_S = 1.0
_EXIT_S = 10.0


class AnsweringProcess:
    """Started at once; its death is noticed whoever else holds its end of the pipe, and so is its silence.

    One that dies while it writes a message larger than a pipe holds is not noticed where somebody else holds its end.

    Args:
        name: As in "the reranker with 2 threads".
        work: What the child does, given its end of the pipe. It ends when it returns, or lets through what reading and
            writing there raise once this process has closed the other end: ``EOFError`` and ``ConnectionError``.
        arguments: Further ones of ``work``; the child gets copies. Less than a pipe holds (64 KiB): a child that died
            before it took more would leave this process waiting (CPython's issue 118981).

    Attributes:
        name: As given.
    """

    def __init__(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a fork would share this process's memory and threads
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(work, theirs, *arguments), daemon=True)
        try:
            self._process.start()
        except BaseException:
            self._ours.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: object) -> None:
        """Tells the child something. Of one that has ended, :meth:`receive` tells."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._ours.send(message)

    def receive(self, limit_s: float = math.inf) -> Any:
        """Waits for the child's next message.

        Args:
            limit_s: For how long. Seconds in which the whole machine stood still count as one.

        Raises:
            StackError: It ended before it said anything, or was silent for so long and was ended; then the stacks of
                its threads are on the standard error output.
        """
        waited_s = 0.0
        while waited_s < limit_s:
            # A process that was forked from the child may hold the pipe and the sentinel open: hence the third look.
            ready = wait([self._ours, self._process.sentinel], _LOOK_S)
            ended = self._process.sentinel in ready or not self._process.is_alive()
            if self._ours.poll():  # also what it said before it ended
                try:
                    return self._ours.recv()
                except (EOFError, ConnectionResetError):
                    ended = True
            if ended:
                raise StackError(f"{self.name} {self._end()}")
            waited_s += _LOOK_S
        os.kill(self.pid, signal.SIGABRT)
        self._end()
        raise StackError(
            f"{self.name} has not answered for {limit_s:.0f} s and was ended; what it was doing is on standard error"
        )

    def close(self, grace_s: float = 0.0) -> None:
        """Ends the child.

        Args:
            grace_s: How long it may take to end by itself once its pipe is closed.
        """
        self._ours.close()
        self._end(grace_s)
        self._process.close()

    def _end(self, grace_s: float = _EXIT_S) -> str:
        """Sees to it that the process is gone, and says how it ended."""
        self._process.join(grace_s)
        self._process.kill()
        self._process.join()
        assert self._process.exitcode is not None
        return describe_exit(self._process.exitcode)


def _run(work: Callable[..., None], theirs: Connection, *arguments: object) -> None:
    """The child's whole life."""
    if sys.stderr is not None:
        faulthandler.enable()  # a crash, and the signal that ends a silent one, write the stacks of its threads
    with suppress(EOFError, ConnectionError):
        work(theirs, *arguments)
