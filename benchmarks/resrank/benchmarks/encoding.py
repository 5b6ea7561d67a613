"""Encoding of passages through gRPC against others with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.fastembed_side import FastEmbed
from resrank.benchmarks.indexing import sentence_transformer
from resrank.benchmarks.infinity import (
    InfinityClient,
    InfinityServer,
    export_for_optimum,
    fastembed_version,
    infinity_version,
)
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.study import Study
from resrank.benchmarks.text_models import write_sentence_transformer
from resrank.client import ResRankClient
from resrank.core.checkpoint import ENCODER_DIR
from resrank.core.corpus import read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.core.scoring import Float32, normalize
from resrank.core.tokenization import EncoderTokenizer
from resrank.model.quiet import quiet_transformers
from resrank.serving.engines import Precision
from resrank.stack.machine import usable_cores
from resrank.stack.triton_process import TritonProcess

TORCH_TARGET, TORCH_TARGET_INT8 = 1.8, 2.5
INFINITY_TARGET, INFINITY_TARGET_INT8 = 1.5, 2.0
FASTEMBED_TARGET = 1.3
"""For int8; for other precisions there is none, and it is shown beside."""
PASSAGES = 256
ROUNDS = 5

STACK = "this stack, gRPC"
SENTENCE_TRANSFORMERS = "sentence-transformers, torch"
INFINITY_TORCH = "infinity-emb, torch"
INFINITY_OPTIMUM = "infinity-emb, optimum (ONNX Runtime)"
FASTEMBED = "fastembed (ONNX Runtime)"

_MODEL = "encoder"
_BATCH_SIZE = 64
_LEAST_COSINE = 0.99  # the export's parity gate is stricter; this only sees that all sides encode the same texts
_TIMEOUT_S = 300.0


def run(deployment: Deployment, corpus: Path, environments: Path, *, notify: Notify = lambda _: None) -> Study:
    """Measures passages per second of one call with 256 passages of a corpus, all sides call by call in turn.

    Args:
        deployment: What encodes.
        corpus: Where the passages come from.
        environments: Where the environment of infinity-emb and fastembed is.
        notify: Called with one line per step.

    Returns:
        Passages per second of each side; the ratios to sentence-transformers, to infinity-emb's faster engine and, in
        int8, to fastembed.

    Raises:
        BenchmarkError: infinity-emb is not installed, or the sides' vectors differ.
        StackError: A server cannot be started.
    """
    texts = list(islice(_whole_passages(deployment, corpus), PASSAGES))
    instructed = [deployment.spec.encoder.passage_instruction + text for text in texts]
    pooling = deployment.spec.encoder.pooling.value
    threads = deployment.engine_options(Model.ENCODER).threads or usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ExitStack() as stack:
            version = infinity_version(environments)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            notify("writing the encoder for the other sides")
            write_sentence_transformer(deployment, folder / "torch")
            export_for_optimum(environments, folder / "torch", folder / "optimum")
            with quiet_transformers():
                model = sentence_transformer(deployment)
            sides: dict[str, Callable[[Sequence[str]], Float32]] = {}
            notify("starting Triton")
            triton = stack.enter_context(TritonProcess(deployment.repository))
            client = stack.enter_context(ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S))
            sides[STACK] = lambda _: client.embed_passages(texts, truncate=True)
            sides[SENTENCE_TRANSFORMERS] = lambda given: model.encode(list(given), batch_size=_BATCH_SIZE)
            for label, engine in ((INFINITY_TORCH, "torch"), (INFINITY_OPTIMUM, "optimum")):
                notify(f"starting {label}")
                server = stack.enter_context(
                    InfinityServer(
                        environments, {_MODEL: folder / engine}, threads=threads, engine=engine, pooling=pooling
                    )
                )
                infinity = InfinityClient(server)
                sides[label] = partial(infinity.embed, _MODEL)
            notify(f"starting {FASTEMBED}")
            fastembed = stack.enter_context(
                FastEmbed(
                    environments,
                    folder / "optimum",
                    dimension=deployment.spec.encoder.embedding_dim,
                    pooling=pooling,
                    threads=threads,
                    max_tokens=deployment.spec.encoder.max_passage_tokens,
                )
            )
            sides[FASTEMBED] = fastembed.embed
            _require_equal({label: encode(instructed) for label, encode in sides.items()})
            notify(f"{ROUNDS} rounds of {len(texts)} passages")
            spent = interleave(
                {label: partial(_encode, encode, instructed) for label, encode in sides.items()},
                runs=ROUNDS,
                warm_up=0,  # the comparison of the vectors was one
            )
    finally:
        torch.set_num_threads(before)
    chosen = deployment.engine_options(Model.ENCODER)
    speeds = {label: Side.of(label, [1e3 * len(texts) / each for each in times]) for label, times in spent.items()}
    in_int8 = chosen.precision is Precision.INT8
    fastest = max((INFINITY_TORCH, INFINITY_OPTIMUM), key=lambda label: speeds[label].median)
    if in_int8:
        targets = {SENTENCE_TRANSFORMERS: TORCH_TARGET_INT8, fastest: INFINITY_TARGET_INT8, FASTEMBED: FASTEMBED_TARGET}
    else:
        targets = {SENTENCE_TRANSFORMERS: TORCH_TARGET, fastest: INFINITY_TARGET}
    return Study(
        name="encoding",
        title=f"Passages encoded a second, {len(texts)} passages a call",
        columns=("side", "median", "least", "greatest", "calls"),
        rows=tuple((side.label, side.median, side.least, side.greatest, side.runs) for side in speeds.values()),
        measurements=tuple(
            Measurement(
                name=f"encoding against {label}",
                unit="passages/s",
                measured=speeds[STACK],
                baseline=speeds[label],
                bound=Bound.AT_LEAST,
                target=target,
            )
            for label, target in targets.items()
        ),
        notes=("infinity-emb is held against with the faster of its two engines; all sides have the same weights.",),
        facts={
            "threads of each side": threads,
            "encoder engine": f"{chosen.kind.value} {chosen.precision.value}",
            "infinity-emb, its torch, transformers and ONNX Runtime": version,
            "fastembed": fastembed_version(environments),
        },
    )


def _whole_passages(deployment: Deployment, corpus: Path) -> Iterator[str]:
    """Passages that no side cuts: infinity-emb's optimum engine does not know the encoder's own limit."""
    tokenizer = EncoderTokenizer(deployment.checkpoint / ENCODER_DIR, deployment.spec.encoder, for_queries=False)
    for passage in read_passages(corpus):
        try:
            tokenizer.encode([passage.encoder_text.encode()])
        except InvalidInputError:
            continue
        yield passage.encoder_text


def _encode(encode: Callable[[Sequence[str]], Float32], texts: Sequence[str], _: int) -> Float32:
    return encode(texts)


def _require_equal(vectors: dict[str, Float32]) -> None:
    expected = normalize(vectors[SENTENCE_TRANSFORMERS])
    for label, found in vectors.items():
        cosine = float(np.einsum("nd,nd->n", expected, normalize(found)).min())
        if not cosine >= _LEAST_COSINE:
            raise BenchmarkError(
                f"{label}: a vector has a cosine of {cosine:.3f} with sentence-transformers' (limit {_LEAST_COSINE}): "
                "the two sides do not encode the same"
            )
