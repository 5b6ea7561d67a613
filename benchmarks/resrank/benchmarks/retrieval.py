"""The sidecar's dense search against the same FAISS search and gather in one process.

Both sides use one core per query, the same vectors and the same queries.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import grpc
import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.stored_vectors import store_vectors
from resrank.core.addresses import NO_PROXY
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.core.progress import Notify
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.stack.sidecar_process import SidecarProcess

TARGET = 1.5

_ENCODER = "0" * 64  # any: nothing is encoded here
_WARM_UP = 10


def run(
    *, n: int = 100_000, d: int = 384, k: int = 100, runs: int = 200, notify: Notify = lambda _: None
) -> Measurement:
    """Measures client-side latency of ``Search`` (DENSE, with embeddings) over a Flat index.

    Args:
        n: Vectors in the index.
        d: Their dimension.
        k: Results per query.
        runs: Queries timed on each side.
        notify: Called with one line per step.

    Returns:
        Milliseconds of both sides.

    Raises:
        BenchmarkError: The sides gave different candidates.
        StackError: The sidecar cannot be started.
    """
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((n, d), np.float32).astype(np.float16)
    index = _flat_index(vectors)
    questions = generator.standard_normal((_WARM_UP + runs, d), np.float32)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, SidecarProcess(Path(folder)) as sidecar:
            options = [("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES), *NO_PROXY]
            with grpc.insecure_channel(sidecar.address, options) as channel:
                stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
                notify(f"storing {n} vectors")
                store_vectors(sidecar.address, _ENCODER, vectors)

                def in_process(number: int) -> NDArray[np.float16]:
                    question = questions[number]
                    _, rows = index.search((question / np.linalg.norm(question))[np.newaxis], k)
                    gathered: NDArray[np.float16] = vectors[rows[0]]
                    return gathered

                def served(number: int) -> NDArray[np.float16]:
                    request = pb.SearchRequest(
                        mode=pb.SEARCH_MODE_DENSE, k=k, embedding=questions[number].tobytes(), include_embeddings=True
                    )
                    response = stub.Search(request)
                    return np.frombuffer(response.embeddings, "<f2").reshape(len(response.ids), d)

                if not all(np.array_equal(served(number), in_process(number)) for number in range(_WARM_UP)):
                    raise BenchmarkError("the sidecar and the FAISS index gave different candidates")
                notify(f"timing {runs} searches of each")
                spent = interleave(
                    {"sidecar Search": served, "FAISS and gather": in_process}, runs=runs, warm_up=_WARM_UP
                )
    finally:
        faiss.omp_set_num_threads(threads)
    ours, baseline = (Side.of(label, times) for label, times in spent.items())
    return Measurement(
        name="retrieval",
        unit="ms",
        measured=ours,
        baseline=baseline,
        bound=Bound.AT_MOST,
        target=TARGET,
        facts={"vectors": n, "dimension": d, "k": k},
    )


def _flat_index(vectors: NDArray[np.float16]) -> faiss.Index:
    normalised = vectors.astype(np.float32)
    normalised /= np.linalg.norm(normalised, axis=1, keepdims=True)
    index = faiss.index_factory(vectors.shape[1], "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(normalised)
    return index
