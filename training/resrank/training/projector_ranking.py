"""A start for P_out from which the reranker ranks at once: what a linear map of the vectors alone can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from resrank.core.checkpoint import Norm
from resrank.core.errors import InvalidInputError
from resrank.training.batches import Tokenizers, ranking_batch
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.losses.ranking import ranking_loss
from resrank.training.optimization import rate_factor
from resrank.training.projector_alignment import ridge_projector
from resrank.training.stage_config import RankingLossConfig
from resrank.training.trainable import TrainableResRank

_LISTS_PER_STEP = 16
_LEARNING_RATE = 1e-3  # of a map that starts as the identity; measured on NFCorpus, docs/training.md
_WARMUP_SHARE = 0.05

_STATE_LISTS = 100
"""Lists whose states P_out is fitted to: some 4,000 states for a few hundred unknowns of each output."""

_LISTS_PER_PASS = 4


@dataclass(frozen=True)
class ProjectorRanking:
    """What P_out starts as.

    Attributes:
        lists: How many the map was trained on, repetitions counted.
        loss: L_rank of the map over the last tenth of them.
        states: How many P_out was fitted to.
        cosine: Mean cosine between P_out(h) and what the map makes of the slot's vector, over these.
    """

    lists: int
    loss: float
    states: int
    cosine: float


def rank_projectors(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    table: EmbeddingTable,
    list_at: Callable[[int], CandidateList],
    ranking: RankingLossConfig,
) -> ProjectorRanking:
    """Trains a map of the vectors by L_rank, without the decoder, and fits P_out so that states give it back.

        z_i = g·N(M·e_i) + e_i        z_q = g·N(M·e_q) + e_q with a query slot, else e_q

    M starts as the identity, and so does the order as the retriever's. Then P_out is the ridge regression from the
    states of the decoder as it stands, at every slot, to M of the vector in the slot. Its length stays as it was, so
    that the stage's learning rates mean what they did.

    Args:
        model: Its P_out is changed in place.
        tokenizers: Of the checkpoint.
        table: Embeddings of the lists, by the model's encoder as it stands.
        list_at: The training lists by position, as the stage sees them.
        ranking: The stage's loss.

    Raises:
        InvalidInputError: P_out is the identity.
    """
    p_out = model.model.p_out
    if not isinstance(p_out, nn.Linear):
        raise InvalidInputError(
            "fusion.projector_start", "ranking needs a linear projector, the checkpoint has identity"
        )
    count = model.config.fusion.projector_lists
    of_vectors, loss = _train_map(model, tokenizers, table, list_at, ranking)
    states, vectors = _slot_states(model, tokenizers, table, [list_at(position) for position in range(_STATE_LISTS)])
    targets = _normed(model, vectors @ of_vectors.T)
    fitted = ridge_projector(states.double(), targets.double(), model.config.fusion.projector_ridge).float()
    cosine = functional.cosine_similarity(states @ fitted.T, targets, dim=1).mean().item()
    with torch.no_grad():
        if model.spec.fusion.state_norm is Norm.L2:
            fitted *= p_out.weight.norm().cpu() / fitted.norm()
        p_out.weight.copy_(fitted)
    return ProjectorRanking(count, loss, len(states), cosine)


def _train_map(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    table: EmbeddingTable,
    list_at: Callable[[int], CandidateList],
    ranking: RankingLossConfig,
) -> tuple[Tensor, float]:
    """M, FP32 [d, d] on the CPU, and its loss at the end."""
    cpu = torch.device("cpu")
    gate, slot = model.gate, model.spec.reranker.query_slot
    loss_of = ranking_loss(ranking.kind, ranking.temperature)
    of_vectors = nn.Parameter(torch.eye(model.spec.encoder.embedding_dim))
    optimizer = torch.optim.Adam([of_vectors], lr=_LEARNING_RATE)
    steps = -(-model.config.fusion.projector_lists // _LISTS_PER_STEP)
    last: list[float] = []
    for step in range(steps):
        lists = [list_at(step * _LISTS_PER_STEP + number) for number in range(_LISTS_PER_STEP)]
        batch = ranking_batch(tokenizers.prompt, lists, cpu)
        passages, queries = table.gather(lists, cpu)
        passages = passages.float()
        z_passages = gate * _normed(model, passages @ of_vectors.T) + passages
        z_queries = gate * _normed(model, queries @ of_vectors.T) + queries if slot else queries
        scores = functional.cosine_similarity(z_passages, z_queries[:, None], dim=-1)
        loss = loss_of(scores, batch.labels, batch.valid)
        for part in optimizer.param_groups:
            part["lr"] = _LEARNING_RATE * rate_factor(step, steps, _WARMUP_SHARE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps - max(1, steps // 10):
            last.append(loss.item())
    return of_vectors.detach(), sum(last) / len(last)


def _slot_states(
    model: TrainableResRank, tokenizers: Tokenizers, table: EmbeddingTable, lists: Sequence[CandidateList]
) -> tuple[Tensor, Tensor]:
    """The decoder's states at all slots of some lists, FP32 [n, h], and the vectors in them, FP32 [n, d]; on CPU."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = list(_pass_states(model, tokenizers, table, lists))
    finally:
        model.train(training)
    return torch.cat([states for states, _ in parts]), torch.cat([vectors for _, vectors in parts])


def _pass_states(
    model: TrainableResRank, tokenizers: Tokenizers, table: EmbeddingTable, lists: Sequence[CandidateList]
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(lists), _LISTS_PER_PASS):
        part = lists[start : start + _LISTS_PER_PASS]
        batch = ranking_batch(tokenizers.prompt, part, model.device)
        vectors = model.slot_vectors(batch.slots, batch.last, *table.gather(part, model.device)).float()
        states = model("states", batch.input_ids, batch.slots, batch.last, vectors)
        # Padding repeats the last slot of a row.
        own = batch.slots.diff(dim=1, prepend=batch.slots[:, :1] - 1) != 0
        yield states[own].float().cpu(), vectors[own].cpu()


def _normed(model: TrainableResRank, vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=-1) if model.spec.fusion.state_norm is Norm.L2 else vectors
