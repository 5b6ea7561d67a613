"""What a line of Triton's own log tells somebody who asks why it does not run."""

from __future__ import annotations

import json
import re

_HEAD = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ?")
_TABLE = re.compile(r"\+-|\| ")
_BESIDE_THE_POINT = re.compile(
    # What it says wherever there is no GPU, and what it says twice: the model's name stands in the line after.
    r"CudaDriverHelper|pinned_memory_manager|NVML|DCGM|Failed to create instance"
)


def told(line: str) -> str | None:
    """The words of a line, without time and place, its escaped line breaks undone.

    Returns:
        None for information, for the wide tables of options that stand below the errors of a failed start, and for what
        is said of every start without a GPU.
    """
    line = line.rstrip()
    head = _HEAD.match(line)
    if not line or _TABLE.match(line) or _BESIDE_THE_POINT.search(line) or (head is not None and head[1] == "I"):
        return None
    return line if head is None else _unquoted(line[head.end() :])


def _unquoted(text: str) -> str:
    try:
        found = json.loads(text, strict=False)
    except ValueError:
        return text
    return "\n".join(part for part in found.splitlines() if part.strip()) if isinstance(found, str) else text
