"""The optimizer of a stage: rates by hand, and AdamW against its formula written as a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from resrank.core.errors import CheckpointError
from resrank.training.optimization import StageOptimizer, rate_factor
from resrank.training.stage_config import GroupName, StageConfig
from resrank.training.trainable import ParameterGroup


def test_rates_rise_linearly_and_fall_by_a_cosine() -> None:
    factors = [rate_factor(step, 12, 0.25) for step in range(12)]  # three steps of warm-up, nine of the cosine
    assert factors[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors[4:] == pytest.approx([(1 + math.cos(math.pi * step / 9)) / 2 for step in range(1, 9)])
    assert factors[-1] > 0


def test_without_warm_up_the_first_rate_is_the_highest() -> None:
    assert rate_factor(0, 10, 0.0) == 1
    assert rate_factor(0, 1, 0.05) == 1


def made(seed: int = 0) -> tuple[list[ParameterGroup], dict[nn.Parameter, str]]:
    generator = torch.Generator().manual_seed(seed)
    matrix, vector, gate = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,), (1,)))
    groups = [
        ParameterGroup(GroupName.RERANKER, (matrix, vector), learning_rate=0.1, weight_decay=0.5, clip_norm=1.0),
        ParameterGroup(GroupName.GATE, (gate,), learning_rate=0.01, weight_decay=0.5, clip_norm=2.0),
    ]
    return groups, {matrix: "matrix", vector: "vector", gate: "gate"}


def set_gradients(names: dict[nn.Parameter, str], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in names:
        parameter.grad = 3 * torch.randn(parameter.shape, generator=generator)


def test_each_group_is_clipped_to_its_own_norm() -> None:
    groups, names = made()
    matrix, vector, gate = names
    matrix.grad, vector.grad, gate.grad = torch.ones(3, 2), torch.ones(4), torch.tensor([1.5])
    norms = StageOptimizer(groups, StageConfig(steps=4), names).clip()
    assert norms == {"reranker": pytest.approx(math.sqrt(10)), "gate": pytest.approx(1.5)}
    assert matrix.grad[0, 0] == vector.grad[0] == pytest.approx(1 / math.sqrt(10), rel=1e-5)
    assert gate.grad.item() == 1.5  # below its norm: left alone, however large the others are


def test_steps_follow_adamws_formula() -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with betas 0.9 and 0.98; vectors do not decay."""
    groups, names = made()
    config = StageConfig(steps=5, warmup_share=0.2)
    optimizer = StageOptimizer(groups, config, names)
    expected = {name: parameter.detach().double().clone() for parameter, name in names.items()}
    rates, decays = {"matrix": 0.1, "vector": 0.1, "gate": 0.01}, {"matrix": 0.5, "vector": 0.0, "gate": 0.0}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(5):
        set_gradients(names, step)
        gradients = {name: parameter.grad.double() for parameter, name in names.items() if parameter.grad is not None}
        optimizer.step(step)
        for name, weight in expected.items():
            rate = rates[name] * (1 if step == 0 else (1 + math.cos(math.pi * (step - 1) / 4)) / 2)
            first[name] = 0.9 * first[name] + 0.1 * gradients[name]
            second[name] = 0.98 * second[name] + 0.02 * gradients[name] ** 2
            corrected = first[name] / (1 - 0.9 ** (step + 1))
            scale = (second[name] / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8
            expected[name] = weight * (1 - rate * decays[name]) - rate * corrected / scale
    for parameter, name in names.items():
        assert parameter.detach().numpy() == pytest.approx(expected[name].numpy(), rel=1e-5, abs=1e-6)
        assert parameter.grad is None


def test_moments_that_are_put_back_go_on_to_the_bit() -> None:
    groups, names = made()
    whole = StageOptimizer(groups, StageConfig(steps=6), names)
    again, other_names = made()
    for step in range(3):
        set_gradients(names, step)
        whole.step(step)
    resumed = StageOptimizer(again, StageConfig(steps=6), other_names)
    with torch.no_grad():
        for parameter, other in zip(names, other_names, strict=True):
            other.copy_(parameter)
    resumed.load_moments({name: value.clone() for name, value in whole.moments().items()})
    for step in range(3, 6):
        set_gradients(names, step)
        set_gradients(other_names, step)
        whole.step(step)
        resumed.step(step)
    assert all(torch.equal(one, other) for one, other in zip(names, other_names, strict=True))


def test_moments_of_another_stage_are_refused() -> None:
    groups, names = made()
    optimizer = StageOptimizer(groups, StageConfig(steps=2), names)
    set_gradients(names, 0)
    optimizer.step(0)
    gate_only = StageOptimizer(groups[1:], StageConfig(steps=2), names)
    with pytest.raises(CheckpointError, match="matrix:exp_avg: is saved, but the stage does not train it"):
        gate_only.load_moments(optimizer.moments())
