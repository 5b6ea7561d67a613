"""Python files that are no part of a package: scripts, and the models of a repository."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load_python_file(path: Path, name: str | None = None) -> ModuleType:
    """Runs a file as an import of it would, beside what lies in its folder.

    Args:
        path: The file.
        name: Of the module; None takes the file's.
    """
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))  # as when it is run
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up by name
        spec.loader.exec_module(module)
    return module
