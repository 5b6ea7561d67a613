"""A start for P_in that the reranker can read: a slot stands for the words of its passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from resrank.core.errors import InvalidInputError
from resrank.training.batches import Tokenizers
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.trainable import TrainableResRank

_TOKENIZED_TOGETHER = 1024


@dataclass(frozen=True)
class ProjectorFit:
    """How well P_in could be fitted.

    Attributes:
        passages: How many it was fitted to.
        cosine: Mean cosine between a slot x_i and its passage's :func:`word_vectors`.
        explained: Share of the word vectors' variance that an embedding explains linearly (R²).
    """

    passages: int
    cosine: float
    explained: float


def align_projector(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    table: EmbeddingTable,
    lists: Sequence[CandidateList],
    *,
    seed: int,
) -> ProjectorFit:
    """Fits P_in by ridge regression, from embeddings of training passages to their word vectors; P_out stays.

    The fit decides a slot's direction. Its length does not follow: a mean of a hundred token embeddings is much shorter
    than any token, and a decoder hardly hears it. So P_in is scaled until slots are as long, on average, as before.

    Args:
        model: Its P_in is changed in place.
        tokenizers: Of the checkpoint.
        table: Embeddings of the lists, by the model's encoder as it stands.
        lists: Where passages are drawn from; ``fusion.projector_passages`` and ``projector_ridge`` of the model's
            config say how many and how.
        seed: Of the draw.

    Raises:
        InvalidInputError: P_in is the identity.
    """
    p_in = model.model.p_in
    if not isinstance(p_in, nn.Linear):
        raise InvalidInputError("fusion.projector_start", "ridge needs a linear projector, the checkpoint has identity")
    config = model.config.fusion
    rows = _draw(table, lists, config.projector_passages, seed)
    texts = list(rows)
    embeddings = table.passages[list(rows.values())].double()
    tokens = model.backbone("reranker").get_input_embeddings().get_parameter("weight").detach().cpu()
    targets = word_vectors(tokenizers.words, tokens, texts, max_tokens=model.spec.encoder.max_passage_tokens)
    fitted = ridge_projector(embeddings, targets, config.projector_ridge)
    slots = embeddings @ fitted.T
    before = embeddings @ p_in.weight.detach().double().cpu().T
    scale = before.norm(dim=1).mean() / slots.norm(dim=1).mean()
    with torch.no_grad():
        p_in.weight.copy_(fitted * scale)
    residual, total = (slots - targets).square().sum(), targets.square().sum()
    return ProjectorFit(
        passages=len(texts),
        cosine=functional.cosine_similarity(slots, targets, dim=1).mean().item(),
        explained=(1 - residual / total).item(),
    )


def ridge_projector(embeddings: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The W that minimises Σ ‖W·e_i − t_i‖² + n·ridge·m·‖W‖², m being the mean square of an embedding's component.

    Args:
        embeddings: FP64 [n, d], e_i.
        targets: FP64 [n, h], t_i.
        ridge: Penalty; relative to m, so that neither n nor the embeddings' length matters. Above 0.

    Returns:
        FP64 [h, d].
    """
    gram = embeddings.T @ embeddings
    penalty = ridge * embeddings.square().mean() * len(embeddings)
    gram.diagonal().add_(penalty)
    solution: Tensor = torch.linalg.solve(gram, embeddings.T @ targets)
    return solution.T


def word_vectors(words: Tokenizer, table: Tensor, texts: Sequence[str], *, max_tokens: int) -> Tensor:
    """What each text's words are in a vocabulary, beside those of the other texts.

    The mean of its tokens' embeddings, each weighted by how rare it is among the texts (ln((n + 1) / (n_token + 1)), n
    being the number of texts), less the mean over all texts. Without either, function words drown the rest: fitted to
    plain means on 11,000 passages of HotpotQA (MiniLM-L6, SmolLM2-135M), slots had a cosine of 0.89 with each other and
    24 % of 2,000 new ones found their own passage's words; fitted to these vectors, 0.00 and 53 %.

    Args:
        words: The vocabulary's tokenizer.
        table: FP32 [V, h], its embeddings.
        texts: The texts.
        max_tokens: Tokens of a text that count, the first ones.

    Returns:
        FP64 [n, h], of mean 0; all zero for a text whose tokens stand in every text.
    """
    ids = [
        np.array(encoding.ids[:max_tokens], dtype=np.int64)
        for start in range(0, len(texts), _TOKENIZED_TOGETHER)
        for encoding in words.encode_batch_fast(
            list(texts[start : start + _TOKENIZED_TOGETHER]), add_special_tokens=False
        )
    ]
    holding = np.bincount(np.concatenate([np.unique(row) for row in ids]), minlength=len(table))
    rarity = torch.from_numpy(np.log((len(texts) + 1) / (holding + 1))).float()
    flat = torch.from_numpy(np.concatenate(ids))
    bounds = torch.from_numpy(np.cumsum([0, *(len(row) for row in ids)]))
    weights = rarity[flat]
    sums = functional.embedding_bag(
        flat, table, bounds, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    totals = torch.segment_reduce(weights, "sum", offsets=bounds, initial=0)
    vectors = (sums / totals.clamp_min(torch.finfo(totals.dtype).tiny)[:, None]).double()
    return vectors - vectors.mean(dim=0)


def _draw(table: EmbeddingTable, lists: Sequence[CandidateList], count: int, seed: int) -> dict[str, int]:
    """Distinct passages of lists in random order, with their rows in the table."""
    drawn: dict[str, int] = {}
    for index in np.random.default_rng(seed).permutation(len(lists)):
        candidates = lists[index]
        for passage, row in zip(candidates.passages, table.passage_rows(candidates), strict=True):
            drawn[passage.encoder_text] = int(row)
            if len(drawn) == count:
                return drawn
    return drawn
