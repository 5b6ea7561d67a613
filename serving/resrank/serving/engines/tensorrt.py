"""TensorRT on a GPU, in both flavours: the production library, and TensorRT-RTX, which compiles kernels on loading."""

from __future__ import annotations

import importlib
import logging
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.serving.engines.base import EngineError, EngineKind, EngineOptions
from resrank.serving.engines.cuda import DeviceBuffer, Gpu, PinnedBuffer
from resrank.serving.engines.plan import refuse_foreign_plan
from resrank.serving.engines.plan_profiles import PlanProfile, Shape, ShapeRange, choose_profile
from resrank.serving.engines.runtime_cache import RuntimeCache

_LOG = logging.getLogger(__name__)

_MODULES = {
    EngineKind.TENSORRT: ("tensorrt",),
    EngineKind.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # the latter without the meta-package
}
_EXTRAS = {EngineKind.TENSORRT: "tensorrt", EngineKind.TENSORRT_RTX: "tensorrt-rtx"}


def load_tensorrt(flavour: EngineKind) -> Any:
    """Imports a flavour's module; both have the same interface.

    Args:
        flavour: ``TENSORRT`` or ``TENSORRT_RTX``.

    Raises:
        EngineError: It is not installed, or its libraries do not load.
    """
    problem: Exception | None = None
    for module in _MODULES[flavour]:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            problem = error
    raise EngineError(
        f"{flavour.value} is not installed ({problem}): pip install 'resrank[{_EXTRAS[flavour]}]'"
    ) from problem


class TensorRtEngine:
    """An :class:`~resrank.serving.engines.base.Engine` on a plan.

    It has one execution context, one stream, and for every tensor one device buffer and one page-locked host buffer as
    large as the plan's profiles let it become, all made on loading: a call allocates nothing on the GPU and waits for
    it once. The precision is the plan's own.
    """

    def __init__(self, plan: Path, options: EngineOptions) -> None:
        """Loads a plan (many seconds with TensorRT-RTX, which compiles its kernels then).

        Args:
            plan: ``model.plan``.
            options: Which flavour, and the GPU; the first when none is named.

        Raises:
            EngineError: The flavour is not installed; the plan is another flavour's, version's or capability's, or is
                cut short; the machine has no driver, no such GPU, or too little memory on it.
        """
        self._plan = plan
        trt = load_tensorrt(options.kind)
        refuse_foreign_plan(plan, options.kind, trt.__version__)
        try:
            self._gpu = Gpu(options.device or 0)
        except EngineError as error:
            raise EngineError(f"{plan}: cannot run here: {error}") from error
        self._errors: list[str] = []
        self._runtime = trt.Runtime(_make_logger(trt, self._errors))
        self._engine = self._deserialize(trt, options.kind)
        self._context, self._cache = self._make_context(trt, options.kind)  # freed in this order
        self._profiles = read_profiles(self._engine, trt)
        self._active: int | None = None
        self._tensors = self._make_tensors(trt)
        for name, tensor in self._tensors.items():
            self._require(self._context.set_tensor_address(name, tensor.device.address), f"no address for {name}")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol).

        Raises:
            EngineError: No profile takes the shapes, an input has another type than the plan's, or the GPU failed.
        """
        self._gpu.make_current()
        self._errors.clear()
        self._set_shapes({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            tensor = self._tensors[name]
            if array.dtype != tensor.dtype:
                raise EngineError(f"{self._plan}: {name} is {array.dtype}, but the plan takes {tensor.dtype}")
            staged = tensor.staging(array.shape)
            np.copyto(staged, array)
            self._gpu.send(staged, tensor.device)
        self._require(self._context.execute_async_v3(self._gpu.stream), "the call failed")
        fetched = {
            name: tensor.staging(self._shape(name)) for name, tensor in self._tensors.items() if name not in inputs
        }
        for name, array in fetched.items():
            self._gpu.fetch(self._tensors[name].device, array)
        self._gpu.wait()
        # Copied: the host buffers are overwritten by the next call.
        return {name: array.copy() for name, array in fetched.items()}

    def _deserialize(self, trt: Any, flavour: EngineKind) -> Any:
        with self._plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            if flavour is EngineKind.TENSORRT_RTX:
                validity, diagnostics = self._runtime.get_engine_validity(blob)
                if validity == trt.EngineValidity.INVALID and diagnostics:
                    raise EngineError(f"{self._plan}: {self._gpu} cannot run it: {explain_validity(trt, diagnostics)}")
            engine = self._runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise self._failure("it cannot be loaded")
        return engine

    def _make_context(self, trt: Any, flavour: EngineKind) -> tuple[Any, RuntimeCache | None]:
        cache = None
        if flavour is EngineKind.TENSORRT_RTX:
            config = self._engine.create_runtime_config()
            # Left at its default, the runtime answers a new shape at once with general kernels and compiles that
            # shape's own in the background; with this it then captures them as a graph.
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            cache = RuntimeCache.attach(config, self._plan, self._gpu.name)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise self._failure("it cannot be made ready to run")
        if cache is not None:
            cache.save()
        return context, cache

    def _make_tensors(self, trt: Any) -> dict[str, _Tensor]:
        """Buffers for the largest shapes; those of outputs follow from those of inputs."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        elements = dict.fromkeys(names, 0)
        for profile in self._profiles:
            self._set_shapes({name: shapes.largest for name, shapes in profile.inputs.items()})
            for name in names:
                elements[name] = max(elements[name], math.prod(self._shape(name)))
        tensors = {}
        for name in names:
            dtype: np.dtype[Any] = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            size = elements[name] * dtype.itemsize
            tensors[name] = _Tensor(dtype, self._gpu.allocate(size), self._gpu.allocate_pinned(size))
        return tensors

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        try:
            profile = choose_profile(self._profiles, shapes)
        except EngineError as error:
            raise EngineError(f"{self._plan}: {error}") from error
        if profile.index != self._active:
            # On the stream of the calls, so the switch is done before the next one without waiting for it.
            switched = self._context.set_optimization_profile_async(profile.index, self._gpu.stream)
            self._require(switched, f"optimisation profile {profile.index} cannot be set")
            self._active = profile.index
        for name, shape in shapes.items():
            self._require(self._context.set_input_shape(name, shape), f"{name} cannot be {list(shape)}")

    def _shape(self, name: str) -> Shape:
        return tuple(self._context.get_tensor_shape(name))

    def _require(self, done: bool, problem: str) -> None:
        if not done:
            raise self._failure(problem)

    def _failure(self, problem: str) -> EngineError:
        return EngineError(f"{self._plan}: {problem} on {self._gpu}: {explain_errors(self._errors)}")


@dataclass(frozen=True)
class _Tensor:
    """One input or output, and its two buffers."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: PinnedBuffer

    def staging(self, shape: Shape) -> NDArray[Any]:
        """The host buffer as an array of one shape."""
        return self.host.bytes[: math.prod(shape) * self.dtype.itemsize].view(self.dtype).reshape(shape)


def read_profiles(engine: Any, trt: Any) -> tuple[PlanProfile, ...]:
    """The optimisation profiles of a loaded plan.

    Args:
        engine: ``ICudaEngine``.
        trt: The flavour's module.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    profiles = []
    for index in range(engine.num_optimization_profiles):
        shapes = {name: engine.get_tensor_profile_shape(name, index) for name in inputs}  # least, best, greatest
        profiles.append(PlanProfile(index, {name: ShapeRange(tuple(s[0]), tuple(s[2])) for name, s in shapes.items()}))
    return tuple(profiles)


def explain_validity(trt: Any, diagnostics: int) -> str:
    """What TensorRT-RTX's check of a plan against this machine found, and what to do.

    Args:
        trt: Its module.
        diagnostics: Bits of ``EngineInvalidityDiagnostics``.
    """
    bits = trt.EngineInvalidityDiagnostics
    sentences = {
        bits.UNSUPPORTED_CC: "it was built for other compute capabilities: export with this GPU's",
        bits.VERSION_MISMATCH: f"it was not built by tensorrt_rtx {trt.__version__}: build the plan again",
        bits.MALFORMED_ENGINE: "it is damaged: copy or build it again",
        bits.INSUFFICIENT_GPU_MEMORY: "the GPU's memory is too small: export with smaller profiles or use a larger GPU",
        bits.OLD_CUDA_DRIVER: "the NVIDIA driver is too old: update it",
        bits.OLD_CUDA_RUNTIME: "the CUDA runtime is too old: update it",
        bits.CUDA_ERROR: "the CUDA driver or runtime is not installed correctly: look at nvidia-smi",
    }
    return "; ".join(text for bit, text in sentences.items() if diagnostics & int(bit))


# What the runtimes write of failures that a user can do something about.
_KNOWN_ERRORS = (
    (
        re.compile(r"incompatible device|expecting compute|compute capability", re.IGNORECASE),
        "the plan was built for another compute capability: build it for this GPU",
    ),
    (
        re.compile(r"out ?of ?memory|could not be allocated|cudaErrorMemoryAllocation", re.IGNORECASE),
        "the GPU has too little free memory: run fewer instances or other programs on it, or export with smaller "
        "profiles",
    ),
    (
        re.compile(r"not compatible with this version|incompatible serialization version", re.IGNORECASE),
        "the plan was built by another version: build it again",
    ),
    (
        re.compile(r"header.size == blobSize|deserializ\w+ failed|magic ?tag", re.IGNORECASE),
        "the plan is damaged or cut short: copy or build it again",
    ),
)


def explain_errors(errors: Sequence[str]) -> str:
    """One sentence from what a runtime logged.

    Args:
        errors: Its errors in their order. The first is the cause, and later ones follow from it.
    """
    for pattern, sentence in _KNOWN_ERRORS:
        if any(pattern.search(error) for error in errors):
            return sentence
    return " ".join(errors[0].split()) if errors else "TensorRT says nothing of why"


def _make_logger(trt: Any, errors: list[str]) -> Any:
    """Keeps the errors for exceptions and passes warnings on."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                _LOG.warning("%s", message)

    return Logger()
