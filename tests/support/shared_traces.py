"""A tracing for each graph, not one for each test: torch takes seconds to trace what it then writes in milliseconds.

Tiny checkpoints of equal weights are made over and over, by tests in different processes. The graph of each is kept in
``var/traces``, under a digest of all that it is made of: weights, config, fields, sample, operator set, the code of the
parts that it comes from, and the versions of what traces it. So a change of any of them traces anew, as does
``make test-full`` whatever is kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from resrank.export import onnx_graphs
from resrank.model.modeling import ResRankModel

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "var" / "traces"
SOURCES = ("core/resrank/core", "model/resrank/model", "export/resrank/export/onnx_graphs.py")
TRACERS = ("torch", "transformers", "onnxscript", "onnx_ir")
LARGEST = 10_000_000
"""Weights of a model that is kept, above any tiny one's."""

OUTSIDE = {
    "encoder": {
        *("source", "sha256", "max_passage_tokens", "max_query_tokens"),
        *("passage_instruction", "query_instruction", "append_eos"),
    },
    "reranker": {"source", "sha256", "max_query_tokens", "max_passages", "prompt", "eos_token"},
    "fusion": {"projectors_sha256", "residual_gate", "query_residual", "state_norm", "lexical_weight"},
}
"""Fields of a checkpoint that neither graph knows: what is done before and after it."""


def share_traces(patch: Callable[[Any, str, Any], None]) -> None:
    """Puts the kept graphs in front of ``torch.onnx.export`` as export calls it."""
    export = torch.onnx.export

    def share(graph: nn.Module, *args: Any, **options: Any) -> Any:
        if not isinstance(graph, onnx_graphs.EncoderGraph | onnx_graphs.RerankerGraph):
            return export(graph, *args, **options)
        if sum(weight.numel() for weight in graph.parameters()) > LARGEST:
            return export(graph, *args, **options)
        kept = FOLDER / f"{key(graph, args[0], options)}.onnx"
        if not kept.is_file():
            program = export(graph, *args, **options)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:  # another process may want the same
                ir.save(program.model, Path(scratch, "graph.onnx"))
                os.replace(Path(scratch, "graph.onnx"), kept)
        return torch.onnx.ONNXProgram(ir.load(kept), None)

    patch(torch.onnx, "export", share)


def key(graph: nn.Module, sample: tuple[torch.Tensor, ...], options: dict[str, Any]) -> str:
    """A digest of what the graph depends on."""
    model: ResRankModel = graph.model  # type: ignore[assignment]
    of_encoder = isinstance(graph, onnx_graphs.EncoderGraph)
    fields = model.spec.model_dump(mode="json")
    sections = {
        name: {field: value for field, value in fields[name].items() if field not in outside}
        for name, outside in OUTSIDE.items()
        if not of_encoder or name == "encoder"
    }
    if not of_encoder:
        sections["encoder"] = {"embedding_dim": model.spec.encoder.embedding_dim}
        sections["states"] = {
            "prompt": model.spec.reranker.prompt is None,
            "out": model.spec.fusion.has_vector_residual,
        }
    config = (model.encoder if of_encoder else model.reranker).config.to_dict()
    config.pop("_name_or_path", None)
    shapes = [(list(tensor.shape), str(tensor.dtype)) for tensor in sample]
    said = [type(graph).__name__, sections, config, shapes, options["opset_version"], code_digest()]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith("encoder.") == of_encoder:
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            digest.update(weight.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def code_digest() -> str:
    """Of the sources that a graph comes from, and the versions of the packages that trace it."""
    digest = hashlib.sha256(" ".join(map(version, TRACERS)).encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    for source in map(ROOT.__truediv__, SOURCES):
        yield from sorted(source.rglob("*.py")) if source.is_dir() else (source,)
