"""How a step calls another model of the repository."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from resrank.core.names import Model, Tensor
from resrank.serving.step import Arrays, StepRequest


class Infer(Protocol):
    """See :meth:`resrank.serving.python_backend.PythonBackend.infer`."""

    async def __call__(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> NDArray[Any]:
        """Returns the one wanted output."""
        ...
