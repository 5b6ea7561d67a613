"""``residual_scoring``: hidden states and embeddings to scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resrank.core.checkpoint import Norm, read_spec
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.names import Tensor
from resrank.core.scoring import score
from resrank.serving.step import Answer, Arrays, StepRequest, run_each


class ResidualScoringStep:
    """PASSAGE_STATES, QUERY_STATE, CANDIDATES, CANDIDATE_COUNT (and QUERY_EMBEDDING) to SCORES FP32 [B, N]."""

    def __init__(self, folder: Path) -> None:
        """Reads how states and embeddings are joined.

        Args:
            folder: Holds ``resrank.json``.

        Raises:
            CheckpointError: It is missing or wrong.
        """
        self._fusion = read_spec(folder).fusion

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Scores each request by itself (see the protocol)."""
        return run_each(self._score, requests)

    def _score(self, request: StepRequest) -> Arrays:
        inputs = request.inputs
        states, candidates = inputs[Tensor.PASSAGE_STATES], inputs[Tensor.CANDIDATES]
        if states.shape != candidates.shape:
            raise InvalidInputError(
                Tensor.PASSAGE_STATES, f"shape {states.shape} is not that of CANDIDATES, {candidates.shape}"
            )
        # The rows of one request have equally many candidates; what stands behind them is the query's slot or padding.
        count = int(inputs[Tensor.CANDIDATE_COUNT].max())
        if not 1 <= count <= states.shape[1]:
            raise InvalidInputError(Tensor.CANDIDATE_COUNT, "not in range", limit=states.shape[1], value=count)
        scores = score(
            states[:, :count],
            inputs[Tensor.QUERY_STATE],
            candidates[:, :count],
            inputs.get(Tensor.QUERY_EMBEDDING),
            gate=self._fusion.residual_gate,
            normalize_states=self._fusion.state_norm is Norm.L2,
        )
        if not np.isfinite(scores).all():
            raise ResRankError("the reranker's states are not finite: export it again, with --precision fp32")
        return {Tensor.SCORES: scores}
