"""Steps of other models that the process of ``search`` takes itself, since a call through Triton costs more than they.

A call to a Python model crosses two processes and copies its tensors twice: a millisecond, in which a query could be
tokenized several times. Engines stay behind their queues, where requests of all callers meet.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, ResRankError, ServerFailedError
from resrank.core.fail_open import MODEL_FAILURES
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import Float32
from resrank.serving.request_trace import traced_part
from resrank.serving.rerank_chain import InferOutputs
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.residual_scoring import ResidualScoringStep
from resrank.serving.step import Arrays, Step, StepRequest
from resrank.serving.tokenizer import TokenizationStep

_LOADERS: Mapping[Model, Callable[[Path, Mapping[str, str]], Step]] = {
    Model.QUERY_TOKENIZER: partial(TokenizationStep, for_queries=True),
    Model.RERANK_PROMPT: PromptingStep,
    Model.RESIDUAL_SCORING: ResidualScoringStep,
}

logger = logging.getLogger(__name__)

NEAR_MODELS = tuple(_LOADERS)
"""Models whose steps can be taken so."""


class NearSteps:
    """Calls models: those at hand as functions, all others through Triton."""

    def __init__(self, infer: InferOutputs, steps: Mapping[Model, Step]) -> None:
        """Joins both.

        Args:
            infer: Calls a model through Triton.
            steps: Those at hand.
        """
        self._infer = infer
        self._steps = steps

    @classmethod
    def read(cls, infer: InferOutputs, folder: Path, parameters: Mapping[str, str]) -> Self:
        """Loads what export has put at hand.

        Args:
            infer: Calls a model through Triton.
            folder: Of the calling model's version; each step's files stand in a folder named after its model.
            parameters: Of the calling model's config; where export wrote nothing there, nothing is at hand.

        Raises:
            CheckpointError: A step's files are missing or wrong.
        """
        told: Mapping[str, Mapping[str, str]] = json.loads(parameters.get(Parameter.NEAR_STEPS, "{}"))
        return cls(infer, {Model(name): _LOADERS[Model(name)](folder / name, own) for name, own in told.items()})

    async def __call__(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> Mapping[Tensor, NDArray[Any]]:
        """Computes the wanted outputs of a model (see :class:`~resrank.serving.rerank_chain.InferOutputs`)."""
        step = self._steps.get(model)
        if step is None:
            return await self._infer(model, inputs, outputs, caller)
        with traced_part(caller.trace, model.value):
            try:
                (outcome,) = step.run([StepRequest(inputs, truncate=caller.truncate, deadline=caller.deadline)])
            except Exception as error:
                outcome = error
            if isinstance(outcome, Exception):
                raise _as_through_triton(model, outcome) from outcome
        return {tensor: outcome[tensor] for tensor in outputs}

    async def embed_query(self, queries: NDArray[Any], caller: StepRequest) -> Float32:
        """What the ensemble ``embed_query`` answers.

        Args:
            queries: BYTES [1, 1].
            caller: The request that this is done for.

        Returns:
            FP32 [1, d].

        Raises:
            ResRankError: As the ensemble.
        """
        if Model.QUERY_TOKENIZER not in self._steps:
            found = await self._infer(Model.EMBED_QUERY, {Tensor.TEXT: queries}, (Tensor.EMBEDDING,), caller)
        else:
            with traced_part(caller.trace, Model.EMBED_QUERY.value) as trace:
                within = replace(caller, trace=trace)
                ids = (Tensor.INPUT_IDS, Tensor.ATTENTION_MASK)
                tokens = await self(Model.QUERY_TOKENIZER, {Tensor.TEXT: queries}, ids, within)
                found = await self._infer(Model.ENCODER, tokens, (Tensor.EMBEDDING,), within)
        embedding: Float32 = found[Tensor.EMBEDDING]
        return embedding


def _as_through_triton(model: Model, error: Exception) -> ResRankError:
    """The type that a step's error has behind Triton, by which a search that may go on without a model knows it."""
    if isinstance(error, ResRankError) and isinstance(error, (InvalidInputError, *MODEL_FAILURES)):
        return error
    if not isinstance(error, ResRankError):
        logger.error("a step failed", extra={"model": model.value}, exc_info=error)
    return ServerFailedError(f"{model.value}: {error or repr(error)}")
