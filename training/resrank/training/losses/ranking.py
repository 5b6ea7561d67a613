"""L_rank: listwise losses on the scores of candidate lists (docs/training.md).

All of them read only the **order** of the labels, never their size: grades and a teacher's scores are treated alike.
Passages with equal labels are never ordered against each other. A list in which all labels are equal, or which is
padding altogether, adds nothing and does not count in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

_MAX_LEVELS = 60
"""Gains below 2^-60 of the best are nothing in fp32; the cut keeps 2^level finite."""


class RankingLoss(Protocol):
    """A loss on the scores of a batch of candidate lists."""

    def __call__(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            scores: FP32 [B, N], s_i.
            labels: FP32 [B, N], higher is better.
            valid: BOOL [B, N], False on padding, which has no influence and gets no gradient.

        Returns:
            FP32 [], the mean over the lists that order something; 0 when none does.
        """
        ...


def ranking_loss(kind: Literal["ranknet", "listmle", "softmax"], temperature: float) -> RankingLoss:
    """The loss of a name.

    Args:
        kind: Which one.
        temperature: τ2, by which scores are divided.
    """
    match kind:
        case "ranknet":
            return RankNet(temperature)
        case "listmle":
            return ListMLE(temperature)
        case "softmax":
            return ListwiseSoftmax(temperature)


@dataclass(frozen=True)
class RankNet:
    """The mean over ordered pairs (label_i > label_j) of log(1 + exp((s_j − s_i)/τ2)).

    Source: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005; the mean over pairs instead of the
    sum as in E2Rank's code, so that a list's weight does not grow with the square of its length.

    Attributes:
        temperature: τ2.
    """

    temperature: float

    def __call__(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """As :class:`RankingLoss`."""
        better = _ordered_pairs(labels, valid)
        differences = (scores[:, None, :] - scores[:, :, None]) / self.temperature  # [b, i, j] = s_j − s_i
        losses = functional.softplus(differences) * better
        return _mean_over_lists(losses.sum(dim=(1, 2)), better.sum(dim=(1, 2)))


@dataclass(frozen=True)
class ListMLE:
    """The negative log-likelihood of the labels' order under the Plackett-Luce model, per choice.

    Each passage that has a worse one is chosen among itself and all worse ones: −s_i/τ2 + log Σ exp(s_j/τ2), and the
    mean is taken over these choices. Without ties this is the published loss divided by the number of choices; tied
    passages do not compete with each other.

    Source: Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm", ICML 2008.

    Attributes:
        temperature: τ2.
    """

    temperature: float

    def __call__(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """As :class:`RankingLoss`."""
        scaled = scores / self.temperature
        better = _ordered_pairs(labels, valid)
        itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        rivals = scaled[:, None, :].masked_fill(~(better | itself), float("-inf"))
        losses = rivals.logsumexp(dim=2) - scaled
        chooses = better.any(dim=2)
        return _mean_over_lists((losses * chooses).sum(dim=1), chooses.sum(dim=1))


@dataclass(frozen=True)
class ListwiseSoftmax:
    """Cross-entropy between the labels' gains and the softmax of the scores: −Σ p_i log softmax(s/τ2)_i.

    p_i is proportional to 2^level − 1, nDCG's usual gain, where level counts the distinct labels below passage i's. So
    the worst label gets no mass, and a teacher's scores count by their order alone.

    Source: Bruch et al., "An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with Binary Relevance",
    ICTIR 2019; on two labels it is theirs.

    Attributes:
        temperature: τ2.
    """

    temperature: float

    def __call__(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """As :class:`RankingLoss`."""
        scaled = (scores / self.temperature).masked_fill(~valid, float("-inf"))
        gains = _gains(labels, valid)
        total = gains.sum(dim=1)
        # Padding has probability 0 and gain 0; its -inf must not meet the product.
        losses = -(functional.log_softmax(scaled, dim=1).masked_fill(~valid, 0.0) * gains).sum(dim=1)
        orders = total > 0
        return _mean_over_lists(losses / total.clamp_min(torch.finfo(total.dtype).tiny), orders)


def retriever_penalty(scores: Tensor, retrieved: Tensor, valid: Tensor) -> Tensor:
    """The mean of (s_i − A(cos(e_q, e_i)))²: how far scores have moved from the retriever's.

    Without it, what is learned on one kind of collection moves scores on others too, and costs more there with every
    step (TREC DL 2021; docs/experiments/tuned.md).

    Args:
        scores: FP32 [B, N], s_i.
        retrieved: FP32 [B, N], A(cos(e_q, e_i)), the retriever's own scores on the same scale.
        valid: BOOL [B, N], False on padding, which has no influence and gets no gradient.

    Returns:
        FP32 [], the mean over all passages of all lists.
    """
    squares = (scores - retrieved).square().masked_fill(~valid, 0.0)
    return squares.sum() / valid.sum()


def _ordered_pairs(labels: Tensor, valid: Tensor) -> Tensor:
    """BOOL [B, N, N], True at [b, i, j] where i is better than j and both are passages."""
    return (labels[:, :, None] > labels[:, None, :]) & valid[:, :, None] & valid[:, None, :]


def _gains(labels: Tensor, valid: Tensor) -> Tensor:
    """FP32 [B, N], proportional to 2^level − 1 within each list; 0 on padding and on the worst label."""
    better = _ordered_pairs(labels, valid)
    earlier = torch.ones(better.shape[1:], dtype=torch.bool, device=labels.device).tril(-1)
    same = (labels[:, :, None] == labels[:, None, :]) & valid[:, None, :]
    first = valid & ~(same & earlier).any(dim=2)  # one passage for each distinct label
    level = (better & first[:, None, :]).sum(dim=2)
    exponent = (level - level.amax(dim=1, keepdim=True)).clamp_min(-_MAX_LEVELS).float()
    floor = (-level.amax(dim=1, keepdim=True)).clamp_min(-_MAX_LEVELS).float()
    return (torch.exp2(exponent) - torch.exp2(floor)) * (level > 0)


def _mean_over_lists(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean of sums / counts [B] over the lists with a count."""
    per_list = sums / counts.clamp_min(1)
    return per_list.sum() / (counts > 0).sum().clamp_min(1)
