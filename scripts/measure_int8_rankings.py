#!/usr/bin/env python3
"""Measures what int8 does to an encoder's rankings: what resrank.export.int8_rankings records.

    scripts/measure_int8_rankings.py GRAPH CHECKPOINT nfcorpus:dev trec-dl21:all-judged:BM25

GRAPH is the encoder's model.onnx in an exported CPU repository (encoder/1/model.onnx), CHECKPOINT the checkpoint that
it was made of. A collection is FOLDER:SPLIT in BEIR's layout, or FOLDER:SPLIT:RETRIEVER, whose lists in
candidates.jsonl.gz are then ranked instead of the whole corpus. Passages and questions are encoded by OpenVINO in fp32
and in int8, one thread, batched as in service, and ranked by cosine; nDCG@10 of both comes from ir-measures.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from ir_measures import nDCG

from resrank.core.checkpoint import ENCODER_DIR, encoder_identity, read_spec
from resrank.core.collection import load_collection
from resrank.core.corpus import corpus_file, read_passages
from resrank.core.names import Tensor
from resrank.core.run_files import read_candidates
from resrank.core.scoring import Float32, normalize
from resrank.core.tokenization import EncoderTokenizer
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engine_host import EncoderGraph, EngineLimits, EngineStep
from resrank.serving.engines import EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.step import StepRequest

ROWS = 64
DEPTH = 100


class Encoder:
    """Texts to vectors by one engine."""

    def __init__(self, graph: Path, checkpoint: Path, precision: Precision) -> None:
        """Loads the engine."""
        spec = read_spec(checkpoint).encoder
        engine = load_engine(graph, EngineOptions(EngineKind.OPENVINO, precision, threads=1))
        policy = BatchingPolicy.on_cpu(max_rows=ROWS, max_tokens=spec.max_passage_tokens)
        limits = EngineLimits(sys.maxsize, spec.max_passage_tokens)
        self._step = EngineStep(engine, EncoderGraph(), limits, policy, batch_rows=ROWS)
        folder = checkpoint / ENCODER_DIR
        self._tokenizers = {kind: EncoderTokenizer(folder, spec, for_queries=kind) for kind in (True, False)}

    def encode(self, texts: list[str], *, queries: bool = False) -> Float32:
        """FP32 [len(texts), d], of length 1."""
        tokens = self._tokenizers[queries].encode([text.encode() for text in texts], truncate=True)
        inputs = {Tensor.INPUT_IDS: tokens.input_ids, Tensor.ATTENTION_MASK: tokens.attention_mask}
        (outcome,) = self._step.run([StepRequest(inputs)])
        if isinstance(outcome, Exception):
            raise outcome
        return normalize(outcome[Tensor.EMBEDDING])


def measure(
    encoders: dict[Precision, Encoder], folder: Path, split: str, lists: dict[str, set[str]]
) -> tuple[dict[Precision, float], float]:
    """NDCG@10 of each precision, and the least cosine of a passage's two vectors."""
    collection = load_collection(folder, split)
    listed = set[str]().union(*(lists.get(question, ()) for question in collection.queries))
    passages = sorted(
        (passage for passage in read_passages(corpus_file(folder)) if not lists or passage.id in listed),
        key=lambda passage: len(passage.encoder_text),
    )
    ids = [passage.id for passage in passages]
    found: dict[Precision, list[Float32]] = {precision: [] for precision in encoders}
    started = time.monotonic()
    for start in range(0, len(passages), ROWS):
        texts = [passage.encoder_text for passage in passages[start : start + ROWS]]
        for precision, encoder in encoders.items():
            found[precision].append(encoder.encode(texts))
        if start % (4 * ROWS) == 0:
            print(f"  {start} of {len(passages)}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    vectors = {
        precision: np.concatenate(parts).astype(np.float16).astype(np.float32) for precision, parts in found.items()
    }
    scores: dict[Precision, float] = {}
    for precision, encoder in encoders.items():
        run = {}
        for question, text in collection.queries.items():
            cosines = vectors[precision] @ encoder.encode([text], queries=True)[0]
            if lists:
                cosines[[passage not in lists.get(question, ()) for passage in ids]] = -1
            best = np.argsort(-cosines, kind="stable")[:DEPTH]
            run[question] = {ids[place]: float(cosines[place]) for place in best}
        scores[precision] = (nDCG @ 10).calc_aggregate(collection.qrels, run)
    fp32, int8 = (normalize(vectors[precision]) for precision in encoders)
    return scores, float(np.einsum("nd,nd->n", fp32, int8).min())


def main() -> None:
    """Prints a line for each collection."""
    if len(sys.argv) < 4 or not all(":" in name for name in sys.argv[3:]):
        sys.exit(__doc__)
    graph, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    print(f"encoder {encoder_identity(read_spec(checkpoint))}")
    encoders = {precision: Encoder(graph, checkpoint, precision) for precision in (Precision.FP32, Precision.INT8)}
    for name in sys.argv[3:]:
        folder, split, *retriever = name.split(":")
        given = read_candidates(Path(folder) / "candidates.jsonl.gz", retriever[0]) if retriever else {}
        lists = {question: set(ranking.ids) for question, ranking in given.items()}
        scores, cosine = measure(encoders, Path(folder), split, lists)
        fp32, int8 = scores[Precision.FP32], scores[Precision.INT8]
        print(
            f'"{Path(folder).name} {split}": ({fp32:.4f}, {int8:.4f}),  # difference {int8 - fp32:+.4f}, least cosine '
            f"{cosine:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
