"""What the trainer knows of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from resrank.training.lists import CandidateList
from resrank.training.stage_config import StageConfig
from resrank.training.trainable import ParameterGroup

Backward = Callable[[Tensor], None]
"""Differentiates a loss; whoever gives it may look at the loss first, and scale it."""


class Stage(Protocol):
    """One way to train.

    Attributes:
        name: As in the config.
        groups: What is trained, with learning rates and norms. Making a stage gives gradients to these alone.
    """

    name: str
    groups: list[ParameterGroup]

    @property
    def config(self) -> StageConfig:
        """Length, batch and schedule."""
        ...

    def step(self, lists: Sequence[CandidateList], backward: Backward) -> dict[str, float]:
        """Computes the loss of some lists and adds its gradients to the parameters'.

        Args:
            lists: As the sampler gives them: their order is the one that the reranker sees.
            backward: Called once.

        Returns:
            ``loss``, which was differentiated, and its parts without their weights.
        """
        ...
