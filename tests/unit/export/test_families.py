"""Which families TensorRT engines are made of, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig

from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.export.families import SUPPORTED, require_supported
from support.tiny_families import DECODERS, ENCODERS

DOCS = Path(__file__).parents[3] / "docs" / "families.md"


def test_every_family_that_is_promised_is_tested() -> None:
    both = frozenset((Model.ENCODER, Model.RERANKER))
    tested = dict.fromkeys(DECODERS, both) | dict.fromkeys(ENCODERS, frozenset((Model.ENCODER,)))
    assert tested == SUPPORTED


def test_the_documented_table_is_the_list() -> None:
    rows = [line.split("|")[1:-1] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = {cells[0].strip(" `"): frozenset(map(Model, cells[2].strip().split(", "))) for cells in rows}
    assert told == SUPPORTED
    assert all([cell.strip() for cell in cells[-3:]] == ["✓"] * 3 for cells in rows)


def test_supported_families_pass_as_config_or_as_file() -> None:
    for role in (Model.ENCODER, Model.RERANKER):
        require_supported(LlamaConfig(), role)
        require_supported({"model_type": "qwen3"}, role)
    require_supported({"model_type": "bert"}, Model.ENCODER)


def test_an_unknown_family_is_refused_in_one_sentence() -> None:
    with pytest.raises(ExportError) as refusal:
        require_supported(GPT2Config(), Model.RERANKER)
    assert str(refusal.value) == (
        "reranker: the backbone's model_type is 'gpt2', and TensorRT engines of it are not checked; take a backbone of "
        "llama, qwen2, qwen3, mistral, or export with --runtime cpu or torch"
    )


def test_a_family_in_the_wrong_role_is_refused() -> None:
    with pytest.raises(ExportError, match="'modernbert', and TensorRT engines of it are checked only as encoder; take"):
        require_supported({"model_type": "modernbert"}, Model.RERANKER)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llama"]}])
def test_a_config_without_a_family_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="encoder: the backbone's model_type is "):
        require_supported(config, Model.ENCODER)
