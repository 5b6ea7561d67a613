"""How work that takes long says where it is."""

from __future__ import annotations

from collections.abc import Callable

Notify = Callable[[str], None]
"""Called with one line before each step that takes seconds."""

Progress = Callable[[str, int, int], None]
"""Called as work goes on: what is done, how much of it is done, and of how much."""
