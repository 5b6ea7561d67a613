"""Where what was fetched or made once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$RESRANK_CACHE``, else ``resrank`` in the user's cache folder."""
    if configured := os.environ.get("RESRANK_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resrank"
