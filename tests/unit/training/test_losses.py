"""The losses against examples worked by hand and against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resrank.training.losses.contrastive import cosines, false_negatives, info_nce
from resrank.training.losses.ranking import RankingLoss, ranking_loss, retriever_penalty

KINDS = ("ranknet", "listmle", "softmax")


def loop_ranknet(scores: list[float], labels: list[float], temperature: float) -> float | None:
    pairs = [
        math.log(1 + math.exp((scores[j] - scores[i]) / temperature))
        for i in range(len(scores))
        for j in range(len(scores))
        if labels[i] > labels[j]
    ]
    return sum(pairs) / len(pairs) if pairs else None


def loop_listmle(scores: list[float], labels: list[float], temperature: float) -> float | None:
    choices = []
    for score, label in zip(scores, labels, strict=True):
        worse = [other for other, its in zip(scores, labels, strict=True) if its < label]
        if worse:
            chances = sum(math.exp(other / temperature) for other in [score, *worse])
            choices.append(-math.log(math.exp(score / temperature) / chances))
    return sum(choices) / len(choices) if choices else None


def loop_softmax(scores: list[float], labels: list[float], temperature: float) -> float | None:
    levels = {label: level for level, label in enumerate(sorted(set(labels)))}
    gains = [2.0 ** levels[label] - 1 for label in labels]
    if not sum(gains):
        return None
    chances = sum(math.exp(score / temperature) for score in scores)
    return -sum(
        gain / sum(gains) * math.log(math.exp(score / temperature) / chances)
        for gain, score in zip(gains, scores, strict=True)
    )


LOOPS = {"ranknet": loop_ranknet, "listmle": loop_listmle, "softmax": loop_softmax}


def loss_of(kind: str, temperature: float) -> RankingLoss:
    return ranking_loss(kind, temperature)  # type: ignore[arg-type]


def random_lists(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eight lists of unequal length with ties, one without any order; padding has the best label and a wild score."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(8, 7, generator=generator) * 2 - 1
    labels = torch.randint(0, 4, (8, 7), generator=generator).float()
    labels[3] = 1.0
    lengths = torch.tensor([7, 2, 5, 7, 3, 1, 6, 4])
    valid = torch.arange(7) < lengths[:, None]
    return scores.masked_fill(~valid, 9.0), labels.masked_fill(~valid, 5.0), valid


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # s/τ = 3, 1, 2 with labels 0, 2, 1: the order wanted is 1 (label 2), 2 (score 2), 3 (label 0).
        # Pairs (b,c), (b,a), (c,a): ln(1+e^1) + ln(1+e^2) + ln(1+e^1), divided by 3.
        ("ranknet", (1.3132617 + 2.1269280 + 1.3132617) / 3),
        # b among all: -1 + ln(e^3+e^1+e^2); c among c and a: -2 + ln(e^2+e^3); a chooses nothing.
        ("listmle", ((-1 + 3.4076060) + (-2 + 3.3132617)) / 2),
        # Levels 0, 2, 1, gains 0, 3, 1: 3/4 of -ln p_b and 1/4 of -ln p_c, with ln Σ = 3.4076060.
        ("softmax", 0.75 * (3.4076060 - 1) + 0.25 * (3.4076060 - 2)),
    ],
)
def test_a_list_worked_by_hand(kind: str, expected: float) -> None:
    scores, labels = torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([[0.0, 2.0, 1.0]])
    loss = loss_of(kind, 0.1)(scores, labels, torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_loops_over_unpadded_lists_agree(kind: str, seed: int) -> None:
    scores, labels, valid = random_lists(seed)
    by_loop = [
        LOOPS[kind](row[keep].tolist(), label[keep].tolist(), 0.3)
        for row, label, keep in zip(scores, labels, valid, strict=True)
    ]
    orders = [value for value in by_loop if value is not None]
    assert len(orders) < len(by_loop)  # lists without an order do not count in the mean
    loss = loss_of(kind, 0.3)(scores, labels, valid)
    assert loss.item() == pytest.approx(sum(orders) / len(orders), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_lists_without_an_order_get_no_gradient(kind: str) -> None:
    scores, labels, valid = random_lists(0)
    scores.requires_grad_(True)
    loss_of(kind, 0.1)(scores, labels, valid).backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[~valid].any()
    assert not scores.grad[3].any()
    assert scores.grad[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_order_is_zero_and_differentiable(kind: str) -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    loss = loss_of(kind, 0.1)(scores, torch.ones(2, 3), valid)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_order_of_labels_counts(kind: str) -> None:
    scores, labels, valid = random_lists(1)
    loss = loss_of(kind, 0.2)
    torch.testing.assert_close(loss(scores, labels, valid), loss(scores, labels**3 - 17.5, valid))


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_list_of_distinct_scores_stays_finite(kind: str) -> None:
    scores = torch.linspace(1, -1, 500)[None].requires_grad_(True)
    loss = loss_of(kind, 0.01)(scores, torch.linspace(-3, 8, 500)[None], torch.ones(1, 500, dtype=torch.bool))
    loss.backward()
    assert scores.grad is not None
    assert math.isfinite(loss.item())
    assert torch.isfinite(scores.grad).all()


def test_info_nce_worked_by_hand() -> None:
    # Cosines 0.8 (positive), 0.6, 0.4 (ignored), 0.2 (positive), τ 0.2: the negative is 0.6 alone, and
    # -ln(e^4/(e^4+e^3)) = ln(1+e^-1) = 0.3132617, -ln(e^1/(e^1+e^3)) = ln(1+e^2) = 2.1269280.
    similarities = torch.tensor([[0.8, 0.6, 0.4, 0.2]])
    positive = torch.tensor([[True, False, False, True]])
    ignored = torch.tensor([[False, False, True, False]])
    loss = info_nce(similarities, positive, ignored, 0.2)
    assert loss.item() == pytest.approx((0.3132617 + 2.1269280) / 2, abs=1e-5)


def test_info_nce_agrees_with_a_loop_over_vectors() -> None:
    generator = torch.Generator().manual_seed(4)
    queries, passages = torch.randn(5, 6, generator=generator), torch.randn(12, 6, generator=generator)
    positive = torch.rand(5, 12, generator=generator) < 0.2
    positive |= torch.eye(5, 12, dtype=torch.bool)
    positive[2] = False
    ignored = (torch.rand(5, 12, generator=generator) < 0.2) & ~positive
    per_query = []
    for query, is_positive, is_ignored in zip(queries, positive, ignored, strict=True):
        terms = [math.exp(float(query @ passage / query.norm() / passage.norm()) / 0.1) for passage in passages]
        rivals = sum(t for t, p, i in zip(terms, is_positive, is_ignored, strict=True) if not p and not i)
        losses = [-math.log(t / (t + rivals)) for t, p in zip(terms, is_positive, strict=True) if p]
        if losses:
            per_query.append(sum(losses) / len(losses))
    assert len(per_query) == 4
    loss = info_nce(cosines(queries, passages), positive, ignored, 0.1)
    assert loss.item() == pytest.approx(sum(per_query) / len(per_query), rel=1e-4)


def test_info_nce_without_positive_or_negative_is_zero_and_differentiable() -> None:
    similarities = torch.rand(2, 3, requires_grad=True)
    positive = torch.tensor([[False, False, False], [True, True, False]])
    ignored = torch.tensor([[False, False, False], [False, False, True]])
    loss = info_nce(similarities, positive, ignored, 0.03)
    loss.backward()
    assert loss.item() == 0
    assert similarities.grad is not None
    assert not similarities.grad.any()


def test_false_negatives_are_those_far_above_the_best_positive() -> None:
    similarities = torch.tensor([[0.5, 0.7, 0.59, 0.61, 0.2], [0.9, 0.1, 0.2, 0.3, 0.4]])
    positive = torch.tensor([[True, False, False, False, True], [False, False, False, False, False]])
    found = false_negatives(similarities, positive, 0.1)
    assert found.tolist() == [[False, True, False, True, False], [False] * 5]


def test_the_penalty_is_the_mean_square_of_what_scores_moved() -> None:
    """By hand: differences 0.1, -0.2 and 0.3 over three passages; padding has no share and no gradient."""
    scores = torch.tensor([[0.5, 0.3], [0.9, 7.0]], requires_grad=True)
    retrieved = torch.tensor([[0.4, 0.5], [0.6, -7.0]])
    found = retriever_penalty(scores, retrieved, torch.tensor([[True, True], [True, False]]))
    found.backward()
    assert found.item() == pytest.approx((0.01 + 0.04 + 0.09) / 3)
    assert scores.grad is not None
    assert scores.grad.tolist()[1] == pytest.approx([0.2, 0.0])
