"""What an export is asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resrank.core.errors import InvalidInputError
from resrank.core.limits import DEFAULT_EMBEDDING_CACHE_MIB
from resrank.core.names import Model
from resrank.export.manifest import Runtime
from resrank.export.profiles import EncoderProfile, RerankerProfile
from resrank.serving.engines.base import EngineKind, EngineOptions, Precision

_CPU_ENGINES = (
    (EngineKind.OPENVINO, Precision.INT8),
    (EngineKind.OPENVINO, Precision.BF16),
    (EngineKind.OPENVINO, Precision.FP32),
    (EngineKind.ONNXRUNTIME, Precision.FP32),
)
_PLANNED = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)


@dataclass(frozen=True)
class ExportOptions:
    """The wishes behind one export; each has a default.

    Attributes:
        runtime: What the repository is for.
        precision: Of the matrix products; None for whichever is fastest and passes the parity gate. ``int8`` is the
            encoder's alone: the reranker gets what None would give it.
        cpu_engine: Runtime ``cpu``: only this engine; None for whichever is fastest and passes.
        threads: Runtime ``cpu``: threads of one inference, 0 for all cores.
        embedding_cache_mib: Memory for vectors of passages that ``rerank_text`` has seen, in MiB; 0 for none.
        compute_capabilities: Runtimes with plans: the GPUs to build for (``8.9``); empty for the machine's own.
        gpus: GPU runtimes: CUDA ordinals of the GPUs that serve; empty for all there are.
        instances: GPU runtimes: engines of each model on each GPU.
        encoder_profiles: GPU runtimes: shapes of the encoder's engine; empty for the usual ones.
        reranker_profiles: GPU runtimes: shapes of the reranker's engine; empty for the usual ones.
    """

    runtime: Runtime = Runtime.CPU
    precision: Precision | None = None
    cpu_engine: EngineKind | None = None
    threads: int = 0
    embedding_cache_mib: int = DEFAULT_EMBEDDING_CACHE_MIB
    compute_capabilities: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    instances: int = 1
    encoder_profiles: tuple[EncoderProfile, ...] = ()
    reranker_profiles: tuple[RerankerProfile, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the wishes go together.

        Raises:
            InvalidInputError: Two contradict each other, or one has no meaning for the runtime.
        """
        on_gpu = self.runtime is not Runtime.CPU
        foreign: Mapping[str, tuple[object, bool]] = {
            "cpu_engine": (self.cpu_engine, not on_gpu),
            "threads": (self.threads, not on_gpu),
            "compute_capability": (self.compute_capabilities, self.runtime in _PLANNED),
            "gpus": (self.gpus, on_gpu),
            "instances": (self.instances - 1, on_gpu),
            "encoder_profile": (self.encoder_profiles, on_gpu),
            "reranker_profile": (self.reranker_profiles, on_gpu),
        }
        for name, (wish, meant) in foreign.items():
            if wish and not meant:
                raise InvalidInputError(name, f"has no meaning for runtime {self.runtime.value}: leave it out")
        if self.precision is Precision.INT8 and on_gpu:
            raise InvalidInputError(
                "precision", f"runtime {self.runtime.value} has no int8: leave it out, or use --runtime cpu"
            )
        if self.runtime is Runtime.CPU and not self.cpu_choices(Model.ENCODER):
            if self.precision is Precision.FP16:
                raise InvalidInputError("precision", "no CPU engine computes in fp16: use bf16 or fp32")
            raise InvalidInputError(
                "cpu_engine",
                f"onnxruntime does not compute in {self.precision} on a CPU: use openvino, or fp32"
                if self.cpu_engine is EngineKind.ONNXRUNTIME
                else f"{self.cpu_engine} does not run on a CPU: use openvino or onnxruntime",
            )
        if self.embedding_cache_mib < 0:
            raise InvalidInputError("embedding_cache_mib", "is negative", limit=0, value=self.embedding_cache_mib)
        if self.instances < 1:
            raise InvalidInputError("instances", "must be positive", limit=1, value=self.instances)
        if self.gpus and min(self.gpus) < 0:
            raise InvalidInputError("gpus", "are numbers of CUDA devices", limit=0, value=min(self.gpus))
        for name, values in (("gpus", self.gpus), ("compute_capability", self.compute_capabilities)):
            if len(set(values)) != len(values):
                raise InvalidInputError(name, f"{', '.join(map(str, values))} names one twice")

    def cpu_choices(self, model: Model) -> tuple[EngineOptions, ...]:
        """The engines that runtime ``cpu`` chooses among.

        Args:
            model: ``encoder`` or ``reranker``.
        """
        of_both = model is Model.ENCODER or self.precision is not Precision.INT8
        wished = self.precision if of_both else None
        return tuple(
            EngineOptions(kind, precision, threads=self.threads)
            for kind, precision in _CPU_ENGINES
            if self.cpu_engine in (None, kind) and wished in (None, precision)
            if model is Model.ENCODER or precision is not Precision.INT8
        )
