"""Which CPU engines are tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.core.checkpoint import SlotContent, SlotSpec
from resrank.core.names import Model
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.serving.engines.base import EngineKind, Precision
from support.tiny_checkpoint import make_tiny_checkpoint

COMPACT: dict[str, Any] = {
    "compact": True,
    "slots": SlotSpec(content=SlotContent.RELATIONS, neighbors=8),
    "residual_gate": 0.0,
    "score_residual": 0.3,
    "query_residual": True,
}


@pytest.mark.parametrize(
    ("asked_for", "tried"),
    [(None, {Precision.FP32}), (Precision.BF16, {Precision.BF16}), (Precision.FP32, {Precision.FP32})],
)
def test_a_decoder_that_reads_slots_alone_is_not_rounded_unless_that_is_asked_for(
    tmp_path: Path, asked_for: Precision | None, tried: set[Precision]
) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", **COMPACT)
    options = ExportOptions(cpu_engine=EngineKind.OPENVINO, precision=asked_for, threads=1)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", options)

    of_reranker = {choice.parity.options.precision for choice in report.tried if choice.parity.model is Model.RERANKER}
    assert of_reranker == tried
