from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from resrank.core.errors import StackError
from resrank.stack import process as process_module
from resrank.stack.process import ManagedProcess, describe_exit

WAIT = "import time; time.sleep(600)"


def python(program: str, **options: object) -> ManagedProcess:
    return ManagedProcess("child", [sys.executable, "-c", program], **options)  # type: ignore[arg-type]


def says(process: ManagedProcess, word: str) -> None:
    """Waits until the child has said a word, so that a test does not signal it before it is set up."""
    process.is_ready = lambda: word in process.log_tail()  # type: ignore[method-assign]
    assert process.wait_ready()


def test_stop_ends_a_child_with_its_own_signal_handling() -> None:
    process = python(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('set', flush=True)\n"
        "time.sleep(600)"
    ).start()
    says(process, "set")
    assert process.stop() == 7
    assert process.stop() == 7


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    process = python(
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('set', flush=True)\n{WAIT}"
    ).start()
    says(process, "set")
    assert process.stop(grace_s=0.2) == -signal.SIGKILL


def test_what_a_child_leaves_running_ends_with_it() -> None:
    process = python(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WAIT!r}])\n"
        "print('pid', child.pid, flush=True)\n"
        "input_closed = sys.stdin.read()\n"
        "import time; time.sleep(600)"
    ).start()
    says(process, "pid")
    grandchild = psutil.Process(int(process.log_tail().split()[1]))
    process.stop()
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_ends_too_early_is_reported_with_its_last_words() -> None:
    process = python("print('no such tokenizer'); raise SystemExit(3)")
    process.is_ready = lambda: False  # type: ignore[method-assign]
    with pytest.raises(StackError, match=r"child exited with status 3(?s:.*)no such tokenizer"), process:
        pass
    assert process.returncode == 3


def test_a_child_that_is_never_ready_is_stopped() -> None:
    process = python(WAIT, ready_timeout_s=0.3)
    process.is_ready = lambda: False  # type: ignore[method-assign]
    with pytest.raises(StackError, match=r"not ready after 0\.3 s"), process:
        pass
    assert process.returncode == -signal.SIGTERM


def test_waiting_can_be_cancelled() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with python(WAIT) as process:
        assert not process.wait_ready(cancelled)


def test_a_thread_that_ends_does_not_take_the_child_along() -> None:
    process = python(WAIT)
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(process.pid).wait(timeout=0.5)
    process.stop()


def test_every_line_is_handed_on_and_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    process = python(
        "import sys; sys.stdout.reconfigure(encoding='utf-8')\n"
        "print('first'); print('grüezi \\N{SNOWMAN}'); print('no newline', end='')",
        log_path=tmp_path / "log" / "child.log",
        on_line=lines.append,
    ).start()
    while process.returncode is None:
        time.sleep(0.01)
    assert lines == ["first", "grüezi ☃", "no newline"]
    assert (tmp_path / "log" / "child.log").read_text().splitlines() == lines
    assert process.log_tail(2) == "grüezi ☃\nno newline"


def test_an_unnamed_log_gives_the_disk_back_and_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_UNNAMED_LOG_BYTES", 200_000)
    lines: list[str] = []
    child = python(
        "import time\n"
        "for part in range(8):\n"
        "    for line in range(1000): print(f'{part} {line} ' + 'x' * 90)\n"
        "    print(end='', flush=True); time.sleep(0.5)\n",
        on_line=lines.append,
    ).start()
    sizes = []
    while child.returncode is None:
        if child._log is not None and not child._log.closed:
            sizes.append(512 * os.fstat(child._log.fileno()).st_blocks)
        time.sleep(0.05)
    assert sizes[-1] < 500_000 < 8 * 97_000
    assert [line.rsplit(" ", 1)[0] for line in lines] == [f"{part} {line}" for part in range(8) for line in range(1000)]
    assert child.log_tail(1).startswith("7 999 ")


def test_what_a_child_writes_is_its_users_alone(tmp_path: Path) -> None:
    child = python(f"open({str(tmp_path / 'made')!r}, 'w')", log_path=tmp_path / "log").start()
    while child.returncode is None:
        time.sleep(0.01)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("made", "log")] == [0o600, 0o600]


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(StackError, match="no program no-such-server"):
        ManagedProcess("server", ["no-such-server"]).start()


def test_a_process_runs_once() -> None:
    with python(WAIT) as process, pytest.raises(StackError, match="already started"):
        process.start()


@pytest.mark.parametrize(("code", "words"), [(0, "exited with status 0"), (-9, "was killed by SIGKILL")])
def test_exits_are_described(code: int, words: str) -> None:
    assert describe_exit(code) == words
