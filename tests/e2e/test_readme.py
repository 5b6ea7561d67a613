"""The README's promises, kept by its own commands: the demo, a served stack, the command line and a foreign program."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from resrank.client import ResRankClient
from resrank.core.checkpoint import read_spec
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.evaluation.scorer import CandidateVectors
from resrank.evaluation.torch_scorer import TorchScorer
from resrank.export.adapters import default_checkpoint
from resrank.model.modeling import ResRankModel
from resrank.training.batches import Tokenizers
from resrank.training.embedding_table import encode_texts
from resrank.training.stage_config import ModelConfig
from resrank.training.trainable import TrainableResRank
from support.triton_requests import rerank_inputs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CANONICAL = json.loads(Path(__file__).with_name("canonical_scores.json").read_text(encoding="utf-8"))
RESRANK = [sys.executable, "-m", "resrank.stack"]
QUESTION = "Which magazine was started first?"
PASSAGES = 500
DEMO_LIMIT_S = 900
START_LIMIT_S = 300


@dataclass(frozen=True)
class Served:
    """A running ``resrank serve``."""

    process: subprocess.Popen[str]
    triton: str
    retrieval: str
    index: Path
    http: str

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"RESRANK_TRITON_URL": self.triton, "RESRANK_RETRIEVAL_URL": self.retrieval}

    def run(self, *arguments: str) -> str:
        """Runs a ``resrank`` command against this stack and returns what it printed."""
        done = subprocess.run(
            [*RESRANK, *arguments], env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Where the README's commands are run: the clone, or without ``--full`` a folder with a quarter of its passages.

    The passages that the demo's questions are about are among them.
    """
    if pytestconfig.getoption("full"):
        return ROOT
    sample, folder = (root / "examples" / "hotpotqa-mini" for root in (ROOT, tmp_path_factory.mktemp("clone")))
    shutil.copytree(sample, folder)
    with gzip.open(sample / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = {json.loads(line)["_id"]: line for line in file}
    judged = (line.split("\t")[1] for line in (sample / "qrels" / "test.tsv").read_text().splitlines()[1:])
    kept = list(dict.fromkeys([*judged, *lines]))[:PASSAGES]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(lines[passage] for passage in kept)
    return folder.parents[1]


@pytest.fixture(scope="module")
def demo(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """``make demo`` is ``resrank demo``, here of a fifth of its questions: the work folder and what it printed."""
    work = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [*RESRANK, "demo", "--work", str(work), "--questions", "40"],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=DEMO_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work, done.stdout


@pytest.fixture(scope="module")
def served(clone: Path, demo: tuple[Path, str]) -> Iterator[Served]:
    """The demo's repository and index, served as it says at its end; the README's command finds nothing left to do."""
    from resrank.stack.ports import choose_ports

    work, _ = demo
    triton, metrics, retrieval, retrieval_metrics, http = choose_ports("127.0.0.1", *[None] * 5)
    index = work / "demo-index"
    ports = ["--triton-port", str(triton), "--metrics-port", str(metrics), "--retrieval-port", str(retrieval)]
    ports += ["--retrieval-metrics-port", str(retrieval_metrics), "--http", str(http)]
    command = [*RESRANK, "serve", str(work / "repository"), "--index", str(index), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        served = Served(process, f"127.0.0.1:{triton}", f"127.0.0.1:{retrieval}", index, f"127.0.0.1:{http}")
        try:
            _wait_healthy(served)
            corpus = re.search(r"index build (\S+) --index", README)
            assert corpus, "the README no longer shows resrank index build"
            served.run("index", "build", str(clone / corpus[1]), "--index", str(index))
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def _wait_healthy(served: Served) -> None:
    with ResRankClient(served.triton, retrieval=served.retrieval, timeout_s=5, max_attempts=1) as client:
        for _ in range(START_LIMIT_S):
            assert served.process.poll() is None, "resrank serve ended"
            if client.health().ok:
                return
            time.sleep(1)
    pytest.fail(f"the stack was not ready within {START_LIMIT_S} s")


@pytest.fixture(scope="module")
def candidates(served: Served) -> NDArray[np.float16]:
    """Vectors that the sidecar hands over for the question, fp16 [100, d], found by words."""
    with grpc.insecure_channel(served.retrieval) as channel:
        found = retrieval_pb2_grpc.RetrievalServiceStub(channel).Search(
            pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, text=QUESTION, k=100, include_embeddings=True)
        )
    return np.frombuffer(found.embeddings, "<f2").reshape(len(found.ids), found.dimension).copy()


def manifest(demo: tuple[Path, str]) -> Any:
    return json.loads((demo[0] / "repository" / "manifest.json").read_text())


def test_the_demo_reports_every_ranker_over_the_trained_default(demo: tuple[Path, str]) -> None:
    _, printed = demo
    for expected in ("nDCG@10", "lexical", "dense", "hybrid", "reranked", "p50", "passages/s"):
        assert expected in printed
    adds = r"reranking adds to hybrid: nDCG@10 [+-]0\.\d+, 95 % interval [+-]0\.\d+ to [+-]0\.\d+"
    assert re.search(adds, " ".join(printed.split()))
    assert "untrained" not in printed
    assert manifest(demo)["checkpoint"]["sha256"] == read_spec(default_checkpoint()).digest()
    assert manifest(demo)["checkpoint"]["calibration"]["lexical_weight"] == pytest.approx(0.2)  # it came with it


def test_search_command(served: Served) -> None:
    found = json.loads(served.run("search", QUESTION, "--k", "5", "--output", "json"))
    assert len(found["passages"]) == 5
    assert served.run("search", QUESTION, "--k", "5").count("\n") > 5


def test_http_command(served: Served) -> None:
    shown = re.search(r"curl localhost:8080(\S+) -H '([^:]+): ([^']+)' -d '([^']+)'", README)
    assert shown, "the README no longer shows a search over HTTP"
    path, name, value, body = shown.groups()
    answer = httpx.post(f"http://{served.http}{path}", content=body, headers={name: value}, trust_env=False, timeout=30)
    assert len(answer.json()["passages"]) == 5
    assert "ResRank playground" in httpx.get(f"http://{served.http}/", trust_env=False).text


def test_python_snippet(served: Served) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        program = snippet.replace("127.0.0.1:8001", served.triton).replace("127.0.0.1:8003", served.retrieval)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 5


def test_a_foreign_triton_client_gets_the_client_librarys_scores(
    served: Served, candidates: NDArray[np.float16]
) -> None:
    with ResRankClient(served.triton) as client, InferenceServerClient(served.triton) as foreign:
        ranked = client.rerank(QUESTION, candidates)
        scores = foreign.infer("rerank", rerank_inputs(QUESTION, candidates)).as_numpy("SCORES")[0]
    assert [passage.score for passage in ranked.passages] == sorted(map(float, scores), reverse=True)


def test_the_deployed_scores_are_those_that_training_computes(
    demo: tuple[Path, str], served: Served, candidates: NDArray[np.float16]
) -> None:
    """The trained default through both engines against training's own passes, within what the parity gate allows."""
    tolerance = max(model["parity"]["tolerance"]["score"] for model in manifest(demo)["models"].values())
    with ResRankClient(served.triton) as client, InferenceServerClient(served.triton) as triton:
        scores = triton.infer("rerank", rerank_inputs(QUESTION, candidates)).as_numpy("SCORES")[0]
        embedding = client.embed_queries([QUESTION])[0]
    np.testing.assert_allclose(scores, scores_in_training(candidates), atol=tolerance)
    # Not what dense-start would say, which the engines also compute correctly.
    vectors = candidates.astype(np.float32)
    cosines = vectors @ embedding / np.linalg.norm(vectors, axis=1) / np.linalg.norm(embedding)
    assert np.abs(scores - cosines).max() > tolerance


def test_scores_are_the_canonical_ones(demo: tuple[Path, str], served: Served) -> None:
    """Computed once from the checkpoint's files, by transformers and torch alone: scripts/make_canonical_scores.py."""
    assert CANONICAL["checkpoint"] == read_spec(default_checkpoint()).digest()
    texts, expected = zip(*((passage["text"], passage["score"]) for passage in CANONICAL["passages"]), strict=True)
    scorer = TorchScorer(default_checkpoint())
    (by_torch,) = scorer.score([CandidateVectors(CANONICAL["query"], scorer.embed_passages(texts).astype(np.float16))])
    np.testing.assert_allclose(by_torch, expected, atol=1e-3)
    # Engines in bf16 may be as far off as the parity gate lets them.
    gates = [model["parity"]["tolerance"]["score"] for model in manifest(demo)["models"].values()]
    with ResRankClient(served.triton) as client:
        ranked = client.rerank(CANONICAL["query"], passages=texts)
    deployed = [passage.score for passage in sorted(ranked.passages, key=lambda passage: passage.index)]
    np.testing.assert_allclose(deployed, expected, atol=max(1e-3, *gates))


def scores_in_training(candidates: NDArray[np.float16]) -> NDArray[np.float32]:
    """The default checkpoint's scores of the question's candidates, fp32 [N], by the model that the stages train."""
    folder = default_checkpoint()
    frozen = {"encoder": {"mode": "frozen"}, "reranker": {"mode": "frozen"}, "compute": {"precision": "fp32"}}
    model = TrainableResRank(ResRankModel.from_checkpoint(folder), ModelConfig.model_validate(frozen)).eval()
    tokenizers = Tokenizers.from_checkpoint(folder, model.spec)
    prompt = tokenizers.prompt.layout.batch(tokenizers.prompt.encode([QUESTION.encode()]), [len(candidates)])
    arrays = (prompt.input_ids, prompt.passage_positions, prompt.last_position, candidates[None])
    query = encode_texts(model, tokenizers.queries, [QUESTION])
    with torch.no_grad():
        scores: NDArray[np.float32] = model("rank", *map(torch.from_numpy, arrays), query)[0].numpy()
    return scores


def test_reflection_lists_the_sidecar(served: Served) -> None:
    with grpc.insecure_channel(served.retrieval) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "resrank.retrieval.v1.RetrievalService" in services
