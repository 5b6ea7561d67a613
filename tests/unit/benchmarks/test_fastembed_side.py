"""What fastembed's side needs, and what is told when it ends; the package itself has an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from resrank.benchmarks.fastembed_side import FastEmbed
from resrank.benchmarks.measurement import BenchmarkError

FASTEMBED = """
import numpy as np
class TextEmbedding:
    def __init__(self, name, *, specific_model_path, threads, providers):
        assert (name, threads) == ("encoder", 2), (name, threads)
        self.model = self.tokenizer = self
    def enable_truncation(self, max_length):
        assert max_length == 256, max_length
    @staticmethod
    def add_custom_model(**fields):
        assert (fields["dim"], fields["model_file"], fields["pooling"]) == (2, "model.onnx", "the mean"), fields
    def embed(self, texts, batch_size):
        for text in texts:
            if not text:
                raise ValueError("an empty text")
            yield np.array([len(text), 0.5], np.float32)
"""
DESCRIPTION = """
class ModelSource:
    def __init__(self, url): pass
PoolingType = {"MEAN": "the mean"}
"""


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """An environment whose interpreter is this one, with a package of fastembed's interface."""
    programs, package = tmp_path / "infinity" / "bin", tmp_path / "packages" / "fastembed" / "common"
    programs.mkdir(parents=True)
    (programs / "infinity_emb").touch()
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text(FASTEMBED)
    (package / "model_description.py").write_text(DESCRIPTION)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / "packages"}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").touch()
    return tmp_path


def test_vectors_come_back_in_the_texts_order_and_a_failure_is_told(environments: Path) -> None:
    with FastEmbed(
        environments, environments / "model", dimension=2, pooling="mean", threads=2, max_tokens=256
    ) as side:
        np.testing.assert_array_equal(side.embed(["abc", "é\n"]), np.array([[3, 0.5], [2, 0.5]], np.float32))
        assert side.embed(["a"]).shape == (1, 2)
        with pytest.raises(BenchmarkError, match="fastembed ended: ValueError: an empty text"):
            side.embed([""])
        with pytest.raises(BenchmarkError, match="fastembed ended"):
            side.embed(["a"])


def test_what_it_cannot_run_is_refused_before(environments: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="not last"):
        FastEmbed(environments, environments / "model", dimension=2, pooling="last", threads=1, max_tokens=256)
    (environments / "infinity" / "bin" / "infinity_emb").unlink()
    with pytest.raises(BenchmarkError, match="make it with scripts/setup-infinity"):
        FastEmbed(environments, environments / "model", dimension=2, pooling="mean", threads=1, max_tokens=256)
