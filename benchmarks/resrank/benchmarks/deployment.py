"""A checkpoint and the model repository that was exported from it: what the benchmarks run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import CheckpointSpec, read_spec
from resrank.core.names import ENGINE_FILE, VERSION, Model
from resrank.export.manifest import Manifest, Runtime, read_manifest
from resrank.serving.engines import EngineOptions


@dataclass(frozen=True)
class Deployment:
    """Both folders, known to belong together.

    Attributes:
        repository: Model repository as ``resrank export`` writes it.
        checkpoint: The checkpoint folder it was made from.
        spec: The checkpoint's fields.
        manifest: The repository's ``manifest.json``.
    """

    repository: Path
    checkpoint: Path
    spec: CheckpointSpec
    manifest: Manifest

    @classmethod
    def open(cls, repository: Path, checkpoint: Path) -> Self:
        """Reads both.

        Raises:
            CheckpointError: The checkpoint is not valid.
            ManifestError: The repository is none, or of another version.
            BenchmarkError: It was exported from another checkpoint, or not for a CPU.
        """
        spec = read_spec(checkpoint)
        manifest = read_manifest(repository)
        if (exported := manifest.checkpoint.sha256) != spec.digest():
            raise BenchmarkError(
                f"{repository} was exported from checkpoint {exported}, but {checkpoint} is {spec.digest()}: "
                f"export it again with resrank export {checkpoint} --out {repository} --force"
            )
        if manifest.runtime is not Runtime.CPU:
            raise BenchmarkError(
                f"{repository} was exported for runtime {manifest.runtime.value}, but this measures CPU engines: make "
                f"another with resrank export {checkpoint} --out {repository} --force"
            )
        return cls(repository, checkpoint, spec, manifest)

    def graph(self, model: Model) -> Path:
        """The ONNX graph of ``encoder`` or ``reranker``."""
        return self.repository / model / VERSION / ENGINE_FILE

    def engine_options(self, model: Model) -> EngineOptions:
        """How the repository runs ``encoder`` or ``reranker``."""
        chosen = self.manifest.models[model]
        return EngineOptions(chosen.engine, chosen.precision, chosen.threads)
