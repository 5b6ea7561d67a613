"""A text is encoded once for all runs with one encoder, and never when its vector is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resrank.training.vector_cache import VectorCache


class Encoder:
    """Vectors of a text's length; remembers what it was asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[len(text), 0.1, -1.0] for text in texts], dtype=self.dtype)


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    encoder = Encoder(torch.float16)
    cache = VectorCache(tmp_path / "vectors", "one")
    first = cache.complete("passages", ["a", "bb", "a"], 3, torch.float16, encoder)
    assert encoder.asked == ["a", "bb"]
    found = VectorCache(tmp_path / "vectors", "one").complete("passages", ["ccc", "bb"], 3, torch.float16, encoder)
    assert encoder.asked == ["a", "bb", "ccc"]
    assert torch.equal(first, torch.tensor([[1, 0.1, -1], [2, 0.1, -1], [1, 0.1, -1]], dtype=torch.float16))
    assert torch.equal(found, torch.tensor([[3, 0.1, -1], [2, 0.1, -1]], dtype=torch.float16))


def test_another_encoder_side_or_type_has_vectors_of_its_own(tmp_path: Path) -> None:
    half, full = Encoder(torch.float16), Encoder(torch.float32)
    VectorCache(tmp_path, "one").complete("passages", ["a"], 3, torch.float16, half)
    VectorCache(tmp_path, "two").complete("passages", ["a"], 3, torch.float16, half)
    VectorCache(tmp_path, "one").complete("queries", ["a"], 3, torch.float16, half)
    exact = VectorCache(tmp_path, "one").complete("passages", ["a"], 3, torch.float32, full)
    assert (half.asked, full.asked) == (["a"] * 3, ["a"])
    assert torch.equal(exact, torch.tensor([[1, 0.1, -1]]))


@pytest.mark.parametrize("damage", ["not a database", None])
def test_a_cache_that_cannot_be_used_costs_time_alone(
    tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if damage:
        (tmp_path / "vectors.sqlite3").write_text(damage * 100)
    else:
        tmp_path = tmp_path / "file"
        tmp_path.write_text("where a folder should be")
    encoder = Encoder(torch.float32)
    for _ in range(2):
        found = VectorCache(tmp_path, "one").complete("queries", ["a"], 3, torch.float32, encoder)
        assert torch.equal(found, torch.tensor([[1, 0.1, -1]]))
    assert encoder.asked == ["a", "a"]
    assert "vectors are not remembered" in caplog.text


def test_no_texts_have_no_vectors(tmp_path: Path) -> None:
    """Lists whose questions are vectors, say, have no questions to encode."""
    encoder = Encoder(torch.float32)
    found = VectorCache(tmp_path, "one").complete("queries", [], 3, torch.float32, encoder)
    assert (found.shape, encoder.asked) == ((0, 3), [])
