"""The thin ``model.py`` files, as Triton loads them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from resrank.export.model_configs import templates_folder
from support.python_files import load_python_file

MODEL_FILES = sorted(templates_folder().glob("*/1/model.py"), key=str)


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    return load_python_file(path, f"model_{path.parts[-3]}")


def test_there_is_one_for_every_model_that_is_no_ensemble() -> None:
    assert [path.parts[-3] for path in MODEL_FILES] == [
        "bulk_encoder",
        "encoder",
        "passage_tokenizer",
        "query_tokenizer",
        "rerank_prompt",
        "rerank_text",
        "reranker",
        "residual_scoring",
        "search",
    ]


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.parts[-3])
def test_without_resrank_in_tritons_python_initialize_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(path, monkeypatch).TritonPythonModel()
    for name in [name for name in sys.modules if name.partition(".")[0] == "resrank"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "resrank", None)
    with pytest.raises(ImportError, match=r"resrank.*: Triton's Python needs resrank\[triton\]"):
        model.initialize({})
