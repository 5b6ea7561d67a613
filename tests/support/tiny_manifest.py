"""Manifests as export writes them, without an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resrank.core.names import Model
from resrank.export.manifest import (
    AxisRange,
    BucketFacts,
    BuiltOn,
    CheckpointFacts,
    EngineFacts,
    Manifest,
    ParityFacts,
    PlanFacts,
    Runtime,
    ToleranceFacts,
    write_manifest,
)
from resrank.serving.engines.base import EngineKind, Precision

ENCODER_SHA256 = "e" * 64

_AXES = {Model.ENCODER: ("batch", "tokens"), Model.RERANKER: ("batch", "sequence", "candidates")}


def make_manifest(runtime: Runtime = Runtime.CPU, **fields: Any) -> Manifest:
    """A valid manifest; plans of TensorRT runtimes are unbuilt.

    Args:
        runtime: What the repository is for.
        **fields: Of :class:`Manifest`, in place of the usual ones.
    """
    engine = {
        Runtime.CPU: EngineKind.ONNXRUNTIME,
        Runtime.TENSORRT: EngineKind.TENSORRT,
        Runtime.TENSORRT_RTX: EngineKind.TENSORRT_RTX,
        Runtime.TORCH: EngineKind.TORCH,
    }[runtime]
    planned = runtime in (Runtime.TENSORRT, Runtime.TENSORRT_RTX)
    on_gpu = runtime is not Runtime.CPU
    usual: dict[str, Any] = {
        "runtime": runtime,
        "checkpoint": CheckpointFacts(name="tiny", sha256="c" * 64, encoder_sha256=ENCODER_SHA256),
        "models": {
            model: EngineFacts(
                engine=engine,
                precision=Precision.BF16 if on_gpu else Precision.FP32,
                threads=0,
                opset=None if runtime is Runtime.TORCH else 23 if planned else 18,
                onnx_sha256={} if runtime is Runtime.TORCH else {"model.onnx": "a" * 64},
                parity=ParityFacts(
                    by="torch" if on_gpu else "onnxruntime",
                    state_cosine=0.9999,
                    score_difference=1e-5,
                    kendall_tau=1.0,
                    rows=20,
                    tolerance=ToleranceFacts(state_cosine=0.999, score=1e-2),
                ),
                plans={},
                profiles=({axis: AxisRange(min=1, opt=8, max=16) for axis in axes},) if planned else (),
            )
            for model, axes in _AXES.items()
        },
        "buckets": BucketFacts(passage_tokens=(16,), query_tokens=(16,), sequence=(16,), candidates=(16,))
        if on_gpu
        else None,
        "compute_capabilities": (),
        "gpus": (),
        "built_on": BuiltOn(machine="x86_64", python="3.12.3"),
        "versions": {"resrank": "0.1.0", "torch": None},
    }
    return Manifest(**{**usual, **fields})


def make_plan_facts(flavour: EngineKind = EngineKind.TENSORRT, **fields: Any) -> PlanFacts:
    """A plan that nobody built."""
    usual: dict[str, Any] = {
        "file": "model.plan",
        "sha256": "b" * 64,
        "bytes": 1000,
        "tensorrt_flavour": flavour,
        "tensorrt_version": "11.0.0.10",
        "timing_cache": False,
        "build_seconds": 1.5,
    }
    return PlanFacts(**{**usual, **fields})


def with_plans(manifest: Manifest, plans: dict[str, PlanFacts]) -> Manifest:
    """The same manifest with plans for both models."""
    models = {model: facts.model_copy(update={"plans": plans}) for model, facts in manifest.models.items()}
    return Manifest.model_validate({**dict(manifest), "models": models})


def write_tiny_manifest(repository: Path, **fields: Any) -> Manifest:
    """Writes one into a folder, made when missing; fields as for :func:`make_manifest`."""
    manifest = make_manifest(**fields)
    repository.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, repository)
    return manifest
