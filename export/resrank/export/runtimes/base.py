"""The interface of every runtime: from a loaded checkpoint to the engines of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.core.prompt import PromptLayout
from resrank.export.gpu_serving import GpuServing
from resrank.export.manifest import ParityFacts, ToleranceFacts
from resrank.export.parity import ParityGate, ParityResult
from resrank.export.repository import EngineModel
from resrank.model.modeling import ResRankModel

ENGINE_MODELS = (Model.ENCODER, Model.RERANKER)


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        checkpoint: A full checkpoint's folder.
        model: The torch model, fp32.
        layout: The checkpoint's prompt.
        gate: Holds the reference's answers.
        scratch: A folder on the target's file system, deleted after the export.
        notify: Called with one line per step.
    """

    checkpoint: Path
    model: ResRankModel
    layout: PromptLayout
    gate: ParityGate
    scratch: Path
    notify: Notify


@dataclass(frozen=True)
class EngineChoice:
    """One engine that was tried for one model.

    Attributes:
        parity: Its figures against the reference.
        by: What computed them: the engine itself, or what stands in for an engine that needs a GPU.
        latency_ms: Least time of one pass in milliseconds: the encoder over the parity batch, the reranker over its
            first row (as many candidates as one pass takes). None where the engine itself did not run.
        rows: How many rows that pass has.
    """

    parity: ParityResult
    by: str
    latency_ms: float | None = None
    rows: int = 1

    @property
    def row_ms(self) -> float | None:
        """Milliseconds of one row; None where the engine itself did not run."""
        return None if self.latency_ms is None else self.latency_ms / self.rows


@dataclass(frozen=True)
class RuntimeExport:
    """What a runtime made.

    Attributes:
        models: ``encoder`` and ``reranker``.
        chosen: Model to the engine that the repository holds.
        tried: Every engine that was measured.
        refused: Engines that could not be made here, and why.
        gpu: How GPUs serve the repository; None for CPUs.
        compute_capabilities: That plans are, or have yet to be, built for; empty where none were named or are needed.
        build_script: What builds the plans later; None where nothing is left to build.
        put_off: Why they are not built here.
    """

    models: Mapping[Model, EngineModel]
    chosen: Mapping[Model, EngineChoice]
    tried: tuple[EngineChoice, ...]
    refused: tuple[str, ...] = ()
    gpu: GpuServing | None = None
    compute_capabilities: tuple[str, ...] = ()
    build_script: str | None = None
    put_off: str | None = None


class ExportRuntime(Protocol):
    """One value of ``--runtime``."""

    def prepare(self, checkpoint: Path, spec: CheckpointSpec, layout: PromptLayout) -> None:
        """Checks the wishes against the checkpoint and this machine before the weights are loaded.

        Raises:
            ExportError: The checkpoint cannot be exported so.
        """
        ...

    def bytes_needed(self, parameters: int) -> int:
        """The least room on the disk that the export takes.

        Args:
            parameters: Weights of both backbones together.
        """
        ...

    def export(self, subject: Subject) -> RuntimeExport:
        """Exports both models and holds them against the reference.

        Raises:
            ParityError: No engine is within tolerance; the message holds the table.
            ExportError: The models cannot be exported, or no engine can be made.
        """
        ...


def parity_facts(choice: EngineChoice) -> ParityFacts:
    """An engine's figures for the manifest."""
    parity = choice.parity
    return ParityFacts(
        by=choice.by,
        state_cosine=parity.state_cosine,
        score_difference=parity.score_difference,
        kendall_tau=parity.kendall_tau,
        rows=parity.rows,
        tolerance=ToleranceFacts(**asdict(parity.tolerance)),
    )
