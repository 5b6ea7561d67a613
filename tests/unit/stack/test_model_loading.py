from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from resrank.stack import model_loading
from resrank.stack.model_loading import ModelLoading
from resrank.stack.triton_log import told


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loading, "_LOOK_EVERY_S", 0.05)


@contextmanager
def running(program: str) -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def stalls_within(loading: ModelLoading, process: psutil.Process, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if loading.stalls(process):
            return True
        time.sleep(0.02)
    return False


def test_the_log_says_which_models_still_load() -> None:
    loading = ModelLoading()
    for model in ("rerank_text", "search", "encoder"):
        loading.read(f'I1129 06:30:39.314792 5835 model_lifecycle.cc:472] "loading: {model}:1"')
    loading.read("I1129 06:30:41.514385 5835 model_lifecycle.cc:839] \"successfully loaded 'encoder'\"")
    loading.read("E1129 06:30:42.5 5835 model_lifecycle.cc:642] \"failed to load 'search' version 1: Internal: x\"")
    assert loading.models == ["rerank_text"]


def test_a_process_that_only_waits_stalls() -> None:
    with running("import time; print(flush=True); time.sleep(60)") as process:
        assert stalls_within(ModelLoading(0.5), process, 30)


def test_a_process_that_computes_or_whose_child_does_never_stalls() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(flush=True)\\nwhile True: pass'])"
    with running(child) as process:
        try:
            assert not stalls_within(ModelLoading(0.5), process, 2)
        finally:
            for one in process.children():
                one.kill()


def test_a_model_that_is_done_is_progress() -> None:
    with running("import time; print(flush=True); time.sleep(60)") as process:
        loading = ModelLoading(1.0)
        for _ in range(4):
            loading.read("\"successfully loaded 'echo'\"")
            assert not stalls_within(loading, process, 0.6)
        assert stalls_within(loading, process, 30)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "E1129 06:59:40.7 808 model_lifecycle.cc:642] \"failed to load 'm0' version 1: Internal: ValueError: no"
            ' tokenizer here\\n\\nAt:\\n  /m.py(3): initialize\\n"',
            "failed to load 'm0' version 1: Internal: ValueError: no tokenizer here\nAt:\n  /m.py(3): initialize",
        ),
        ("error: creating server: Internal - failed to load all models", ...),
        ("Signal (11) received.", ...),
        ('W1129 06:59:38.1 808 server.cc:1] not quoted "at all"', 'not quoted "at all"'),
        ('E1129 06:59:38.137827 808 server.cc:241] "CudaDriverHelper has not been initialized."', None),
        ("Error: Failed to initialize NVML", None),
        ('W1129 06:59:40.7 808 metrics.cc:798] "DCGM unable to start: DCGM initialization error"', None),
        ('I1129 06:59:38.153732 808 model_lifecycle.cc:472] "loading: m0:1"', None),
        ("I1129 06:59:40.713212 808 server.cc:631] ", None),
        ("| m1    | 1       | READY |", None),
        ("+-------+---------+", None),
        ("", None),
    ],
)
def test_of_a_line_only_what_explains_a_failure_is_told(line: str, words: object) -> None:
    assert told(line) == (line if words is ... else words)
