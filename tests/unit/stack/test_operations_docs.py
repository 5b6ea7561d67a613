"""The figures that the pages on security and on stopping name are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resrank.core.limits import MAX_UPLOAD_BYTES
from resrank.retrieval import access, refusal_log, upload_memory
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl
from resrank.stack import local_stack, process
from resrank.stack.standstill import STOPPED_S
from resrank.stack.triton_control import RESTRICTED_PROTOCOLS
from resrank.stack.triton_process import SHARED_MEMORY_PREFIX

DOCS = Path(__file__).parents[3] / "docs"
MIB = 1024 * 1024


def text(page: str) -> str:
    return re.sub(r"\s+", " ", (DOCS / page).read_text())


@pytest.mark.parametrize(
    "sentence",
    [
        f"messages up to {MAX_UPLOAD_BYTES // MIB} MiB, and holds {upload_memory.MAX_HELD_BYTES // MIB} MiB",
        f"are emptied at {process._UNNAMED_LOG_BYTES // MIB} MiB",
        f"at most {refusal_log.LINES} lines every {refusal_log.WINDOW_S:g} seconds",
        f"which has at least {access._LEAST_KEY_BYTES} bytes",
        f"`--grpc-restricted-protocol={RESTRICTED_PROTOCOLS}`",
        f"`{SHARED_MEMORY_PREFIX}`",
    ],
)
def test_the_page_on_security(sentence: str) -> None:
    assert sentence in text("security.md")


@pytest.mark.parametrize(
    "sentence",
    [
        f"gets {local_stack.DRAIN_S:g} s to finish",
        f"(`--drain-s`, {SidecarSettings(StoreUrl.local(Path())).drain_s:g} s)",
        f"answers no health check | `serve` | {local_stack._SILENCE_S:g} s",
    ],
)
def test_the_page_on_stopping(sentence: str) -> None:
    assert sentence in text("stopping.md")


def test_a_dead_process_is_noticed_within_the_time_that_the_page_names() -> None:
    assert local_stack._WATCH_S + STOPPED_S < 5
    assert text("stopping.md").count("`serve` | 5 s |") == 2
