"""Residual fusion and cosine scoring in NumPy: the last step of every rerank, on the CPU.

    z_i = g * N(P_out(h_i)) + e_i        z_q = g * N(P_out(h_EOS)) [+ e_q]        s_i = A(cos(z_q, z_i)) [+ γ * w.h_i]

N is the identity or the division by the L2 norm (``state_norm``). Source: arXiv 2604.22180; A, an affine map of
cosines (``cosine_map``), and the score residual, the last bracket, are this project's. With g = 0 and γ = 0 or w = 0
the scores are A of the retriever's cosines, exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the client, which ranks, has no pydantic
    from resrank.core.fusion import CosineMap

Float32 = NDArray[np.float32]

_TINY = np.float32(1e-12)  # below any length that a normalised fp16 vector can have; only guards the division


def normalize(vectors: Float32) -> Float32:
    """Divides by the L2 norm along the last axis; a zero vector stays zero.

    Args:
        vectors: FP32 [..., d].

    Returns:
        FP32 [..., d], each of length 1.
    """
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    normalized: Float32 = vectors / np.maximum(lengths, _TINY)
    return normalized


def fuse(states: Float32, embeddings: Float32 | None, *, gate: float, normalize_states: bool) -> Float32:
    """Joins hidden states with the encoder's embeddings: the residual connection.

    Args:
        states: FP32 [..., d], hidden states after P_out.
        embeddings: FP32 [..., d], what is added, or None for a query without residual.
        gate: g.
        normalize_states: Whether the states are L2-normalised first (``state_norm: l2``).

    Returns:
        FP32 [..., d].
    """
    if gate == 0.0 and embeddings is not None:
        return embeddings  # exactly the encoder's vector: not even a NaN of an untrained reranker may reach it
    scaled: Float32 = np.float32(gate) * (normalize(states) if normalize_states else states)
    return scaled if embeddings is None else scaled + embeddings


def score(
    passage_states: Float32 | None,
    query_states: Float32 | None,
    candidates: NDArray[np.float16] | Float32,
    query_embeddings: Float32 | None,
    *,
    gate: float,
    normalize_states: bool,
    cosine_map: CosineMap | None = None,
    residuals: Float32 | None = None,
    residual_weight: float = 0.0,
) -> Float32:
    """Scores candidates: A of the cosine between fused query and fused passages, plus the score residual.

    Args:
        passage_states: FP32 [B, N, d], after P_out; None where the checkpoint has no vector residual.
        query_states: FP32 [B, d], after P_out; likewise.
        candidates: FP16 or FP32 [B, N, d], the stored embeddings e_i.
        query_embeddings: FP32 [B, d] when the checkpoint has ``query_residual``, else None.
        gate: g.
        normalize_states: ``state_norm`` is ``l2``.
        cosine_map: A; None for the identity.
        residuals: FP32 [B, N], w.h_i; None where the checkpoint has no score residual.
        residual_weight: γ.

    Returns:
        FP32 [B, N]; in [-1, 1] without A and score residual.
    """
    passages, queries = candidates.astype(np.float32), query_embeddings
    if passage_states is not None and query_states is not None:
        passages = fuse(passage_states, passages, gate=gate, normalize_states=normalize_states)
        queries = fuse(query_states, queries, gate=gate, normalize_states=normalize_states)
    if queries is None:
        raise ValueError("neither a query's state nor its embedding is given")
    cosines: Float32 = np.einsum("bnd,bd->bn", normalize(passages), normalize(queries))
    cosines = np.clip(cosines, -1.0, 1.0)
    scores = cosines if cosine_map is None else cosine_map.apply(cosines)
    return scores if residuals is None else scores + np.float32(residual_weight) * residuals


def ranking(scores: Float32) -> NDArray[np.int64]:
    """Candidate indices by descending score, ties by input index.

    Args:
        scores: FP32 [N].

    Returns:
        INT64 [N].
    """
    return np.argsort(-scores, kind="stable").astype(np.int64)
