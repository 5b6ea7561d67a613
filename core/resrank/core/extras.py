"""How to install what a part needs beyond the base package, from wherever that came: a clone, a wheel, an index."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urlsplit

_NAME = "resrank"


def install_command(extra: str) -> str:
    """A command that can be typed as it stands.

    Where this package came from is what its installer has written down (``direct_url.json``, PEP 610): a folder or a
    wheel, and nothing where it came from a package index.

    Args:
        extra: One of this distribution's extras.
    """
    installer = "pip install" if find_spec("pip") is not None else "uv pip install"
    origin = _origin()
    url = urlsplit(origin.get("url", ""))
    in_place = ""
    if url.scheme == "file":
        what = f"{unquote(url.path)}[{extra}]"
        in_place = "-e " if origin.get("dir_info", {}).get("editable") else ""
    elif url.scheme:
        kind = origin.get("vcs_info", {}).get("vcs")
        what = f"{_NAME}[{extra}] @ {f'{kind}+' if kind else ''}{url.geturl()}"
    else:
        what = f"{_NAME}[{extra}]"
    return f"{installer} {in_place}{shlex.quote(what)}"


def _origin() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # only on the path
        return {}
    return found
