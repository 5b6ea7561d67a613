"""Gradient caching: a loss over more texts than fit one pass with gradients, exact to the last dropout mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from resrank.training.batches import TextChunk

Encode = Callable[[Tensor, Tensor], Tensor]
"""INT64 [B, L] ids and mask to FP32 [B, d]."""


class CachedEncoding:
    """Embeddings computed chunk by chunk, whose gradients are pushed into the encoder chunk by chunk.

    The last chunks keep their graphs; those before are computed without. The loss is computed and differentiated down
    to :attr:`embeddings`; then :meth:`backward` goes on with the gradient that was cached there: it computes each
    chunk without a graph again, this time with one and from the same state of the random generators, so that dropout
    agrees. Where all chunks are kept nothing is computed twice.

    Source: Gao et al., GradCache, arXiv 2101.06983.

    Attributes:
        embeddings: FP32 [P, d]. A leaf with a gradient if the encoder is trained.
    """

    def __init__(self, encode: Encode, chunks: Sequence[TextChunk], *, trained: bool, kept: int) -> None:
        """Runs the first passes.

        Args:
            encode: One pass of the encoder.
            chunks: Together they hold every row once.
            trained: Whether gradients are wanted; :meth:`backward` does nothing otherwise.
            kept: Chunks that keep their graphs, the last ones.
        """
        self._encode = encode
        self._passes: list[_Pass] = []
        found: list[Tensor] = []
        for index, chunk in enumerate(chunks):
            keeps = index >= len(chunks) - kept
            state = _RandomState.capture(chunk.input_ids.device)
            with torch.set_grad_enabled(trained and keeps):
                output = encode(chunk.input_ids, chunk.attention_mask)
            found.append(output.detach()[: len(chunk.rows)])
            if trained:
                self._passes.append(_Pass(chunk, output if keeps else state))
        rows = torch.cat([chunk.rows for chunk in chunks]).to(found[0].device)
        joined = torch.cat(found)
        self.embeddings = torch.empty_like(joined).index_copy_(0, rows, joined).requires_grad_(trained)

    def backward(self) -> None:
        """Adds to the encoder's gradients what the loss left in ``embeddings.grad``; to be called once, after it."""
        gradient = self.embeddings.grad
        if gradient is None:
            gradient = torch.zeros_like(self.embeddings)
        while self._passes:  # each graph is let go with its pass
            done = self._passes.pop()
            output = done.left
            if isinstance(output, _RandomState):
                with output.restored():
                    output = self._encode(done.chunk.input_ids, done.chunk.attention_mask)
            # A chunk that only fills up has no rows: its gradient is 0, but the pass must be made (see equal_chunks).
            share = torch.zeros_like(output)
            share[: len(done.chunk.rows)] = gradient[done.chunk.rows.to(gradient.device)]
            torch.autograd.backward(output, share)


@dataclass(frozen=True)
class _Pass:
    """What is left of a chunk's first pass: its output with the graph, or the generators' state before it."""

    chunk: TextChunk
    left: Tensor | _RandomState


@dataclass(frozen=True)
class _RandomState:
    """State of the generators that dropout on a device draws from."""

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> Self:
        on_gpu = device.type == "cuda"
        return cls(device, torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the context the generators are as they were; afterwards as if nothing had been drawn."""
        with torch.random.fork_rng(devices=[] if self.accelerator is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.accelerator is not None:
                torch.cuda.set_rng_state(self.accelerator, self.device)
            yield
