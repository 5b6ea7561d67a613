"""The processes of one run: one, several replicas of the model, or several that share its weights (FSDP)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from resrank.core.errors import TrainingError
from resrank.training.trainable import ROLES, TrainableResRank

_BUCKET_VALUES = 16 * 1024 * 1024
"""Gradient values averaged in one message: 64 MiB of fp32, large enough to be bound by bandwidth."""

_PATIENCE = timedelta(hours=24)
"""How long processes wait for each other. The first one encodes and mines alone, for hours on a large collection, and
NCCL would end the run after ten minutes; where a process fails, the launcher ends the others at once."""

_Value = TypeVar("_Value")


class Processes:
    """What ``accelerate launch`` (or ``torchrun``) started, or this process alone.

    Every process runs the same program on lists of its own; the first one alone writes. **Replicas** hold the whole
    model and average their gradients once after the passes of a step, so that nothing wraps the model and a stage may
    make as many passes as it likes. Where one process fails, the launcher ends the others.

    **FSDP** (version 2, ``fully_shard``) shards parameters, gradients and AdamW's moments, each decoder layer a unit
    of its own. It asks three things of the rest, all of which hold here: every pass goes through the model's
    ``forward``; all processes make the same number of passes, since each is a collective operation (evaluation and
    tables are computed by all of them alike, and :meth:`largest` agrees on chunks); and what is saved or loaded goes
    through :meth:`whole` and :meth:`place_like`. The processes' gradients are averaged in the backward pass.

    Attributes:
        rank: This process's number, from 0.
        count: How many there are.
        device: Where this one computes.
        sharded: Whether the weights are shared by FSDP.
    """

    def __init__(self) -> None:
        """Joins the processes that were launched together.

        Raises:
            TrainingError: FSDP of version 1 is asked for.
        """
        # Precision is the model's own affair (``model.compute.precision``), whatever accelerate's config says.
        self._accelerator = Accelerator(
            mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
        )
        self.rank = int(self._accelerator.process_index)
        self.count = int(self._accelerator.num_processes)
        self.device = torch.device(self._accelerator.device)
        self.sharded = self._accelerator.distributed_type is DistributedType.FSDP
        if self.sharded and not self._accelerator.is_fsdp2:
            raise TrainingError("FSDP version 1 is not supported: set fsdp_version: 2 in accelerate's config")

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def leave(self, *, failed: bool = False) -> None:
        """Ends the connection to the others, once all have come to their end.

        Its threads would otherwise be there when the interpreter ends, and now and then abort it.

        Args:
            failed: Do not wait: the others may never come.
        """
        if torch.distributed.is_initialized():
            if not failed:
                self.wait()
            torch.distributed.destroy_process_group()

    def place(self, model: TrainableResRank) -> None:
        """Moves a model to this process's device, or shards it over all of them; in place."""
        if self.sharded:
            shard(model)
        else:
            model.to(self.device)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the replicas; FSDP has done so already.

        Args:
            parameters: The same ones in the same order everywhere; a missing gradient counts as 0.
        """
        if self.count == 1 or self.sharded:
            return
        for bucket in _buckets(parameters):
            gradients = []
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(joined)
            joined /= self.count
            parts = torch.split(joined, [gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, parts, strict=True):
                gradient.copy_(mean.view_as(gradient))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means over the processes of values that all of them have under the same names."""
        if self.count == 1:
            return dict(values)
        joined = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(joined)
        return dict(zip(values, (joined / self.count).tolist(), strict=True))

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.count == 1:
            return value
        found = torch.tensor([value], device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, value: _Value) -> list[_Value]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Lets the first process run the block alone, and the others after it: they find what it made."""
        with self._accelerator.main_process_first():
            yield

    def seed(self, seed: int) -> None:
        """Seeds the generators that dropout draws from, in each process otherwise: replicas drop out differently.

        Args:
            seed: Of the run.
        """
        # 32 bits, since the CPU's generator drops those above: seeds that differ only there would be one.
        torch.manual_seed(int(np.random.SeedSequence((seed, self.rank)).generate_state(1)[0]))

    def random_state(self) -> dict[str, Tensor]:
        """State of the generators that dropout draws from in this process, UINT8."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts a :meth:`random_state` back; one of another kind of device restores what both have."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def shard(model: TrainableResRank, mesh: DeviceMesh | None = None) -> None:
    """Shards a model in place: each layer of the backbones is a unit, and what is left (embeddings, projectors) one.

    Between passes every parameter is its shard, so that stages and states find the same ones at any time.

    Args:
        model: The model; its parameters are replaced.
        mesh: The devices; None for all processes' accelerators.
    """
    for role in ROLES:
        backbone = model.backbone(role)
        layers = set(backbone._no_split_modules or ())
        for module in backbone.modules():
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, put together from all processes where they are sharded.

    Args:
        tensors: By name; where they are sharded, all processes must call this with the same names in the same order.
    """
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
    }


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the type, on the device, and with the sharding of another.

    Args:
        value: Any type, on any device.
        like: What it shall stand in for.
    """
    value = value.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return value
    return cast("Tensor", distribute_tensor(value, like.device_mesh, like.placements))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(held.numel() for held in bucket) + parameter.numel() > _BUCKET_VALUES:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
