"""AdamW over the groups of a stage: each with a rate, a decay and a gradient norm of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from resrank.core.errors import CheckpointError
from resrank.training.processes import place_like
from resrank.training.stage_config import StageConfig
from resrank.training.trainable import ParameterGroup

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_BETAS = (0.9, 0.98)
"""As in arXiv 1706.03762, section 5.3: a run of a thousand steps is over before moments of 0.999 have settled."""


def rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """What the highest learning rate is multiplied by: a linear rise, then half a cosine.

    Args:
        step: Steps done before this one, from 0.
        steps: Of the whole stage.
        warmup_share: Share of the steps over which the rate rises.

    Returns:
        In (0, 1]: 1 at the last step of the rise; no step is lost to a rate of 0.
    """
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class StageOptimizer:
    """The optimizer of one stage. Its learning rates follow from the step alone, so that nothing of them is saved."""

    def __init__(
        self, groups: Sequence[ParameterGroup], config: StageConfig, names: Mapping[nn.Parameter, str]
    ) -> None:
        """Starts with empty moments.

        Args:
            groups: What is trained.
            config: Length and warm-up.
            names: Of all parameters of the groups; under these the moments are saved.
        """
        self._groups = groups
        self._config = config
        self._names = names
        self._rates = {group.name.value: group.learning_rate for group in groups}
        # Fused: one pass over the weights instead of ten, which on a CPU is most of the time of a full-parameter step.
        self._adamw = AdamW([part for group in groups for part in group.optimizer_groups()], betas=_BETAS, fused=True)

    @property
    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained, in the same order everywhere."""
        return (parameter for group in self._groups for parameter in group.parameters)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Each group's learning rate at a step, from 0."""
        factor = rate_factor(step, self._config.steps, self._config.warmup_share)
        return {name: factor * rate for name, rate in self._rates.items()}

    def clip(self) -> dict[str, float]:
        """Cuts each group's gradient to its norm.

        Returns:
            Each group's L2 norm as it was, not finite where a gradient is not.
        """
        norms: dict[str, float] = {}
        for group in self._groups:
            norm = torch.nn.utils.clip_grad_norm_(group.parameters, group.clip_norm)
            norms[group.name.value] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        return norms

    def step(self, step: int) -> None:
        """Changes the weights by their gradients, and forgets those.

        Args:
            step: Steps of the stage done before, from 0.
        """
        rates = self.learning_rates(step)
        for part in self._adamw.param_groups:
            part["lr"] = rates[part["name"]]
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state by parameter and moment; a parameter without a step yet has none. The tensors are shared."""
        return {
            f"{self._names[parameter]}:{moment}": self._adamw.state[parameter][moment]
            for parameter in self.parameters
            if parameter in self._adamw.state
            for moment in _MOMENTS
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Puts whole tensors of :meth:`moments` back.

        Raises:
            CheckpointError: They belong to other parameters.
        """
        left = set(moments)
        for parameter in self.parameters:
            names = {moment: f"{self._names[parameter]}:{moment}" for moment in _MOMENTS}
            if names["step"] not in moments:
                continue
            left -= set(names.values())
            # AdamW counts steps in fp32 on the parameter's device when it is fused.
            self._adamw.state[parameter] = {
                moment: moments[name].to(parameter.device) if moment == "step" else place_like(moments[name], parameter)
                for moment, name in names.items()
            }
        if left:
            raise CheckpointError(f"{min(left)}: is saved, but the stage does not train it")
