"""``resrank bench quality`` whole: two Tritons, one index, a cross-encoder, real questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resrank.benchmarks.cross_encoder import train
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.quality import run
from resrank.core.checkpoint import ENCODER_DIR
from resrank.core.errors import InvalidInputError
from resrank.core.names import MANIFEST_FILE
from resrank.training.listwise_file import ListwiseFile

from .conftest import Exported

EXAMPLES = Path(__file__).parents[3] / "examples"
QUESTIONS = 6


@pytest.mark.full
def test_all_ways_are_asked_and_a_reranker_of_another_encoder_is_refused(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    made = exported("query_residual-linear-openvino")
    deployment = Deployment.open(made.repository, made.checkpoint)
    other = tmp_path / "other"
    shutil.copytree(made.repository, other)
    manifest = json.loads((other / MANIFEST_FILE).read_text())
    own = manifest["checkpoint"]["name"]
    manifest["checkpoint"]["name"] = "another"
    (other / MANIFEST_FILE).write_text(json.dumps(manifest))
    lists = list(ListwiseFile(EXAMPLES / "hotpotqa-train-mini" / "lists.jsonl.gz", "mini"))[:4]
    train(made.checkpoint / ENCODER_DIR, "tiny", lists, tmp_path / "cross", [0.0])

    study = run(deployment, EXAMPLES / "hotpotqa-mini", QUESTIONS, other, tmp_path / "cross")

    rows = {row[0]: row for row in study.rows}
    reranked = [f"{mode}, {name}" for name in (own, "another") for mode in ("dense", "hybrid")]
    assert list(rows) == ["BM25", "dense", "hybrid", *reranked, "hybrid, cross-encoder"]
    assert float(rows["BM25"][1]) > 0.5  # words find most of HotpotQA's paragraphs, whatever the weights
    for mode in ("dense", "hybrid"):  # the same reranker by two names
        assert rows[f"{mode}, {own}"][1:4] == rows[f"{mode}, another"][1:4]

    manifest["checkpoint"]["encoder_sha256"] = "0" * 64
    (other / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match=f"llm_repository: {other}: the index belongs to encoder"):
        run(deployment, EXAMPLES / "hotpotqa-mini", QUESTIONS, other, None)
    with pytest.raises(InvalidInputError, match="nothing to compare"):
        run(deployment, EXAMPLES / "hotpotqa-mini", QUESTIONS, made.repository, None)
