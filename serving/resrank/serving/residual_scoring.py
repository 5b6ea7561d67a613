"""``residual_scoring``: what the reranker says of the candidates, and their embeddings, to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from resrank.core.checkpoint import Norm, read_spec
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.names import Parameter, Tensor
from resrank.core.scoring import score
from resrank.serving.candidates import validate_query_embeddings
from resrank.serving.step import Answer, Arrays, StepRequest, run_each


class ResidualScoringStep:
    """The reranker's outputs, CANDIDATES, CANDIDATE_COUNT (and QUERY_EMBEDDING) to SCORES FP32 [B, N].

    With relations the candidates come in canonical order, and CANDIDATE_PLACES puts their scores into the caller's.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, str] | None = None) -> None:
        """Reads how states and embeddings are joined.

        Args:
            folder: Holds ``resrank.json``.
            parameters: Of the model's config: ``score_residual`` is the factor on SCORE_RESIDUALS.

        Raises:
            CheckpointError: It is missing or wrong.
        """
        self._fusion = read_spec(folder).fusion
        self._factor = float((parameters or {}).get(Parameter.SCORE_RESIDUAL, 0.0))

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Scores each request by itself (see the protocol)."""
        return run_each(self._score, requests)

    def _score(self, request: StepRequest) -> Arrays:
        inputs = request.inputs
        candidates = inputs[Tensor.CANDIDATES]
        if Tensor.QUERY_EMBEDDING in inputs:
            validate_query_embeddings(inputs[Tensor.QUERY_EMBEDDING])
        for name in (Tensor.PASSAGE_STATES, Tensor.SCORE_RESIDUALS):
            if name in inputs and inputs[name].shape[:2] != candidates.shape[:2]:
                raise InvalidInputError(
                    name, f"shape {inputs[name].shape} is not that of CANDIDATES, {candidates.shape}"
                )
        # The rows of one request have equally many candidates; what stands behind them is padding.
        count = int(inputs[Tensor.CANDIDATE_COUNT].max())
        if not 1 <= count <= candidates.shape[1]:
            raise InvalidInputError(Tensor.CANDIDATE_COUNT, "not in range", limit=candidates.shape[1], value=count)
        states, residuals = inputs.get(Tensor.PASSAGE_STATES), inputs.get(Tensor.SCORE_RESIDUALS)
        scores = score(
            None if states is None else states[:, :count],
            inputs.get(Tensor.QUERY_STATE),
            candidates[:, :count],
            inputs.get(Tensor.QUERY_EMBEDDING),
            gate=self._fusion.residual_gate,
            normalize_states=self._fusion.state_norm is Norm.L2,
            cosine_map=self._fusion.cosine_map,
            # Not read at 0, so that the scores are the retriever's, whatever the reranker says.
            residuals=None if residuals is None or self._factor == 0 else residuals[:, :count],
            residual_weight=self._factor,
        )
        if not np.isfinite(scores).all():
            raise ResRankError("the reranker's states are not finite: export it again, with --precision fp32")
        if Tensor.CANDIDATE_PLACES in inputs:
            scores = np.take_along_axis(scores, inputs[Tensor.CANDIDATE_PLACES], axis=1)
        return {Tensor.SCORES: scores}
