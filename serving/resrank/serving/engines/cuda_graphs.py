"""Captured CUDA graphs of a torch computation: one a shape, replayed with a single launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Compute: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
ShapeKey: TypeAlias = frozenset[tuple[str, tuple[int, ...]]]

MAX_GRAPHS = 64
"""Shapes whose graphs are kept. They share their working memory; each has its own inputs, outputs and some MB of launch
parameters. Many more shapes than this only come up when rows are not padded to buckets."""

_Value = TypeVar("_Value")


class RecentShapes(Generic[_Value]):
    """Something for each of the shapes that were used last."""

    def __init__(self, limit: int) -> None:
        """Starts empty.

        Args:
            limit: Shapes to remember.
        """
        self._limit = limit
        self._values: OrderedDict[ShapeKey, _Value] = OrderedDict()

    def __contains__(self, shape: ShapeKey) -> bool:
        """Whether the shape is remembered; does not count as a use."""
        return shape in self._values

    def __getitem__(self, shape: ShapeKey) -> _Value:
        """What is remembered of a shape, which is thereby the last one used."""
        self._values.move_to_end(shape)
        return self._values[shape]

    def __setitem__(self, shape: ShapeKey, value: _Value) -> None:
        """Remembers a shape as the last one used; the one that was not used for longest makes place."""
        self._values[shape] = value
        self._values.move_to_end(shape)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)


def shape_key(inputs: Mapping[str, NDArray[Any]]) -> ShapeKey:
    """What all calls of one graph have in common.

    Args:
        inputs: Of a call, by tensor name.
    """
    return frozenset((name, array.shape) for name, array in inputs.items())


class GraphRunner:
    """Runs a computation on a GPU, as a captured graph from a shape's second call on.

    The first call runs as it is: it starts the libraries and picks their kernels, which capturing must find done, and a
    shape that does not come again is worth no more. Calls come from one thread at a time.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        """Prepares a stream of its own.

        Args:
            compute: From inputs to outputs by name, on the GPU. What it launches may depend on nothing but shapes.
            device: A CUDA device.
        """
        self._compute = compute
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: RecentShapes[_CapturedGraph | None] = RecentShapes(MAX_GRAPHS)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes; the arrays of the result belong to the caller."""
        shape = shape_key(inputs)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            if shape not in self._graphs:
                self._graphs[shape] = None
                on_gpu = {name: torch.tensor(array, device=self._device) for name, array in inputs.items()}
                return {name: value.cpu().numpy() for name, value in self._compute(on_gpu).items()}
            graph = self._graphs[shape]
            if graph is None:
                graph = _CapturedGraph(self._compute, inputs, self._stream, self._pool)
                self._graphs[shape] = graph
            return graph.replay(inputs)


class _CapturedGraph:
    """One shape's graph, and its inputs and outputs at places that never change."""

    def __init__(
        self, compute: Compute, sample: Mapping[str, NDArray[Any]], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self._stream = stream
        self._inputs: dict[str, tuple[Tensor, Tensor]] = {}  # page-locked on the host, on the GPU
        for name, array in sample.items():
            host = torch.tensor(array).pin_memory()
            self._inputs[name] = host, host.to(stream.device)
        self._graph = torch.cuda.CUDAGraph()
        # Thread-local: what other threads of the process do on their GPUs does not concern this capture.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            results = dict(compute({name: on_gpu for name, (_, on_gpu) in self._inputs.items()}))
        self._outputs = {
            name: (torch.empty(value.shape, dtype=value.dtype, pin_memory=True), value)
            for name, value in results.items()
        }

    def replay(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, (host, on_gpu) in self._inputs.items():
            np.copyto(host.numpy(), inputs[name])
            on_gpu.copy_(host, non_blocking=True)
        self._graph.replay()
        for host, on_gpu in self._outputs.values():
            host.copy_(on_gpu, non_blocking=True)
        self._stream.synchronize()  # the only wait of a call
        # Copied: these are overwritten by the next call.
        return {name: host.numpy().copy() for name, (host, _) in self._outputs.items()}
