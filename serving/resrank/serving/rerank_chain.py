"""The steps of ``rerank`` behind the encoding of the query, for who has the query's vector already.

``search`` has encoded the query to find candidates, and would pay for that twice. The ensemble ``rerank_embedded`` has
the same steps; ``search`` takes those at hand in its own process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import Float32
from resrank.serving.step import Arrays, StepRequest


class InferOutputs(Protocol):
    """See :meth:`resrank.serving.python_backend.PythonBackend.infer_outputs`."""

    async def __call__(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> Mapping[Tensor, NDArray[Any]]:
        """Returns the wanted outputs."""
        ...


@dataclass(frozen=True)
class ChainStep:
    """One model in the ensemble.

    Attributes:
        model: Which one.
        inputs: Each of its inputs to the ensemble's tensor that it reads.
        outputs: Each of its outputs to the ensemble's tensor that it makes.
    """

    model: Model
    inputs: Mapping[Tensor, str]
    outputs: Mapping[Tensor, str]


class RerankChain:
    """Calls the models that ``rerank`` is composed of, one after the other."""

    def __init__(self, infer: InferOutputs, steps: Sequence[ChainStep]) -> None:
        """Prepares the calls.

        Args:
            infer: Calls a model.
            steps: From QUERY, QUERY_EMBEDDING and CANDIDATES to SCORES.
        """
        self._infer = infer
        self._steps = steps

    @classmethod
    def read(cls, infer: InferOutputs, parameters: Mapping[str, str]) -> Self | None:
        """Takes the steps from the ``parameters`` of a config.

        Returns:
            The chain; None where export wrote none, since ``rerank`` reads no vector of the query.
        """
        told = parameters.get(Parameter.RERANK_CHAIN)
        if told is None:
            return None
        return cls(
            infer,
            [
                ChainStep(
                    Model(step["model"]),
                    {Tensor(tensor): name for tensor, name in step["inputs"].items()},
                    {Tensor(tensor): name for tensor, name in step["outputs"].items()},
                )
                for step in json.loads(told)
            ],
        )

    async def score(
        self,
        queries: NDArray[np.object_],
        embedding: Float32,
        candidates: NDArray[np.float16],
        caller: StepRequest,
    ) -> Float32:
        """Scores one pass.

        Args:
            queries: BYTES [1, 1].
            embedding: FP32 [d], the query's.
            candidates: FP16 [N, d].
            caller: The request that this is done for.

        Returns:
            FP32 [N].

        Raises:
            ResRankError: As ``rerank`` itself.
        """
        tensors: dict[str, NDArray[Any]] = {
            Tensor.QUERY: queries,
            Tensor.QUERY_EMBEDDING: embedding[np.newaxis],
            Tensor.CANDIDATES: candidates[np.newaxis],
        }
        for step in self._steps:
            inputs = {tensor: tensors[name] for tensor, name in step.inputs.items()}
            found = await self._infer(step.model, inputs, tuple(step.outputs), caller)
            tensors.update({step.outputs[tensor]: array for tensor, array in found.items()})
        scores: Float32 = tensors[Tensor.SCORES][0]
        return scores
