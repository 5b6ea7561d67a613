"""The interface of every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from resrank.core.errors import ResRankError


class EngineKind(StrEnum):
    """What can host an exported model."""

    OPENVINO = "openvino"  # model.onnx on a CPU
    ONNXRUNTIME = "onnxruntime"  # likewise
    TENSORRT = "tensorrt"  # a plan on a GPU, in Triton's own backend
    TENSORRT_RTX = "tensorrt_rtx"  # a plan that proves that the graph builds; neither flavour reads the other's
    TORCH = "torch"  # a checkpoint on a GPU or a CPU


class Precision(StrEnum):
    """What the engine computes its matrix products in; inputs and outputs stay as the contract says."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"  # on a CPU: matrices are kept in 8 bits, activations get theirs row by row as they come


class EngineError(ResRankError):
    """An engine is not installed, or cannot run the graph at the wished precision."""


@dataclass(frozen=True)
class EngineOptions:
    """How to run a graph.

    Attributes:
        kind: Which engine.
        precision: See :class:`Precision`.
        threads: Threads inside one inference on a CPU; 0 lets the engine take all cores.
        device: CUDA ordinal of the GPU to run on; None runs on the CPU.
    """

    kind: EngineKind
    precision: Precision
    threads: int = 0
    device: int | None = None


class Engine(Protocol):
    """One compiled graph. Calls from one thread at a time."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs.

        Args:
            inputs: Every input of the graph by its tensor name, with the dtypes of ``resrank.core.names``.

        Returns:
            Every output by its tensor name; the arrays belong to the caller.
        """
        ...
