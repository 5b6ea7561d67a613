from __future__ import annotations

import threading

import pytest

from resrank.retrieval.local.rwlock import ReadWriteLock

WAIT_S = 5.0
NOT_YET_S = 0.05


def test_readers_share() -> None:
    lock = ReadWriteLock()
    together = threading.Barrier(3, timeout=WAIT_S)

    def read() -> None:
        with lock.read():
            together.wait()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not together.broken


def test_a_waiting_writer_goes_before_new_readers_and_is_alone() -> None:
    lock = ReadWriteLock()
    order: list[str] = []
    asked = threading.Event()

    def write() -> None:
        asked.set()
        with lock.write():
            order.append("write")

    def read() -> None:
        with lock.read():
            order.append("read")

    with lock.read():
        writer = threading.Thread(target=write)
        writer.start()
        asked.wait(WAIT_S)
        while not lock._writers_waiting:
            pass
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(NOT_YET_S)
        assert order == []
    for thread in (writer, reader):
        thread.join(WAIT_S)
    assert order == ["write", "read"]


def test_an_error_inside_gives_the_lock_back() -> None:
    lock = ReadWriteLock()
    for hold in (lock.read, lock.write):
        with pytest.raises(KeyError), hold():
            raise KeyError
    with lock.write():
        pass
