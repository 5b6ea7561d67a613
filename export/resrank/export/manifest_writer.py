"""Writes down what an export made: the content of ``manifest.json``."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from resrank.core.calibration import Calibration
from resrank.core.checkpoint import CheckpointSpec, encoder_identity
from resrank.export.export_options import ExportOptions
from resrank.export.manifest import BucketFacts, BuiltOn, CheckpointFacts, Manifest
from resrank.export.runtimes.base import RuntimeExport

_VERSIONS_OF = (
    "resrank",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "openvino",
    "onnxruntime",
    "tensorrt_rtx_cu13_bindings",
    "numpy",
)


def make_manifest(
    spec: CheckpointSpec, calibration: Calibration | None, options: ExportOptions, made: RuntimeExport
) -> Manifest:
    """Joins the facts of an export.

    Args:
        spec: The checkpoint's fields.
        calibration: What its scores mean; None where nobody fitted that.
        options: What was asked for.
        made: What the runtime made of it.
    """
    buckets = made.gpu.buckets if made.gpu else None
    return Manifest(
        runtime=options.runtime,
        checkpoint=CheckpointFacts(
            name=spec.name, sha256=spec.digest(), encoder_sha256=encoder_identity(spec), calibration=calibration
        ),
        models={model: engine.facts for model, engine in made.models.items()},
        buckets=BucketFacts(**asdict(buckets)) if buckets else None,
        compute_capabilities=made.compute_capabilities,
        gpus=options.gpus,
        built_on=BuiltOn(machine=platform.machine(), python=platform.python_version()),
        versions={name: _version(name) for name in _VERSIONS_OF},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
