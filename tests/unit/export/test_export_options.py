"""Wishes that contradict each other are told before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from resrank.core.errors import InvalidInputError
from resrank.export.export_options import ExportOptions
from resrank.export.manifest import Runtime
from resrank.export.profiles import EncoderProfile, RerankerProfile
from resrank.serving.engines.base import EngineKind, Precision

GPU_RUNTIMES = [Runtime.TENSORRT, Runtime.TENSORRT_RTX, Runtime.TORCH]
ENCODER = (EncoderProfile.parse("1:8:64x8:128:512"),)
RERANKER = (RerankerProfile.parse("1:8:16x16:128:512x1:50:128"),)


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
@pytest.mark.parametrize("wish", [{"cpu_engine": EngineKind.OPENVINO}, {"threads": 2}])
def test_gpu_runtimes_have_no_cpu_engine(runtime: Runtime, wish: dict[str, Any]) -> None:
    (name,) = wish
    with pytest.raises(InvalidInputError, match=f"^{name}: has no meaning for runtime {runtime.value}: leave it out$"):
        ExportOptions(runtime=runtime, **wish)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"compute_capabilities": ("8.9",)}, "compute_capability"),
        ({"gpus": (0,)}, "gpus"),
        ({"instances": 2}, "instances"),
        ({"encoder_profiles": ENCODER}, "encoder_profile"),
        ({"reranker_profiles": RERANKER}, "reranker_profile"),
    ],
)
def test_a_cpu_has_nothing_of_a_gpu(wish: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{named}: has no meaning for runtime cpu: leave it out$"):
        ExportOptions(**wish)
    ExportOptions(runtime=Runtime.TENSORRT, **wish)


def test_torch_builds_for_no_capability() -> None:
    with pytest.raises(InvalidInputError, match=r"^compute_capability: has no meaning for runtime torch"):
        ExportOptions(runtime=Runtime.TORCH, compute_capabilities=("8.9",))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {"cpu_engine": EngineKind.ONNXRUNTIME, "precision": Precision.BF16},
            "cpu_engine: onnxruntime does not compute in bf16 on a CPU: use openvino, or fp32",
        ),
        (
            {"cpu_engine": EngineKind.ONNXRUNTIME, "precision": Precision.INT8},
            "cpu_engine: onnxruntime does not compute in int8 on a CPU: use openvino, or fp32",
        ),
        (
            {"runtime": Runtime.TORCH, "precision": Precision.INT8},
            "precision: runtime torch has no int8: leave it out, or use --runtime cpu",
        ),
        ({"precision": Precision.FP16}, "precision: no CPU engine computes in fp16: use bf16 or fp32"),
        (
            {"cpu_engine": EngineKind.TENSORRT},
            "cpu_engine: tensorrt does not run on a CPU: use openvino or onnxruntime",
        ),
        ({"runtime": Runtime.TENSORRT, "instances": 0}, "instances: must be positive (limit 1, got 0)"),
        ({"embedding_cache_mib": -1}, "embedding_cache_mib: is negative (limit 0, got -1)"),
        ({"runtime": Runtime.TENSORRT, "gpus": (0, -1)}, "gpus: are numbers of CUDA devices (limit 0, got -1)"),
        ({"runtime": Runtime.TENSORRT, "gpus": (0, 1, 0)}, "gpus: 0, 1, 0 names one twice"),
        (
            {"runtime": Runtime.TENSORRT_RTX, "compute_capabilities": ("8.9", "8.9")},
            "compute_capability: 8.9, 8.9 names one twice",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        ExportOptions(**wish)
