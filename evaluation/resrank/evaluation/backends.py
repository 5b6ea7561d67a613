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

from resrank.client.index_build import BuildSettings, PassageEncoder
from resrank.core.checkpoint import CheckpointSpec, encoder_identity, is_adapter, validate_folder
from resrank.core.errors import InvalidInputError
from resrank.evaluation.baselines import Projectors
from resrank.evaluation.names import Through
from resrank.evaluation.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resrank.evaluation.torch_scorer import TorchScorer

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Backend:
    """A checkpoint that is ready to be evaluated.

    Attributes:
        through: Where it runs.
        scorer: Scores and embeds queries.
        encoder_sha256: Identity of its encoder, to which an index belongs.
        passage_encoder: Opens what embeds passages, inside a running event loop.
        build: How an index is filled with it.
        projectors: The checkpoint's, None where its folder was not given.
        facts: What a report tells about it.
    """

    through: Through
    scorer: Scorer
    encoder_sha256: str
    passage_encoder: Callable[[], AbstractAsyncContextManager[PassageEncoder]]
    build: BuildSettings
    projectors: Projectors | None
    facts: Mapping[str, Any]


@contextmanager
def torch_backend(checkpoint: Path, scratch: Path, notify: Notify) -> Iterator[Backend]:
    """A checkpoint in torch, in fp32.

    Args:
        checkpoint: A full or an adapter checkpoint.
        scratch: Folder for an adapter checkpoint's merged weights.
        notify: Called with one line before each step that takes seconds.

    Raises:
        CheckpointError: The checkpoint is not valid.
    """
    folder = full_checkpoint(checkpoint, scratch, notify)
    notify("loading the checkpoint")
    from resrank.evaluation.torch_scorer import TorchScorer
    from resrank.export.initialize import quiet_transformers

    with quiet_transformers():
        scorer = TorchScorer(folder)

    @asynccontextmanager
    async def passage_encoder() -> AsyncIterator[PassageEncoder]:
        yield _TorchPassageEncoder(scorer)

    yield Backend(
        through=Through.TORCH,
        scorer=scorer,
        encoder_sha256=encoder_identity(scorer.spec),
        passage_encoder=passage_encoder,
        build=BuildSettings(in_flight=1),  # one batch already takes every core
        projectors=Projectors.of(folder),
        facts={"name": scorer.spec.name, "sha256": scorer.spec.digest(), "engines": {"torch": "fp32"}},
    )


@contextmanager
def stack_backend(
    *, repository: Path | None, triton: str | None, checkpoint: Path | None, scratch: Path, notify: Notify
) -> Iterator[Backend]:
    """A checkpoint behind Triton, one that is started here or one that runs already.

    Args:
        repository: Model repository to start a Triton on, where ``triton`` is None.
        triton: ``host:port`` of a running one.
        checkpoint: What the repository was exported from, for the row without the LLM; None leaves the row out.
        scratch: Folder for an adapter checkpoint's merged weights.
        notify: Called with one line before each step that takes seconds.

    Raises:
        ResRankError: The server cannot be started or reached.
        InvalidInputError: The server has another checkpoint than ``checkpoint``.
    """
    from resrank.client import AsyncResRankClient
    from resrank.evaluation.stack_scorer import StackScorer

    with _triton(repository, triton, notify) as address, StackScorer(address) as scorer:
        served, build = scorer.served, BuildSettings()
        projectors = None
        spec: CheckpointSpec | None = None
        if checkpoint is not None:
            folder = full_checkpoint(checkpoint, scratch, notify)
            spec = validate_folder(folder, verify_hashes=False)
            if spec.digest() != served.sha256:
                raise InvalidInputError(
                    "checkpoint", f"{checkpoint} is {spec.digest()}, but Triton serves checkpoint {served.sha256}"
                )
            projectors = Projectors.of(folder)
        yield Backend(
            through=Through.STACK,
            scorer=scorer,
            encoder_sha256=served.encoder_sha256,
            passage_encoder=lambda: AsyncResRankClient(address, timeout_s=build.batch_timeout_s),
            build=build,
            projectors=projectors,
            facts={"name": spec and spec.name, "sha256": served.sha256, "engines": dict(served.engines)},
        )


def full_checkpoint(checkpoint: Path, scratch: Path, notify: Notify) -> Path:
    """A folder with all weights: the checkpoint itself, or an adapter checkpoint merged.

    Args:
        checkpoint: A full or an adapter checkpoint.
        scratch: Where the merged one goes.
        notify: Called with one line before each step that takes seconds.
    """
    if not is_adapter(checkpoint):
        return checkpoint
    from resrank.export.adapters import merge_adapter

    merged = scratch / "checkpoint"
    merge_adapter(checkpoint, merged, notify=notify)
    return merged


@contextmanager
def _triton(repository: Path | None, running: str | None, notify: Notify) -> Iterator[str]:
    if running is not None:
        yield running
        return
    if repository is None:
        raise InvalidInputError("repository", "needed to start Triton, or the address of one that runs")
    from resrank.stack.triton_process import TritonProcess

    notify(f"starting Triton on {repository}")
    with TritonProcess(repository) as process:
        yield process.grpc_address


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
