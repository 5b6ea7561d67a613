"""A model repository whose encoder counts letters: vectors that can be checked by eye, ready in no time."""

from __future__ import annotations

from pathlib import Path

SHA = "f" * 64
_EMBED = """
backend: "python"
max_batch_size: 8
input { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "EMBEDDING" data_type: TYPE_FP32 dims: [ 4 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
# Only its config is read: it says which encoder the repository has.
_RERANK = """
backend: "python"
max_batch_size: 1
input { name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
_PARAMETERS = f"""
parameters {{ key: "encoder_sha256" value {{ string_value: "{SHA}" }} }}
parameters {{ key: "embedding_dim" value {{ string_value: "4" }} }}
parameters {{ key: "max_passages" value {{ string_value: "100" }} }}
"""
# How often a, b, c and d occur, plus one; texts with "slow" take their time, those with "refused" are.
_CODE = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = [raw.decode() for raw in pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[:, 0]]
        if any("slow" in text for text in texts):
            time.sleep(0.05)
        for row, text in enumerate(texts):
            if "refused" in text:
                said = f"TEXT[{row}]: holds the word refused"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(said, pb_utils.TritonError.INVALID_ARG))
        counts = np.array([[text.count(letter) + 1 for letter in "abcd"] for text in texts], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", counts)])
"""


def write_letter_models(repository: Path) -> Path:
    """Writes ``embed_bulk``, and of ``rerank`` what says whose vectors these are; returns the folder."""
    for name, config in (("embed_bulk", _EMBED), ("rerank", _RERANK)):
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(_CODE)
        (version.parent / "config.pbtxt").write_text(f'name: "{name}"\n{config}\n{_PARAMETERS}')
    return repository
