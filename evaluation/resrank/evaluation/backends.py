"""Where a checkpoint runs while it is evaluated: in torch in this process, or behind Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resrank.client import AsyncResRankClient
from resrank.client.index_build import BuildSettings, PassageEncoder
from resrank.core.checkpoint import CheckpointSpec, encoder_identity, validate_folder
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import IDENTITY
from resrank.core.progress import Notify
from resrank.evaluation.baselines import Projectors
from resrank.evaluation.evaluation import LexicalJoin, Row
from resrank.evaluation.names import Through
from resrank.evaluation.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resrank.evaluation.torch_scorer import TorchScorer


@dataclass(frozen=True)
class Backend:
    """A checkpoint that is ready to be evaluated.

    Attributes:
        through: Where it runs.
        scorer: Scores and embeds queries.
        encoder_sha256: Identity of its encoder, to which an index belongs.
        passage_encoder: Opens what embeds passages, inside a running event loop.
        build: How an index is filled with it.
        projectors: The checkpoint's, None where its folder was not given or its hidden states join no vectors.
        ablations: The checkpoint with a part of its input left out, for a row each; in torch, so only where its folder
            was given.
        join: How words count.
        facts: What a report tells about it.
    """

    through: Through
    scorer: Scorer
    encoder_sha256: str
    passage_encoder: Callable[[], AbstractAsyncContextManager[PassageEncoder]]
    build: BuildSettings
    projectors: Projectors | None
    ablations: Mapping[Row, Scorer]
    join: LexicalJoin
    facts: Mapping[str, Any]


def torch_backend(checkpoint: Path, notify: Notify) -> Backend:
    """A full checkpoint in torch, in fp32.

    Args:
        checkpoint: Its folder.
        notify: Called with one line before each step that takes seconds.

    Raises:
        CheckpointError: The checkpoint is not valid.
    """
    notify("loading the checkpoint")
    from resrank.evaluation.torch_scorer import TorchScorer
    from resrank.model.quiet import quiet_transformers

    with quiet_transformers():
        scorer = TorchScorer(checkpoint)

    @asynccontextmanager
    async def passage_encoder() -> AsyncIterator[PassageEncoder]:
        yield _TorchPassageEncoder(scorer)

    return Backend(
        through=Through.TORCH,
        scorer=scorer,
        encoder_sha256=encoder_identity(scorer.spec),
        passage_encoder=passage_encoder,
        build=BuildSettings(in_flight=1),  # one batch already takes every core
        projectors=_projectors(checkpoint, scorer.spec),
        ablations=_ablations(scorer),
        join=LexicalJoin(scorer.spec.fusion.cosine_map or IDENTITY, scorer.spec.fusion.lexical_weight),
        facts={"name": scorer.spec.name, "sha256": scorer.spec.digest(), "engines": {"torch": "fp32"}},
    )


@contextmanager
def stack_backend(triton: str, checkpoint: Path | None) -> Iterator[Backend]:
    """A checkpoint behind a running Triton.

    Args:
        triton: ``host:port``.
        checkpoint: The full checkpoint that it serves, for the rows with a part left out; None leaves those out.

    Raises:
        ResRankError: The server cannot be reached.
        InvalidInputError: It serves another checkpoint than ``checkpoint``.
    """
    from resrank.evaluation.stack_scorer import StackScorer

    with StackScorer(triton) as scorer:
        served, build = scorer.served, BuildSettings()
        spec = None if checkpoint is None else validate_folder(checkpoint, verify_hashes=False)
        if spec is not None and spec.digest() != served.sha256:
            raise InvalidInputError(
                "checkpoint", f"{checkpoint} is {spec.digest()}, but Triton serves checkpoint {served.sha256}"
            )
        yield Backend(
            through=Through.STACK,
            scorer=scorer,
            encoder_sha256=served.encoder_sha256,
            passage_encoder=lambda: AsyncResRankClient(triton, timeout_s=build.batch_timeout_s),
            build=build,
            projectors=None if checkpoint is None or spec is None else _projectors(checkpoint, spec),
            ablations={} if checkpoint is None or spec is None else _torch_ablations(checkpoint, spec),
            join=served.join,
            facts={"name": spec and spec.name, "sha256": served.sha256, "engines": dict(served.engines)},
        )


def _projectors(checkpoint: Path, spec: CheckpointSpec) -> Projectors | None:
    reads_vectors = not spec.reranker.slots.content.has_relations  # the projection is of vectors alone
    return Projectors.of(checkpoint) if reads_vectors and spec.fusion.has_vector_residual else None


def _torch_ablations(checkpoint: Path, spec: CheckpointSpec) -> dict[Row, Scorer]:
    if not spec.reranker.slots.content.has_relations:
        return {}
    from resrank.evaluation.torch_scorer import TorchScorer
    from resrank.model.quiet import quiet_transformers

    with quiet_transformers():
        return _ablations(TorchScorer(checkpoint))


def _ablations(scorer: TorchScorer) -> dict[Row, Scorer]:
    """What is left without the list, and without the query's text, where the checkpoint reads these."""
    from resrank.evaluation.torch_scorer import Part

    reranker = scorer.spec.reranker
    found: dict[Row, Scorer] = {}
    if reranker.slots.content.has_relations:
        found[Row.QUERY_ALONE] = scorer.without(Part.NEIGHBORS)
        if reranker.prompt is not None:
            found[Row.WITHOUT_TEXT] = scorer.without(Part.TEXT)
    return found


class _TorchPassageEncoder:
    """The scorer as what fills an index."""

    def __init__(self, scorer: TorchScorer) -> None:
        self._scorer = scorer

    async def encoder_sha256(self) -> str:
        return encoder_identity(self._scorer.spec)

    async def embed_passages(
        self, texts: Sequence[str], *, truncate: bool = False, bulk: bool = False
    ) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._scorer.embed_passages, texts)
