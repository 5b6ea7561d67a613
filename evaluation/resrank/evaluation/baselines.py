"""What a reranker has to be held against: orders of the same candidates that need no LLM.

Each function gives FP32 [N] scores, higher is better, from the vectors that the reranker reads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from resrank.core.checkpoint import PROJECTORS_FILE, FusionSpec, Norm, Projector, validate_folder
from resrank.core.errors import CheckpointError
from resrank.core.scoring import normalize, score
from resrank.evaluation.scorer import Float16, Float32

Int64 = NDArray[np.int64]

ROCCHIO_DEPTH = 3
"""Passages that Rocchio takes as relevant."""

ROCCHIO_ALPHA = 1.0
"""Weight of the query in Rocchio's formula, with :data:`ROCCHIO_BETA` the values of Manning, Raghavan, Schütze,
"Introduction to Information Retrieval" (2008), section 9.1.1, without the negative part. Fixed for every checkpoint and
collection. A baseline should be strong: of the published pairs this was the best on NFCorpus's development questions
with all-MiniLM-L6-v2 (nDCG@10 0.3035; 0.3006 with the 0.4 and 0.6 of Li et al., "Pseudo Relevance Feedback with Deep
Language Models and Dense Retrievers", TOIS 2023; 0.2868 without feedback)."""

ROCCHIO_BETA = 0.75
"""Weight of the mean of the passages taken as relevant."""


def dense_scores(query: Float32, passages: Float16) -> Float32:
    """Cosines with the query: the order of the checkpoint's own encoder, which a dense-start checkpoint reproduces.

    Args:
        query: FP32 [d], e_q.
        passages: FP16 [N, d], e_i as stored.
    """
    nothing = np.zeros((1, len(passages), passages.shape[1]), np.float32)
    # By the code that scores in serving, at gate 0: equal to the last bit, so that ties fall the same way.
    scores = score(nothing, nothing[:, 0], passages[None], query[None], gate=0.0, normalize_states=False)
    return np.asarray(scores[0])


def rocchio_scores(query: Float32, passages: Float16, order: Int64) -> Float32:
    """Cosines with a query moved towards the best passages: vector pseudo-relevance feedback.

        q' = α·q + β·mean(e of the top 3)

    on vectors of length 1. Rocchio's formula without its negative part. No training, no LLM.

    Args:
        query: FP32 [d], e_q.
        passages: FP16 [N, d], e_i as stored.
        order: INT64 [N], the passages by the best ranking that is to be had without feedback; its first three are taken
            as relevant.
    """
    feedback = normalize(passages[order[:ROCCHIO_DEPTH]].astype(np.float32)).mean(axis=0)
    return dense_scores(ROCCHIO_ALPHA * normalize(query) + ROCCHIO_BETA * feedback, passages)


@dataclass(frozen=True)
class Projectors:
    """A checkpoint's fusion without its LLM.

    The LLM's hidden state is replaced by its input, as if the decoder passed on what it reads:

        h_i := s·P_in(e_i)        z_i = g·N(P_out(h_i)) + e_i
        h_q := s·P_in(e_q)        z_q = g·N(P_out(h_q)) [+ e_q]

    with s ``input_scale``, N ``state_norm``, the bracket only with ``query_residual``. The query is projected as a
    passage is, with a slot of its own or without: that gives the projectors the most they can do alone, and with
    identity projectors leaves the dense order. What ResRank gains over this row, the LLM has added.

    Attributes:
        p_in: FP32 [h, d]; None for the identity.
        p_out: FP32 [d, h]; None for the identity.
        fusion: The checkpoint's fields.
    """

    p_in: Float32 | None
    p_out: Float32 | None
    fusion: FusionSpec

    @classmethod
    def of(cls, checkpoint: Path) -> Self:
        """Reads a checkpoint's projectors.

        Raises:
            CheckpointError: The folder is not a valid checkpoint.
        """
        fusion = validate_folder(checkpoint, verify_hashes=False).fusion
        if fusion.projector is Projector.IDENTITY:
            return cls(None, None, fusion)
        path = checkpoint / PROJECTORS_FILE
        try:
            weights = load_file(path)
            p_in, p_out = (weights[f"{name}.weight"].astype(np.float32) for name in ("p_in", "p_out"))
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return cls(p_in, p_out, fusion)

    def scores(self, query: Float32, passages: Float16) -> Float32:
        """Scores candidates.

        Args:
            query: FP32 [d], e_q.
            passages: FP16 [N, d], e_i as stored.
        """
        scores = score(
            self._through(passages.astype(np.float32))[None],
            self._through(query)[None],
            passages[None],
            query[None] if self.fusion.query_residual else None,
            gate=self.fusion.residual_gate,
            normalize_states=self.fusion.state_norm is Norm.L2,
        )
        return np.asarray(scores[0])

    def _through(self, embeddings: Float32) -> Float32:
        """FP32 [..., d] to FP32 [..., d]: in and out of the reranker's space, past the reranker."""
        inside = self.fusion.input_scale * (embeddings if self.p_in is None else embeddings @ self.p_in.T)
        return inside if self.p_out is None else inside @ self.p_out.T
