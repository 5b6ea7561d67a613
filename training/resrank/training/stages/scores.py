"""What the stages that train the reranker share: the ranking loss's share of the sum."""

from __future__ import annotations

from torch import Tensor

from resrank.training.losses.ranking import retriever_penalty
from resrank.training.stage_config import RankingLossConfig
from resrank.training.trainable import TrainableResRank


def weighted_ranking(
    config: RankingLossConfig,
    model: TrainableResRank,
    ranking: Tensor,
    scores: Tensor,
    candidates: Tensor,
    queries: Tensor,
    valid: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weight · (L_rank + penalty · mean (s_i − A(cos(e_q, e_i)))²).

    Args:
        config: Weight and penalty.
        model: Knows A.
        ranking: FP32 [], L_rank.
        scores: FP32 [B, N].
        candidates: FP16 or FP32 [B, N, d].
        queries: FP32 [B, d].
        valid: BOOL [B, N], False on padding.

    Returns:
        FP32 [], and the parts without their weights; a penalty of 0 is none of them.
    """
    if config.penalty == 0:
        return config.weight * ranking, {"ranking": ranking}
    penalty = retriever_penalty(scores, model.retriever_scores(candidates, queries).detach(), valid)
    return config.weight * (ranking + config.penalty * penalty), {"ranking": ranking, "penalty": penalty}
