"""How this command is called, so that what is printed can be typed again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_NAME = "resrank"


def own_name() -> str:
    """``resrank`` where the shell finds it, else the path that it was called by, such as ``.venv/bin/resrank``."""
    called = Path(sys.argv[0])
    found = shutil.which(_NAME)
    if called.name != _NAME or (found is not None and called.exists() and Path(found).samefile(called)):
        return _NAME
    return str(called)
