"""A model repository that needs no checkpoint: one Python model that gives back what it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 8
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "ECHO" data_type: TYPE_STRING dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
MODEL = """
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy() for request in requests]
        if texts[0][0, 0] == b"slow":
            time.sleep(2)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("ECHO", text)]) for text in texts]
"""


def write_echo(folder: Path) -> Path:
    """Writes the ``echo`` model, which takes two seconds for the text ``slow``."""
    version = folder / "repository" / "echo" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL)
    return folder / "repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of :func:`write_echo`."""
    return write_echo(tmp_path)
