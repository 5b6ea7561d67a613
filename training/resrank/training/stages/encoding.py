"""What the stages that train the encoder share: the passes of one step, and InfoNCE on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resrank.core.fusion import CosineMap
from resrank.training.batches import TextPool, Tokenizers, contrastive_masks, equal_chunks
from resrank.training.gradient_cache import CachedEncoding
from resrank.training.lists import CandidateList
from resrank.training.losses.contrastive import cosines, false_negatives, info_nce
from resrank.training.stage_config import ContrastiveConfig, EncodingConfig, GroupName
from resrank.training.trainable import TrainableResRank

ChunkCount = Callable[[int], int]
"""Agrees with the other processes on a number of encoder passes: the largest that any of them needs. Where processes
shard the model, each pass is a collective operation, and all must make the same ones."""


def encode_step(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    lists: Sequence[CandidateList],
    pool: TextPool,
    config: EncodingConfig,
    chunk_count: ChunkCount,
) -> tuple[CachedEncoding, CachedEncoding]:
    """Encodes the queries and passages of a step, with gradients where the encoder is trained.

    Args:
        model: Passes go through its ``forward``, where FSDP sees them.
        tokenizers: Of the checkpoint.
        lists: One per query.
        pool: The passages.
        config: How many passages share a pass, and how many keep their graph.
        chunk_count: As in :data:`ChunkCount`.

    Returns:
        FP32 [Q, d] queries and FP32 [P, d] passages.
    """
    trained = model.trains(GroupName.ENCODER)

    def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embeddings: Tensor = model("encode", input_ids, attention_mask)
        return embeddings

    texts = pool.texts
    count = chunk_count(-(-len(texts) // config.chunk_passages))
    kept = max(1, config.kept_passages // config.chunk_passages)
    queries = equal_chunks(tokenizers.queries, [candidates.query for candidates in lists], 1, model.device)
    passages = equal_chunks(tokenizers.passages, texts, count, model.device)
    return (
        CachedEncoding(encode, queries, trained=trained, kept=1),
        CachedEncoding(encode, passages, trained=trained, kept=kept),
    )


def contrastive_loss(
    config: ContrastiveConfig,
    lists: Sequence[CandidateList],
    pool: TextPool,
    queries: Tensor,
    passages: Tensor,
    cosine_map: CosineMap | None,
) -> Tensor:
    """InfoNCE of a step's embeddings.

    Args:
        config: Temperature, hard negatives and margin.
        lists: One per query.
        pool: The passages.
        queries: FP32 [Q, d].
        passages: FP32 [P, d], by the pool's rows.
        cosine_map: A, on whose scale the margin is; None for the identity.

    Returns:
        FP32 [].
    """
    masks = contrastive_masks(lists, pool, config.hard_negatives)
    positive, ignored = (torch.from_numpy(mask).to(queries.device) for mask in masks)
    similarities = cosines(queries, passages)
    mapped = similarities if cosine_map is None else cosine_map.apply(similarities)
    ignored = ignored | false_negatives(mapped, positive, config.false_negative_margin)
    return info_nce(similarities, positive, ignored, config.temperature)
