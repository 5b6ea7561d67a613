"""Which CPU engines are tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.core.checkpoint import SlotContent, SlotSpec, encoder_identity
from resrank.core.cpu import has_vnni
from resrank.core.errors import ParityError
from resrank.core.names import Model
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.export.int8_rankings import Int8Rankings
from resrank.export.manifest import read_manifest
from resrank.export.parity import TOLERANCES, Tolerance
from resrank.export.runtimes import cpu
from resrank.serving.engines.base import EngineKind, Precision
from resrank.stack.gpu import cpu_has_bf16
from support.tiny_checkpoint import make_tiny_checkpoint

COMPACT: dict[str, Any] = {
    "compact": True,
    "slots": SlotSpec(content=SlotContent.RELATIONS, neighbors=8),
    "residual_gate": 0.0,
    "score_residual": 0.3,
    "query_residual": True,
}

needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bf16 instructions")
needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI instructions")


@pytest.mark.parametrize(
    ("asked_for", "tried"),
    [
        (None, {Precision.FP32}),
        pytest.param(Precision.BF16, {Precision.BF16}, marks=needs_bf16),
        (Precision.FP32, {Precision.FP32}),
    ],
)
def test_a_decoder_that_reads_slots_alone_is_not_rounded_unless_that_is_asked_for(
    tmp_path: Path, asked_for: Precision | None, tried: set[Precision]
) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", **COMPACT)
    options = ExportOptions(cpu_engine=EngineKind.OPENVINO, precision=asked_for, threads=1)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", options)

    of_reranker = {choice.parity.options.precision for choice in report.tried if choice.parity.model is Model.RERANKER}
    assert of_reranker == tried


@needs_vnni
def test_int8_is_the_encoders_and_the_manifest_says_so(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", embedding_dim=32, **COMPACT)
    options = ExportOptions(precision=Precision.INT8, threads=1)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", options)

    written = read_manifest(tmp_path / "repository").models
    encoder = written[Model.ENCODER]
    assert (encoder.engine, encoder.precision) == (EngineKind.OPENVINO, Precision.INT8)
    assert encoder.parity is not None
    assert encoder.parity.tolerance.state_cosine == 0.99
    assert 0.99 <= (encoder.parity.state_cosine or 0) < 1
    assert {choice.parity.options.precision for choice in report.tried} == {Precision.INT8, Precision.FP32}
    assert written[Model.RERANKER].precision is Precision.FP32


@needs_vnni
def test_an_encoder_that_int8_bends_too_far_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", embedding_dim=32, **COMPACT)
    monkeypatch.setitem(TOLERANCES, Precision.INT8, Tolerance(state_cosine=1.0, score=0.0))
    with pytest.raises(ParityError, match="no engine computes the encoder as the torch reference does"):
        export_checkpoint(
            tmp_path / "checkpoint", tmp_path / "repository", ExportOptions(precision=Precision.INT8, threads=1)
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


@needs_vnni
@pytest.mark.parametrize(
    ("measured", "tried"),
    [
        (None, False),
        ({"one": (0.30, 0.30)}, False),
        ({"one": (0.30, 0.3019), "two": (0.70, 0.6981)}, True),
        ({"one": (0.30, 0.30), "two": (0.70, 0.6979)}, False),
    ],
)
def test_auto_tries_int8_where_it_was_measured_to_rank_as_fp32_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, tuple[float, float]] | None, tried: bool
) -> None:
    spec = make_tiny_checkpoint(tmp_path / "checkpoint", embedding_dim=32, **COMPACT)
    record = {} if measured is None else {encoder_identity(spec): Int8Rankings(measured)}
    monkeypatch.setattr(cpu, "INT8_RANKINGS", record)
    options = ExportOptions(cpu_engine=EngineKind.OPENVINO, threads=1)
    report = export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", options)
    of_encoder = {choice.parity.options.precision for choice in report.tried if choice.parity.model is Model.ENCODER}
    assert (Precision.INT8 in of_encoder) is tried
