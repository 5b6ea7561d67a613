"""A checkpoint and the model repository that was exported from it: what the benchmarks run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from resrank.checkpoint import CheckpointSpec, read_spec
from resrank.engines import EngineKind, EngineOptions, Precision
from resrank.names import ENGINE_FILE, MANIFEST_FILE, Model
from resrank_benchmarks.measurement import BenchmarkError


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
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, repository: Path, checkpoint: Path) -> Self:
        """Reads both.

        Args:
            repository: The model repository.
            checkpoint: The checkpoint folder.

        Raises:
            CheckpointError: The checkpoint is not valid.
            BenchmarkError: The repository is none, or was exported from another checkpoint.
        """
        spec = read_spec(checkpoint)
        try:
            manifest = json.loads((repository / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"{repository} has no readable {MANIFEST_FILE} ({error}): "
                f"make it with resrank export {checkpoint} --out {repository}"
            ) from error
        if (exported := manifest["checkpoint"]["sha256"]) != spec.digest():
            raise BenchmarkError(
                f"{repository} was exported from checkpoint {exported}, but {checkpoint} is {spec.digest()}: "
                f"export it again with resrank export {checkpoint} --out {repository} --force"
            )
        return cls(repository, checkpoint, spec, manifest)

    def graph(self, model: Model) -> Path:
        """The ONNX graph of ``encoder`` or ``reranker``."""
        return self.repository / model / "1" / ENGINE_FILE

    def engine_options(self, model: Model) -> EngineOptions:
        """How the repository runs ``encoder`` or ``reranker``."""
        chosen = self.manifest["models"][model.value]
        return EngineOptions(EngineKind(chosen["engine"]), Precision(chosen["precision"]), int(chosen["threads"]))
