"""How GPUs serve a repository: what the configs of its models are written from."""

from __future__ import annotations

from dataclasses import dataclass

from resrank.core.buckets import Buckets
from resrank.core.names import Model
from resrank.export.manifest import Runtime
from resrank.export.profiles import Profiles


@dataclass(frozen=True)
class GpuServing:
    """One repository's settings, the same for both engines.

    Attributes:
        runtime: Any but ``cpu``.
        profiles: The shapes that the engines take.
        buckets: The lengths that rows are padded to.
        capabilities: Compute capabilities with a plan of their own; empty where there is one plan or none.
        gpus: CUDA ordinals; empty for all there are.
        instances: Engines of each model on each GPU.
    """

    runtime: Runtime
    profiles: Profiles
    buckets: Buckets
    capabilities: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    instances: int = 1

    def max_batch(self, model: Model) -> int:
        """Rows that an engine takes in one call.

        Args:
            model: ``encoder`` or ``reranker``.
        """
        profiles = self.profiles.encoder if model is Model.ENCODER else self.profiles.reranker
        return max(profile.batch.max for profile in profiles)

    @property
    def token_buckets(self) -> tuple[int, ...]:
        """The encoder's lengths: those of passages and those of queries, ascending."""
        return tuple(sorted({*self.buckets.passage_tokens, *self.buckets.query_tokens}))
