"""Torch twin of :mod:`resrank.core.relations`, for training: whole batches, on any device, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from resrank.core.fusion import CosineMap
from resrank.core.relations import RANK_UNIT

_TINY = 1e-12  # the same guard as in resrank.core.scoring


@torch.no_grad()
def canonical_order(query_embeddings: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Orders each row's candidates by descending cosine with its query, padding last.

    Ties stay as they came: serving decides them by bytes, which is for scores that must be the same to the last bit.

    Args:
        query_embeddings: FP16 or FP32 [B, d], e_q.
        candidates: FP16 or FP32 [B, N, d], e_i.
        counts: INT64 [B], candidates of each row; what stands behind them is padding.

    Returns:
        INT64 [B, N], where the candidate of each place stood.
    """
    cosines = (_units(candidates) @ _units(query_embeddings)[:, :, None])[:, :, 0]
    cosines = cosines.masked_fill(~_real(candidates, counts), -torch.inf)
    return cosines.argsort(dim=1, descending=True, stable=True)


@torch.no_grad()
def relations(
    query_embeddings: Tensor, candidates: Tensor, counts: Tensor, *, neighbors: int, cosine_map: CosineMap | None
) -> Tensor:
    """Computes r_i of every row.

    Args:
        query_embeddings: FP16 or FP32 [B, d], e_q.
        candidates: FP16 or FP32 [B, N, d], e_i in canonical order; likewise.
        counts: INT64 [B], candidates of each row; what stands behind them is padding.
        neighbors: K.
        cosine_map: A; None for the identity.

    Returns:
        FP32 [B, N, 3K + 4]; each row's padding repeats its last candidate, as vectors are padded.
    """
    rows, count, _ = candidates.shape
    real = _real(candidates, counts)
    units = _units(candidates) * real[:, :, None]
    near = min(neighbors, count)

    def mapped(cosines: Tensor) -> Tensor:
        return cosines if cosine_map is None else cosine_map.apply(cosines)

    values = mapped((units @ _units(query_embeddings)[:, :, None])[:, :, 0])
    itself = torch.eye(count, near, dtype=torch.bool, device=candidates.device)
    there = real[:, None, :near]
    found = torch.zeros(rows, count, 3 * neighbors + 4, dtype=torch.float64, device=candidates.device)
    found[:, :, :near] = mapped(units @ units[:, :near].mT).masked_fill(itself | ~there, 0)
    found[:, :, neighbors : neighbors + near] = itself * 0.5
    found[:, :, 2 * neighbors : 2 * neighbors + near] = (values[:, None, :near] - values[:, :, None]) * there
    found[:, :, -4] = values
    found[:, :, -3] = values[:, :1]
    others = ((units @ units.sum(dim=1)[:, :, None])[:, :, 0] - 1) / (counts[:, None] - 1).clamp(min=1)
    found[:, :, -2] = mapped(others) * (counts > 1)[:, None]
    found[:, :, -1] = torch.arange(count, device=candidates.device) / RANK_UNIT
    last = torch.minimum(torch.arange(count, device=candidates.device), counts[:, None] - 1)
    return found.gather(1, last[:, :, None].expand_as(found)).float()


def _real(candidates: Tensor, counts: Tensor) -> Tensor:
    return torch.arange(candidates.shape[1], device=candidates.device) < counts[:, None]


def _units(vectors: Tensor) -> Tensor:
    """Of length 1 in FP64; a zero vector, which only padding is, stays zero."""
    return functional.normalize(vectors.double(), dim=-1, eps=_TINY)
