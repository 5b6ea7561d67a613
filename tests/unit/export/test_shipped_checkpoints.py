"""A checkpoint that is not in the package is taken from the cache, and only when it is the one that it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.errors import CheckpointError
from resrank.export import shipped_checkpoints
from resrank.export.shipped_checkpoints import DEFAULT, shipped_checkpoint
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_tiny_checkpoint


def test_the_cache_has_it_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped_checkpoints, "_built_in", lambda name: [])
    base = tmp_path / "base"
    make_tiny_checkpoint(base)
    digest = make_tiny_adapter(tmp_path / "adapter", base, sources=("encoder", "reranker")).digest()
    monkeypatch.setitem(shipped_checkpoints.DIGESTS, DEFAULT, digest)
    place = tmp_path / "cache" / "adapters" / f"default-{digest[:12]}"
    with pytest.raises(CheckpointError, match=f"copy checkpoints/default of ResRank's source repository to {place}"):
        shipped_checkpoint(DEFAULT)

    place.parent.mkdir(parents=True)
    (tmp_path / "adapter").rename(place)
    assert shipped_checkpoint(DEFAULT) == place

    monkeypatch.setitem(shipped_checkpoints.DIGESTS, DEFAULT, f"{digest[:12]}{'0' * 52}")
    with pytest.raises(CheckpointError, match=f"{place}: is checkpoint {digest}, but checkpoint 'default' is"):
        shipped_checkpoint(DEFAULT)
