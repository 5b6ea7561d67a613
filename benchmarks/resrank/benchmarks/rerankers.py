"""This stack and the rerankers that read text, loaded side by side and given the same threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from resrank.benchmarks.bounded_rounds import Contender
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.infinity import InfinityClient, InfinityServer, infinity_version
from resrank.benchmarks.text_models import PAIR_TOKENS, ListReader, PairScorer, write_cross_encoder
from resrank.benchmarks.workload import QUERY_TOKENS, query_of
from resrank.client import ResRankClient
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.core.scoring import Float32
from resrank.stack.machine import usable_cores
from resrank.stack.triton_process import TritonProcess

STACK = "this stack"
SENTENCE_TRANSFORMERS = "cross-encoder, sentence-transformers"
INFINITY = "cross-encoder, infinity-emb"
LISTWISE = "text-listwise"

_MODEL = "cross-encoder"
_TIMEOUT_S = 120.0
_PAIR_LIMIT_S = 25.0
_PAIR_BUDGET_S = 8.0
_LIST_LIMIT_S = 170.0
_LIST_BUDGET_S = 4.0


@dataclass(frozen=True)
class Rerankers:
    """All sides, ready.

    Attributes:
        client: Of this stack.
        query: Of 24 tokens.
        pairs: The cross-encoder in this process.
        infinity: The same behind its server.
        reader: The text-listwise one; None where the checkpoint's reranker reads no text to make it of.
        threads: Of each side.
        facts: What else belongs to the figures.
    """

    client: ResRankClient
    query: str
    pairs: PairScorer
    infinity: InfinityClient
    reader: ListReader | None
    threads: int
    facts: Mapping[str, float | str]

    def vectors(self, passages: Sequence[str]) -> Float32:
        """FP32 [N, d], what an index would hold of the passages."""
        return self.client.embed_passages(passages, truncate=True)

    def contenders(self, passages: Sequence[str], vectors: Float32) -> dict[str, Contender]:
        """Each side's way to score the same passages.

        Args:
            passages: Their texts, for those who read.
            vectors: FP32 [N, d], for this stack.
        """
        characters = float(sum(map(len, passages)))
        candidates = vectors.astype("<f2")
        found = {
            STACK: Contender(
                lambda: self.client.rerank(self.query, candidates), len(passages), budget_s=_PAIR_BUDGET_S
            ),
            SENTENCE_TRANSFORMERS: Contender(
                lambda: self.pairs.scores(self.query, passages), characters, _PAIR_LIMIT_S, _PAIR_BUDGET_S
            ),
            INFINITY: Contender(
                lambda: self.infinity.rerank(_MODEL, self.query, passages), characters, _PAIR_LIMIT_S, _PAIR_BUDGET_S
            ),
        }
        if (reader := self.reader) is not None:
            # Attention makes a pass grow faster than its tokens: between linear and quadratic.
            cost = reader.tokens(self.query, passages) ** 1.5
            found[LISTWISE] = Contender(lambda: reader.read(self.query, passages), cost, _LIST_LIMIT_S, _LIST_BUDGET_S)
        return found


@contextmanager
def rerankers(deployment: Deployment, environments: Path, notify: Notify) -> Iterator[Rerankers]:
    """Starts and loads all sides, and stops them.

    Args:
        deployment: What is served, and whose backbones the other sides are made of.
        environments: Where infinity-emb's environment is.
        notify: Called with one line per step.

    Raises:
        BenchmarkError: infinity-emb is not installed or refuses the model.
        StackError: A server cannot be started.
    """
    threads = deployment.engine_options(Model.RERANKER).threads or usable_cores()
    reads_text = deployment.spec.reranker.prompt is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ExitStack() as stack:
            version = infinity_version(environments)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / _MODEL
            notify("loading the models that read text")
            write_cross_encoder(deployment, folder)
            pairs, reader = PairScorer(folder, PAIR_TOKENS), ListReader(deployment) if reads_text else None
            notify("starting infinity-emb")
            server = stack.enter_context(InfinityServer(environments, {_MODEL: folder}, threads=threads))
            infinity = InfinityClient(server)
            notify("starting Triton")
            triton = stack.enter_context(TritonProcess(deployment.repository))
            client = stack.enter_context(ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S))
            yield Rerankers(
                client,
                query_of(deployment, QUERY_TOKENS),
                pairs,
                infinity,
                reader,
                threads,
                {
                    "threads of each side": threads,
                    "reranker engine": _engine(deployment),
                    "infinity-emb, its torch, transformers and ONNX Runtime": version,
                },
            )
    finally:
        torch.set_num_threads(before)


def _engine(deployment: Deployment) -> str:
    options = deployment.engine_options(Model.RERANKER)
    return f"{options.kind.value} {options.precision.value}"
