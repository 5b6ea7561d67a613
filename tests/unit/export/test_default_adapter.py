"""The trained default that comes with ResRank: valid, small, over the bases that are fetched for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from resrank.core.adapter import has_whole_weights, validate_adapter
from resrank.core.calibration_file import read_calibration_file
from resrank.core.checkpoint import RERANKER_DIR
from resrank.export.backbones import PACKAGED_BACKBONES
from resrank.export.shipped_checkpoints import DEFAULT, DIGESTS, shipped_checkpoint
from resrank.training.config_file import load_config

ROOT = Path(__file__).parents[3]
MAX_BYTES = 4_000_000


def test_it_is_valid_trained_and_at_most_4_megabytes() -> None:
    folder = shipped_checkpoint(DEFAULT)
    spec = validate_adapter(folder)

    assert folder == ROOT / "checkpoints" / "default"
    assert spec.digest() == DIGESTS[DEFAULT]
    assert spec.fusion.score_residual != 0
    assert has_whole_weights(folder / RERANKER_DIR)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MAX_BYTES


def test_its_encoder_is_fetched_by_name_and_its_reranker_is_here() -> None:
    spec = validate_adapter(shipped_checkpoint(DEFAULT))
    assert spec.encoder.source in {backbone.source for backbone in PACKAGED_BACKBONES}
    assert spec.reranker.base_sha256 is None


def test_its_calibration_is_its_own_and_tells_scores_beyond_1_apart() -> None:
    file = read_calibration_file(shipped_checkpoint(DEFAULT))
    assert file is not None
    canonical = json.loads((ROOT / "tests" / "e2e" / "canonical_scores.json").read_text(encoding="utf-8"))
    assert file.checkpoint_sha256 == canonical["checkpoint"]  # of the full one
    assert file.calibration.lexical_weight == validate_adapter(shipped_checkpoint(DEFAULT)).fusion.lexical_weight
    for name, tried in (("reranker", file.fit.reranker), ("with_words", file.fit.with_words)):
        relevances = getattr(file.calibration, name).of(np.array([0.2, 0.7, 1.0, 1.3, 1.6]))
        assert (np.diff(relevances) > 0).all()
        assert relevances[-1] < 1
        assert tried[getattr(file.calibration, name).name].ece < 0.01


def test_its_card_names_licence_data_and_limits() -> None:
    card = (shipped_checkpoint(DEFAULT) / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card.split("---\n")[1]
    for section in ("Data", "Recipe", "Figures", "Limits"):
        assert f"## {section}" in card


@pytest.mark.parametrize("name", ["default", "llm", "untuned"])
def test_the_recipe_in_a_card_can_be_run(name: str, tmp_path: Path) -> None:
    card = (ROOT / "checkpoints" / name / "README.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(card.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    config = load_config(tmp_path / "recipe.yaml")
    assert config.name == validate_adapter(ROOT / "checkpoints" / name).name


def test_the_llm_reads_text_over_the_same_encoder_and_is_an_adapter() -> None:
    spec, default = validate_adapter(ROOT / "checkpoints" / "llm"), validate_adapter(shipped_checkpoint(DEFAULT))
    assert spec.reranker.prompt is not None
    assert spec.fusion.score_residual != 0
    assert (spec.encoder.base_sha256, spec.encoder.sha256) == (default.encoder.base_sha256, default.encoder.sha256)
    assert {spec.encoder.source, spec.reranker.source} <= {backbone.source for backbone in PACKAGED_BACKBONES}
