"""The sidecar's dense search against the same FAISS search in one process: ``python benchmarks/retrieval.py``.

Both sides use one core per query, the same vectors and the same queries, in one run, alternating, so that whatever else
the machine does hits both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import grpc
import numpy as np
from numpy.typing import NDArray

from resrank.limits import MAX_GRPC_MESSAGE_BYTES, MAX_MESSAGE_RECORDS
from resrank.retrieval.v1 import retrieval_pb2 as pb
from resrank.retrieval.v1 import retrieval_pb2_grpc

TARGET_RATIO = 1.5
_ENCODER = "0" * 64


def run(n: int = 100_000, d: int = 384, k: int = 100, queries: int = 200) -> dict[str, float]:
    """Measures client-side latency of ``Search`` (DENSE, with embeddings) over a Flat index.

    Args:
        n: Vectors in the index.
        d: Their dimension.
        k: Results per query.
        queries: Queries timed on each side.

    Returns:
        ``sidecar_p50_ms``, ``sidecar_p95_ms``, ``in_process_p50_ms``, ``in_process_p95_ms`` and ``ratio`` (of the p50s,
        to be at most 1.5).
    """
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((n, d), np.float32).astype(np.float16)
    normalised = vectors.astype(np.float32)
    normalised /= np.linalg.norm(normalised, axis=1, keepdims=True)
    index = faiss.index_factory(d, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(normalised)
    del normalised
    faiss.omp_set_num_threads(1)
    questions = generator.standard_normal((queries, d), np.float32)
    with tempfile.TemporaryDirectory() as folder, _sidecar(Path(folder)) as address:
        options = [("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES)]
        with grpc.insecure_channel(address, options) as channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            stub.Upsert(_batches(vectors))

            def in_process(question: NDArray[np.float32]) -> NDArray[np.float16]:
                _, rows = index.search((question / np.linalg.norm(question))[np.newaxis], k)
                return vectors[rows[0]]

            def sidecar(question: NDArray[np.float32]) -> NDArray[np.float16]:
                response = stub.Search(
                    pb.SearchRequest(
                        mode=pb.SEARCH_MODE_DENSE, k=k, embedding=question.tobytes(), include_embeddings=True
                    )
                )
                return np.frombuffer(response.embeddings, "<f2").reshape(len(response.ids), d)

            spent: dict[str, list[float]] = {"sidecar": [], "in_process": []}
            for number, question in enumerate(np.concatenate([questions[:10], questions])):
                answers = []
                for name, search in (("sidecar", sidecar), ("in_process", in_process)):
                    started = time.perf_counter()
                    answers.append(search(question))
                    if number >= 10:  # the first ten warm up
                        spent[name].append(1e3 * (time.perf_counter() - started))
                if not np.array_equal(*answers):
                    raise RuntimeError("the sidecar and the FAISS index gave different candidates")
    report = {
        f"{name}_p{percent}_ms": float(np.percentile(times, percent))
        for name, times in spent.items()
        for percent in (50, 95)
    }
    report["ratio"] = report["sidecar_p50_ms"] / report["in_process_p50_ms"]
    return report


def _batches(vectors: NDArray[np.float16]) -> Iterator[pb.UpsertRequest]:
    for start in range(0, len(vectors), MAX_MESSAGE_RECORDS):
        block = vectors[start : start + MAX_MESSAGE_RECORDS]
        yield pb.UpsertRequest(
            encoder_sha256=_ENCODER,
            dimension=vectors.shape[1],
            records=[
                pb.Record(id=f"passage-{start + row}", title=f"passage {start + row}", embedding=vector.tobytes())
                for row, vector in enumerate(block)
            ],
        )


@contextmanager
def _sidecar(folder: Path) -> Iterator[str]:
    """A sidecar in a process of its own, as in production."""
    command = [sys.executable, "-m", "resrank_retrieval", "--index", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the sidecar did not start; its messages are above")
            yield line.split()[-1]
        finally:
            process.terminate()


if __name__ == "__main__":
    measured = run()
    print(json.dumps(measured, indent=2))
    sys.exit(0 if measured["ratio"] <= TARGET_RATIO else 1)
