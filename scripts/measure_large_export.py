"""Exports a reranker of more than 2 GB with random weights, and measures the memory that this takes beyond the weights.

ONNX files end at 2 GB, so larger weights go into external data. They are converted one matrix at a time as they are
written: a second copy of all of them never exists. The figures in docs/families.md are from this script.

    python scripts/measure_large_export.py  # Qwen3-1.7B's widths, 16 layers, bf16: 1.1 billion weights
    python scripts/measure_large_export.py --precision fp32 --layers 4

Needs Linux (/proc), resrank[export], four bytes of memory for each weight and a tenth more, and room for the files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from resrank.core.checkpoint import (
    CheckpointSpec,
    EncoderSpec,
    FusionSpec,
    Pooling,
    Projector,
    PromptSpec,
    RerankerSpec,
)
from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_graphs import TypedGraph
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import Precision

HIDDEN, MLP, HEADS, KEY_HEADS, HEAD_SIZE, VOCABULARY = 2048, 6144, 16, 8, 128, 151936
"""Of Qwen3-1.7B (its config.json)."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process in bytes, before a step and at its highest."""

    before: int
    peak: int

    @property
    def growth(self) -> int:
        """What the step took."""
        return self.peak - self.before


def measured(step: Callable[[], Result]) -> tuple[Result, Memory]:
    """Runs a step and says what memory it took."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak back, see proc_pid_clear_refs(5)
    before = _status("VmRSS")
    result = step()
    return result, Memory(before, _status("VmHWM"))


def random_reranker(layers: int) -> ResRankModel:
    """A reranker of that many layers behind the smallest encoder that there can be.

    Args:
        layers: Of 50 million weights each, beside a table of 311 million.
    """
    none = "0" * 64
    spec = CheckpointSpec(
        name="random",
        encoder=EncoderSpec(
            source="random",
            sha256=none,
            embedding_dim=HIDDEN,
            pooling=Pooling.MEAN,
            max_passage_tokens=64,
            max_query_tokens=64,
        ),
        reranker=RerankerSpec(
            source="random",
            sha256=none,
            hidden_size=HIDDEN,
            max_query_tokens=64,
            max_passages=128,
            prompt=PromptSpec(before_query="", before_passages="", after_passages=""),
            eos_token="<|im_end|>",
        ),
        fusion=FusionSpec(projector=Projector.IDENTITY, input_scale=1.0, residual_gate=1.0, query_residual=False),
    )
    encoder = BertModel(
        BertConfig(hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1, vocab_size=1)
    )
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD_SIZE,
    )
    return ResRankModel(spec, encoder, Qwen3Model(config)).eval()


def main() -> int:
    """Runs the measurement; 1 when writing took half of another copy of the weights or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default=Precision.BF16)
    parser.add_argument("--scratch", type=Path, help="where the files go for the time of the run")
    wishes = parser.parse_args()

    torch.manual_seed(0)
    model = random_reranker(wishes.layers)
    weights = sum(weight.numel() for weight in model.reranker.parameters())
    print(f"{weights / 1e6:,.0f} million weights, in memory as fp32: {_gb(4 * weights)}")
    traced, tracing = measured(lambda: TypedGraph.trace(model, Model.RERANKER))
    _tell("traced", tracing)
    with tempfile.TemporaryDirectory(dir=wishes.scratch) as folder:
        onnx, writing = measured(lambda: traced.write(wishes.precision, Path(folder)))
        files = {file.name: file.stat().st_size for file in onnx.parent.iterdir()}
        _tell(
            f"written as {wishes.precision}: {', '.join(f'{name} {_gb(size)}' for name, size in files.items())}",
            writing,
        )
        try:
            builder = EngineBuilder()
        except ExportError as error:
            print(f"not parsed: {error}")
        else:
            summary, parsing = measured(lambda: builder.inspect(onnx))
            _tell(f"parsed by {builder}: {summary.layers.attention} attention layers", parsing)
    return int(writing.growth >= sum(files.values()) / 2)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _tell(what: str, memory: Memory) -> None:
    print(f"{what}: {_gb(memory.before)} before, {_gb(memory.peak)} at the peak, {_gb(memory.growth)} more", flush=True)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f} GB"


if __name__ == "__main__":
    sys.exit(main())
