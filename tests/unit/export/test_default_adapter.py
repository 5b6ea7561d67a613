"""The trained default that comes with ResRank: valid, small, over the bases that are fetched for it."""

from __future__ import annotations

from pathlib import Path

from resrank.core.adapter import validate_adapter
from resrank.export.backbones import PACKAGED_BACKBONES
from resrank.export.shipped_checkpoints import DEFAULT, DIGESTS, shipped_checkpoint

ROOT = Path(__file__).parents[3]
MAX_BYTES = 30_000_000


def test_it_is_valid_trained_and_at_most_30_megabytes() -> None:
    folder = shipped_checkpoint(DEFAULT)
    spec = validate_adapter(folder)

    assert folder == ROOT / "checkpoints" / "default"
    assert spec.digest() == DIGESTS[DEFAULT]
    assert spec.fusion.residual_gate != 0
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MAX_BYTES


def test_its_bases_are_fetched_by_name() -> None:
    spec = validate_adapter(shipped_checkpoint(DEFAULT))
    assert {spec.encoder.source, spec.reranker.source} <= {backbone.source for backbone in PACKAGED_BACKBONES}


def test_its_card_names_licence_data_and_limits() -> None:
    card = (shipped_checkpoint(DEFAULT) / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card.split("---\n")[1]
    for section in ("Data", "Recipe", "Figures", "Limits"):
        assert f"## {section}" in card
