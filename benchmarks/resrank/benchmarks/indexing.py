"""``index build`` against sentence-transformers' ``encode`` with the same encoder on the same passages."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.client import AsyncResRankClient, ResRankClient
from resrank.client.index_build import fill_index
from resrank.client.sidecar import AsyncSidecar
from resrank.core.checkpoint import ENCODER_DIR, Norm
from resrank.core.corpus import Passage, check_corpus, read_passages
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.core.scoring import Float32, normalize
from resrank.model.quiet import quiet_transformers
from resrank.stack.machine import usable_cores
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess

TARGET = 2.0

_BATCH_SIZE = 64
_WARM_UP_EVERY = 8  # each eighth passage: all lengths, at an eighth of the cost
_COMPARED = 100
_LEAST_COSINE = 0.99  # the export's parity gate is stricter; this only sees that both encode the same texts
_TIMEOUT_S = 300.0


def run(deployment: Deployment, corpus: Path, *, rounds: int = 2, notify: Notify = lambda _: None) -> Measurement:
    """Measures passages per second, each side over the whole corpus, in turn.

    Ours is all that ``index build`` does once the file is checked: reading, tokenizing and encoding through Triton,
    and storing with both indexes updated. The other side only encodes.

    Args:
        deployment: What encodes.
        corpus: JSON lines as BEIR has them.
        rounds: Passes of each side over the corpus, each into a new index.
        notify: Called with one line per step.

    Returns:
        Passages per second of both sides.

    Raises:
        CorpusError: A line of the corpus is bad.
        BenchmarkError: The sides' vectors differ.
        StackError: A server cannot be started.
    """
    _, repeated = check_corpus(corpus)
    passages = [passage for passage in read_passages(corpus) if passage.line not in repeated]
    threads = deployment.engine_options(Model.ENCODER).threads or usable_cores()
    texts = [deployment.spec.encoder.passage_instruction + passage.encoder_text for passage in passages]
    notify("loading sentence-transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    speeds: dict[str, list[float]] = {"index build": [], "sentence-transformers": []}
    try:
        with quiet_transformers():
            model = sentence_transformer(deployment)
        notify("starting Triton")
        with TritonProcess(deployment.repository) as triton:
            with ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client:
                client.embed_passages([passage.encoder_text for passage in passages[::_WARM_UP_EVERY]], truncate=True)
            model.encode(texts[::_WARM_UP_EVERY], batch_size=_BATCH_SIZE)
            for number in range(1, rounds + 1):
                notify(f"round {number} of {rounds}: index build")
                seconds, stored = _build(triton.grpc_address, corpus, passages[:_COMPARED])
                speeds["index build"].append(len(passages) / seconds)
                notify(f"round {number} of {rounds}: sentence-transformers")
                started = time.perf_counter()
                encoded = model.encode(texts, batch_size=_BATCH_SIZE)
                speeds["sentence-transformers"].append(len(passages) / (time.perf_counter() - started))
                _require_equal(encoded[:_COMPARED], stored)
    finally:
        torch.set_num_threads(before)
    ours, baseline = (Side.of(label, samples) for label, samples in speeds.items())
    return Measurement(
        name="indexing",
        unit="passages/s",
        measured=ours,
        baseline=baseline,
        bound=Bound.AT_LEAST,
        target=TARGET,
        facts={"passages": len(passages), "threads": threads},
    )


def sentence_transformer(deployment: Deployment) -> SentenceTransformer:
    """The checkpoint's encoder as sentence-transformers runs it: torch, fp32, on the CPU."""
    spec = deployment.spec.encoder
    modules = [
        Transformer(str(deployment.checkpoint / ENCODER_DIR), max_seq_length=spec.max_passage_tokens),
        Pooling(spec.embedding_dim, "lasttoken" if spec.pooling == "last" else spec.pooling.value),
    ]
    if spec.embedding_norm is Norm.L2:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device="cpu")


def _build(triton: str, corpus: Path, compared: list[Passage]) -> tuple[float, Float32]:
    """Fills a new index.

    Returns:
        Seconds, and the stored vectors of some passages, FP32 [len(compared), d].
    """

    async def fill(address: str) -> tuple[float, Mapping[str, NDArray[np.float16]]]:
        async with AsyncResRankClient(triton, timeout_s=_TIMEOUT_S) as client, AsyncSidecar(address) as sidecar:
            report = await fill_index(corpus, client, sidecar)
            return report.seconds, await sidecar.vectors([passage.id for passage in compared])

    with tempfile.TemporaryDirectory() as folder, SidecarProcess(Path(folder)) as sidecar:
        seconds, stored = asyncio.run(fill(sidecar.address))
    return seconds, np.stack([stored[passage.id] for passage in compared]).astype(np.float32)


def _require_equal(encoded: Float32, stored: Float32) -> None:
    cosine = float(np.einsum("nd,nd->n", normalize(encoded), normalize(stored)).min())
    if not cosine >= _LEAST_COSINE:
        raise BenchmarkError(
            f"sentence-transformers' vectors and the index's have a cosine of {cosine:.3f} (limit {_LEAST_COSINE}): "
            "the two sides do not encode the same"
        )
