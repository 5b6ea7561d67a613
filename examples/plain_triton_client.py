"""Calls `rerank` with nothing but NVIDIA's own client: no package of this project is needed to use the server.

    pip install "tritonclient[grpc]"
    python plain_triton_client.py localhost:8001

Three passages are embedded by the server, then ordered for a query. A production service has the embeddings already.
"""

import sys

import numpy as np
import tritonclient.grpc as triton

QUERY = "who wrote the first published algorithm?"
PASSAGES = [
    "Charles Babbage designed the Difference Engine.",
    "Ada Lovelace published the first algorithm meant for a machine, in 1843.",
    "The Jacquard loom of 1804 was controlled by punched cards.",
]


def bytes_input(name: str, texts: list[str]) -> triton.InferInput:
    """One text a row: BYTES [n, 1], UTF-8."""
    tensor = triton.InferInput(name, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    return tensor


def main(address: str) -> None:
    """Embeds, reranks, prints."""
    with triton.InferenceServerClient(address) as client:
        embedded = client.infer("embed_passage", [bytes_input("TEXT", PASSAGES)], client_timeout=30.0)
        embeddings = embedded.as_numpy("EMBEDDING")

        # One query with its N candidates is one row: FP16 [1, N, d].
        candidates = triton.InferInput("CANDIDATES", [1, *embeddings.shape], "FP16")
        candidates.set_data_from_numpy(embeddings[np.newaxis].astype(np.float16))
        # `timeout` (microseconds) lets Triton drop the request from its queues once nobody waits for it any more.
        inputs = [bytes_input("QUERY", [QUERY]), candidates]
        scores = client.infer("rerank", inputs, client_timeout=10.0, timeout=10_000_000).as_numpy("SCORES")[0]

    for index in np.argsort(-scores, kind="stable"):
        print(f"{scores[index]:+.4f}  {PASSAGES[index]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001")
