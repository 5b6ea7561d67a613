"""Exit codes of the ``resrank`` command, and how errors become one of them and one sentence."""

from __future__ import annotations

from enum import IntEnum

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    ServerUnavailableError,
)
from resrank.core.extras import install_command


class ExitCode(IntEnum):
    """What a script can rely on. 3, 4 and 5 are worth another try."""

    OK = 0
    FAILURE = 1
    BAD_INPUT = 2
    UNAVAILABLE = 3
    DEADLINE = 4
    QUEUE_FULL = 5
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed; the message says what to do",
    ExitCode.BAD_INPUT: "bad input or usage",
    ExitCode.UNAVAILABLE: "no server answers, or the model is not ready: may be tried again",
    ExitCode.DEADLINE: "the deadline passed: may be tried again",
    ExitCode.QUEUE_FULL: "the server sheds load: try again later",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "ended by SIGTERM; what was half done is tidied up",
}

_CODES: dict[type[ResRankError], ExitCode] = {
    InvalidInputError: ExitCode.BAD_INPUT,
    ServerUnavailableError: ExitCode.UNAVAILABLE,
    ModelNotReadyError: ExitCode.UNAVAILABLE,
    DeadlineExceededError: ExitCode.DEADLINE,
    QueueFullError: ExitCode.QUEUE_FULL,
}

_EXTRAS = {
    "accelerate": "training",
    "faiss": "retrieval",
    "fastapi": "gateway",
    "fastapi_offline": "gateway",
    "grpc_health": "retrieval",
    "grpc_reflection": "retrieval",
    "gevent": "loadtest",
    "gguf": "export",
    "ir_measures": "evaluation",
    "jinja2": "loadtest",
    "locust": "loadtest",
    "ml_dtypes": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "cpu",
    "matplotlib": "training",
    "peft": "training",
    "prometheus_client": "loadtest",
    "psutil": "cli",
    "pymilvus": "benchmarks",
    "pydantic": "cli",
    "pydantic_settings": "gateway",
    "ray": "ray",
    "safetensors": "export",
    "scipy": "evaluation",
    "sentence_transformers": "benchmarks",
    "sklearn": "evaluation",
    "tensorboard": "training",
    "tokenizers": "triton",
    "torch": "export",
    "transformers": "export",
    "uvicorn": "gateway",
    "yaml": "cli",
}
"""Import name to the extra of this distribution that brings it."""


def exit_code(error: ResRankError) -> ExitCode:
    """The exit code of an error: its own class's, else its nearest base's."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), ExitCode.FAILURE)


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Says which extra brings a missing module; None when it is not one of ours to bring."""
    module = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(module)
    if extra is None:
        return None
    return f"this command needs the Python package {module}: {install_command(extra)}"
