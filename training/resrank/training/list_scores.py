"""Scores of candidate lists without gradients: what the development measure is computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from resrank.training.batches import Tokenizers, ranking_batch
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.trainable import TrainableResRank


def score_lists(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    table: EmbeddingTable,
    lists: Sequence[CandidateList],
    *,
    lists_per_pass: int,
) -> list[NDArray[np.float32]]:
    """Scores lists in the order in which their passages stand.

    Args:
        model: As it stands; its training mode is put back afterwards.
        tokenizers: Of the checkpoint.
        table: Embeddings of all texts of the lists, by the model's encoder as it stands.
        lists: The lists.
        lists_per_pass: How many share one pass.

    Returns:
        FP32 [N] for each list.
    """
    training = model.training
    model.eval()
    found: list[NDArray[np.float32]] = []
    try:
        with torch.no_grad():  # not inference mode, see encode_texts
            for start in range(0, len(lists), lists_per_pass):
                part = lists[start : start + lists_per_pass]
                batch = ranking_batch(tokenizers.prompt, part, model.device)
                vectors = table.gather(part, model.device)
                scores = model("rank", batch.input_ids, batch.slots, batch.last, *vectors).cpu().numpy()
                found += [row[: len(candidates)] for row, candidates in zip(scores, part, strict=True)]
    finally:
        model.train(training)
    return found
