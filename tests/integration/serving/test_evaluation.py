"""``resrank eval`` through the deployed engines finds what it finds in torch: one model, two ways to a score."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.client import AsyncResRankClient
from resrank.client.index_build import fill_index
from resrank.core.run_files import Ranking, read_candidates
from resrank.stack.cli.app import run
from resrank.stack.index_sidecar import sidecar_of
from resrank.stack.sidecar_process import SidecarProcess
from support.tiny_checkpoint import SENTENCES

from .conftest import Served

TOLERANCE = 1e-3
WORDS = ("fox", "Seine", "river", "vector", "moon", "orbit", "lazy", "France")
# A query over the token limit, to see it cut alike on both paths.
ONE = pytest.mark.parametrize("served", ["query_residual-linear-openvino"], indirect=True)  # what all have in common
QUESTIONS = {f"q{number}": f"What of the {word}?" for number, word in enumerate(WORDS[:5])} | {"long": "river " * 60}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of unequal lengths, more than one pass takes (16), some of them over the token limit."""
    folder = tmp_path_factory.mktemp("eval") / "sentences"
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"p{number}", "title": word, "text": " ".join([sentence] * (1 + number % 5))}
        for number, (word, sentence) in enumerate((word, sentence) for word in WORDS for sentence in SENTENCES)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    queries = [{"_id": id_, "text": text} for id_, text in QUESTIONS.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    judged = [f"{id_}\tp{5 * number}\t1\n" for number, id_ in enumerate(QUESTIONS)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


@pytest.fixture(scope="module")
def sidecar(served: Served, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    """A running sidecar with an index that was built through Triton."""

    async def build(index: Path) -> None:
        async with AsyncResRankClient(served.address, timeout_s=60) as client, sidecar_of(index) as stub:
            await fill_index(collection / "corpus.jsonl", client, stub)

    with SidecarProcess(tmp_path_factory.mktemp("eval") / "index") as process:
        asyncio.run(build(process.index))
        yield process


def evaluated(out: Path, collection: Path, *options: object) -> dict[str, dict[str, Ranking]]:
    words = ["eval", str(collection), "--depth", "20", "--shuffles", "2", "--sizes", "5,10", "--out", str(out)]
    assert run([*words, *map(str, options)]) == 0
    return {path.stem: read_candidates(path) for path in (out / "sentences" / "runs").iterdir()}


def test_scores_through_the_stack_are_those_of_torch(
    served: Served, sidecar: SidecarProcess, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ("--triton-url", served.address, "--retrieval-url", sidecar.address)
    checkpoint = ("--checkpoint", served.checkpoint)
    # The same candidates for both, found by words, so that each passes more than one block.
    deployed = evaluated(tmp_path / "stack", collection, *servers, *checkpoint, "--candidates", "lexical")
    candidates = tmp_path / "stack" / "sentences" / "runs" / "candidates.trec"
    here = evaluated(tmp_path / "torch", collection, *checkpoint, "--candidates", candidates, "--through", "torch")

    assert deployed.keys() == here.keys() >= {"dense", "projectors", "reranked", "reranked-shuffled-2"}
    assert max(len(found) for found in deployed["reranked"].values()) > served.spec.reranker.max_passages
    for row, rankings in deployed.items():
        for question, found in rankings.items():
            expected = dict(zip(here[row][question].ids, here[row][question].scores, strict=True))
            scores = np.array([expected[passage] for passage in found.ids])
            np.testing.assert_allclose(found.scores, scores, atol=TOLERANCE, err_msg=f"{row} of {question}")
    summaries = [
        json.loads((tmp_path / path / "sentences" / "summary.json").read_text()) for path in ("stack", "torch")
    ]
    assert [summary["through"] for summary in summaries] == ["stack", "torch"]
    assert summaries[0]["checkpoint"]["sha256"] == summaries[1]["checkpoint"]["sha256"] == served.spec.digest()
    assert summaries[0]["checkpoint"]["engines"]["reranker"].endswith("fp32")
    shuffled = np.abs(deployed["reranked"]["q0"].scores[:3] - deployed["reranked-shuffled-1"]["q0"].scores[:3])
    assert shuffled.max() > 10 * TOLERANCE  # orders do differ by more than the two paths do


@ONE
def test_an_index_of_the_evaluations_own_gives_the_same(
    served: Served, sidecar: SidecarProcess, collection: Path, tmp_path: Path
) -> None:
    triton = ("--triton-url", served.address, "--candidates", "hybrid")
    running = evaluated(tmp_path / "running", collection, *triton, "--retrieval-url", sidecar.address)
    own = evaluated(tmp_path / "own", collection, *triton)
    assert "projectors" not in own  # they are not known without the checkpoint
    for question, found in running["dense"].items():
        np.testing.assert_allclose(np.sort(own["dense"][question].scores), np.sort(found.scores), atol=TOLERANCE)


@ONE
@pytest.mark.parametrize(
    ("change", "complaint", "code"),
    [
        ("passage", "does not hold 1 of the 41 passages of sentences as they are there, the first is 'new'", 1),
        ("checkpoint", "but Triton serves checkpoint", 2),
    ],
)
def test_what_does_not_belong_together_is_refused(
    served: Served,
    sidecar: SidecarProcess,
    collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    complaint: str,
    code: int,
) -> None:
    words: list[Any] = ["eval", collection, "--triton-url", served.address, "--retrieval-url", sidecar.address]
    if change == "passage":
        words[1] = tmp_path / "sentences"
        (words[1] / "qrels").mkdir(parents=True)
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            (words[1] / name).write_bytes((collection / name).read_bytes())
        with (words[1] / "corpus.jsonl").open("a") as file:
            file.write('{"_id": "new", "text": "added later"}\n')
    else:
        other = tmp_path / "checkpoint"
        other.mkdir()
        for path in served.checkpoint.iterdir():
            (other / path.name).symlink_to(path)
        (other / "resrank.json").unlink()
        (other / "resrank.json").write_text(served.spec.model_copy(update={"name": "renamed"}).model_dump_json())
        words += ["--checkpoint", other]
    assert run([str(word) for word in words]) == code
    assert complaint in capsys.readouterr().err
