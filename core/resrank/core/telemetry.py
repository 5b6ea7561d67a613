"""Keeps engine runtimes from calling home: both send telemetry unless told otherwise before they are imported."""

from __future__ import annotations

import os
import sys

ONNXRUNTIME_VARIABLE = "ORT_DISABLE_TELEMETRY"
"""``1`` keeps ONNX Runtime's uploader, its events and its device id from being made (``Privacy.md`` in its package)."""


def no_telemetry() -> None:
    """Call it before anything that imports ONNX Runtime or OpenVINO; processes started later inherit the first half.

    OpenVINO has no switch of its own: it does without the package ``openvino_telemetry`` where that cannot be imported.
    """
    os.environ[ONNXRUNTIME_VARIABLE] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python forbids an import
