"""What a child says is heard, and so are its death and its silence, whoever else holds its end of the pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from resrank.core.errors import StackError
from resrank.stack.answering_process import AnsweringProcess
from support.answering_children import dies_unread, echo, falls_silent, last_words, leaves_a_holder

LONG_S = 60.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def start(stack: ExitStack, work: Callable[[Connection], None]) -> AnsweringProcess:
    child = AnsweringProcess("the child", work)
    stack.callback(child.close)
    return child


def test_a_child_answers_and_ends_with_its_pipe(tmp_path: Path) -> None:
    child = AnsweringProcess("the child", echo, tmp_path / "ended")
    for message in ("one", ("two", 2)):
        child.send(message)
        assert child.receive(LONG_S) == message
    child.close(LONG_S)
    assert (tmp_path / "ended").exists()


def test_what_a_child_said_before_it_died_is_heard(stack: ExitStack) -> None:
    child = start(stack, last_words)
    assert child.receive(LONG_S) == "word"
    with pytest.raises(StackError, match=r"^the child exited with status 3$"):
        child.receive(LONG_S)
    child.send("nobody reads this")
    with pytest.raises(StackError, match=r"^the child exited with status 3$"):
        child.receive(LONG_S)


def test_a_child_that_dies_with_a_message_unread_is_an_error(stack: ExitStack) -> None:
    child = start(stack, dies_unread)
    child.send("unread")
    with pytest.raises(StackError, match=r"^the child exited with status 4$"):
        child.receive(LONG_S)


def test_a_death_is_noticed_while_another_process_holds_the_pipe(stack: ExitStack) -> None:
    child = start(stack, leaves_a_holder)
    with pytest.raises(StackError, match=r"^the child exited with status 6$"):
        child.receive(LONG_S)


def test_a_silent_child_is_ended_and_tells_where_it_stood(stack: ExitStack, capfd: pytest.CaptureFixture[str]) -> None:
    child = start(stack, falls_silent)
    process = psutil.Process(child.pid)
    assert child.receive(LONG_S) == "last"
    with pytest.raises(StackError, match=r"^the child has not answered for 1 s and was ended"):
        child.receive(1.0)
    assert not process.is_running()
    assert "in falls_silent" in capfd.readouterr().err
