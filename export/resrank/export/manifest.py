"""``manifest.json`` at a model repository's root: what it was made of, and what it needs of the machine that serves it.

Export writes it, :mod:`resrank.export.plan_record` adds plans that are built later, and whoever is about to serve the
repository compares it with the machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from resrank.core.calibration import Calibration
from resrank.core.durability import replace_file
from resrank.core.errors import ResRankError
from resrank.core.json_lines import parse_json
from resrank.core.names import MANIFEST_FILE, PLAN_FILE, Model
from resrank.core.strict_json import Sha256, StrictModel
from resrank.serving.engines.base import EngineKind, Precision

MANIFEST_SCHEMA: Final = 4

Capability = Annotated[str, Field(pattern=r"^[1-9]\d?\.\d$")]
"""A GPU's compute capability as NVIDIA writes it: ``8.9``, ``12.0``."""


class ManifestError(ResRankError):
    """A folder is no finished model repository, or one of another version; the message says how to make it anew."""


class Runtime(StrEnum):
    """What ``resrank export --runtime`` makes a repository for."""

    CPU = "cpu"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    TORCH = "torch"


_ENGINES: dict[Runtime, frozenset[EngineKind]] = {
    Runtime.CPU: frozenset({EngineKind.OPENVINO, EngineKind.ONNXRUNTIME}),
    Runtime.TENSORRT: frozenset({EngineKind.TENSORRT}),
    Runtime.TENSORRT_RTX: frozenset({EngineKind.TENSORRT_RTX}),
    Runtime.TORCH: frozenset({EngineKind.TORCH}),
}
_PLANNED = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)


class CheckpointFacts(StrictModel):
    """Which checkpoint was exported.

    Attributes:
        name: Its name.
        sha256: Its digest.
        encoder_sha256: The encoder's identity, to which an index belongs.
        calibration: What its scores mean; None where nobody fitted that.
    """

    name: str
    sha256: Sha256
    encoder_sha256: Sha256
    calibration: Calibration | None = None


class ToleranceFacts(StrictModel):
    """What an engine was allowed to be off by.

    Attributes:
        state_cosine: Least cosine of a state.
        score: Largest difference of a score.
    """

    state_cosine: float
    score: float


class ParityFacts(StrictModel):
    """How near the engine, or the graph that it is built from, comes to the torch reference in fp32.

    Attributes:
        by: What computed the exported model for this measurement, for instance ``openvino`` or ``torch``.
        state_cosine: Least cosine over all rows; None for a reranker that gives numbers alone.
        score_difference: Largest difference of a score at residual gate 1.
        kendall_tau: Over the pairs further apart than the tolerance.
        rows: How many vectors were compared.
        tolerance: The bounds that the figures were held to.
    """

    by: str
    state_cosine: float | None
    score_difference: float
    kendall_tau: float
    rows: int
    tolerance: ToleranceFacts


class PlanFacts(StrictModel):
    """One built TensorRT engine.

    Attributes:
        file: Its name in the model's version folder.
        sha256: Of the file.
        bytes: The file's size.
        tensorrt_flavour: Which runtime reads it; neither flavour reads the other's.
        tensorrt_version: Of the builder. Plans load in that version only.
        timing_cache: Whether kernels were chosen by an earlier build's timings.
        build_seconds: How long the build took.
    """

    file: str = Field(pattern=r"^[\w.-]+$")
    sha256: Sha256
    bytes: int = Field(ge=1)
    tensorrt_flavour: EngineKind
    tensorrt_version: str
    timing_cache: bool
    build_seconds: float = Field(ge=0)


class AxisRange(StrictModel):
    """The sizes of one dynamic axis in an optimisation profile.

    Attributes:
        min: Smallest that the engine takes.
        opt: The one that it is fastest at.
        max: Largest that it takes.
    """

    min: int = Field(ge=1)
    opt: int
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max} do not ascend")
        return self


class EngineFacts(StrictModel):
    """One engine model, ``encoder`` or ``reranker``.

    Attributes:
        engine: What hosts it.
        precision: What its matrix products are computed in.
        threads: Threads of one inference on a CPU, 0 for all cores.
        opset: Of the exported graph; None where the engine reads the checkpoint itself.
        onnx_sha256: Name to digest of the graph and its external data, as exported.
        parity: None where nothing here could compute the exported graph.
        plans: By compute capability. Empty for other engines, and until the plans are built.
        profiles: The plans' optimisation profiles, in their order: axis (``batch``, ``tokens``, ``sequence``,
            ``candidates``) to sizes.
        checkpoint_sha256: Of the checkpoint in the version folder, where the engine reads one: its score head has the
            engines' length (:mod:`resrank.export.engine_head`), so it is not the exported one's. None elsewhere.
    """

    engine: EngineKind
    precision: Precision
    threads: int = Field(ge=0)
    opset: int | None
    onnx_sha256: dict[str, Sha256]
    parity: ParityFacts | None
    plans: dict[Capability, PlanFacts]
    profiles: tuple[dict[str, AxisRange], ...]
    checkpoint_sha256: Sha256 | None = Field(default=None, exclude_if=lambda value: value is None)


class BucketFacts(StrictModel):
    """The lengths that serving pads to, ascending, so that requests of one bucket are batched together.

    Attributes:
        passage_tokens: Of ``passage_tokenizer``.
        query_tokens: Of ``query_tokenizer``.
        sequence: S of ``rerank_prompt``.
        candidates: N' of ``rerank_prompt``.
    """

    passage_tokens: tuple[int, ...]
    query_tokens: tuple[int, ...]
    sequence: tuple[int, ...]
    candidates: tuple[int, ...]


class BuiltOn(StrictModel):
    """The machine that exported.

    Attributes:
        machine: Its architecture.
        python: The Python's version.
    """

    machine: str
    python: str


class Manifest(StrictModel):
    """The whole file.

    Attributes:
        schema_version: Of this file's form.
        runtime: What the repository was made for.
        checkpoint: What it was made from.
        models: ``encoder`` and ``reranker``.
        buckets: None where nothing is padded ahead.
        compute_capabilities: Those that plans are, or have yet to be, built for. Empty without plans, and where the
            plans are built on the serving machine for its own GPU.
        gpus: CUDA ordinals of the GPUs that serve it; empty for all there are.
        built_on: The machine that exported.
        versions: Package to version at the export, None for what was not installed.
    """

    schema_version: Literal[4] = MANIFEST_SCHEMA
    runtime: Runtime
    checkpoint: CheckpointFacts
    models: dict[Model, EngineFacts]
    buckets: BucketFacts | None
    compute_capabilities: tuple[Capability, ...]
    gpus: tuple[int, ...]
    built_on: BuiltOn
    versions: dict[str, str | None]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.models) != {Model.ENCODER, Model.RERANKER}:
            raise ValueError(f"models are {', '.join(self.models)}, not encoder and reranker")
        if self.compute_capabilities and self.runtime not in _PLANNED:
            raise ValueError(f"runtime {self.runtime.value} has no compute capabilities")
        for model, facts in self.models.items():
            if facts.engine not in _ENGINES[self.runtime]:
                raise ValueError(f"{model}: engine {facts.engine.value} is not one of runtime {self.runtime.value}")
            if any(plan.tensorrt_flavour is not facts.engine for plan in facts.plans.values()):
                raise ValueError(f"{model}: a plan is not of engine {facts.engine.value}")
            unknown = set(facts.plans) - set(self.compute_capabilities)
            if self.compute_capabilities and unknown:
                raise ValueError(f"{model}: plans for {', '.join(sorted(unknown))}, which compute_capabilities lacks")
        return self

    def missing_plans(self, model: Model) -> tuple[str, ...] | None:
        """What has yet to be built for a model.

        Args:
            model: ``encoder`` or ``reranker``.

        Returns:
            The compute capabilities without a plan, empty when all plans are there or none are needed; None when one
            plan is to be built for whatever GPU serves the repository.
        """
        plans = self.models[model].plans
        if self.runtime not in _PLANNED:
            return ()
        if not self.compute_capabilities:
            return () if plans else None
        return tuple(capability for capability in self.compute_capabilities if capability not in plans)


def capability_name(sm: int) -> str:
    """The dotted form of a compute capability that is written as a number: 89 to ``8.9``, 120 to ``12.0``."""
    return f"{sm // 10}.{sm % 10}"


def plan_file(capabilities: Sequence[str], capability: str) -> str:
    """The name of a plan in its model's version folder.

    Args:
        capabilities: Those that the repository has plans for; empty where there is one plan for one GPU.
        capability: The plan's.

    Returns:
        ``model.plan`` where there is one plan, else ``model.sm89.plan``.
    """
    if len(capabilities) <= 1:
        return PLAN_FILE
    stem, suffix = PLAN_FILE.split(".")
    return f"{stem}.sm{capability.replace('.', '')}.{suffix}"


def read_manifest(repository: Path) -> Manifest:
    """Reads and validates a repository's manifest.

    Args:
        repository: Model repository as ``resrank export`` writes it.

    Raises:
        ManifestError: There is none, it is damaged, or another version of ResRank wrote it.
    """
    path = repository / MANIFEST_FILE
    again = f"make one with resrank export CHECKPOINT --out {repository}"
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
        schema = fields["schema_version"]
    except FileNotFoundError:
        raise ManifestError(
            f"{repository} has no {MANIFEST_FILE}, so it is no finished model repository: {again}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is not a manifest as export writes it ({error!r}): {again}") from None
    if schema != MANIFEST_SCHEMA:
        raise ManifestError(
            f"{path}: schema_version is {schema!r}, this version of resrank reads {MANIFEST_SCHEMA}: export again with "
            f"resrank export CHECKPOINT --out {repository} --force"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}"
        raise ManifestError(f"{path} is not a manifest as export writes it ({what}): {again}") from None


def write_manifest(manifest: Manifest, repository: Path) -> None:
    """Writes a repository's manifest, of which a reader sees the old one or the new one.

    Raises:
        OSError: The disk is full or fails.
    """
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    replace_file(repository / MANIFEST_FILE, text)
