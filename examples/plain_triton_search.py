"""Searches with nothing but NVIDIA's own client: one request to the `search` model of a running stack (`make serve`).

    pip install "tritonclient[grpc]"
    python plain_triton_search.py "who wrote the first algorithm?" localhost:8001

The server embeds the query, finds candidates and reranks them; their vectors never leave its machine.
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(question: str, address: str = "localhost:8001") -> None:
    """Asks once and prints the five best passages."""
    query = triton.InferInput("QUERY", [1, 1], "BYTES")
    query.set_data_from_numpy(np.array([[question.encode()]], dtype=np.object_))
    # Texts are not asked for, so the server does not fetch them.
    wanted = [triton.InferRequestedOutput(name) for name in ("IDS", "TITLES", "SCORES", "CANDIDATE_RANKS", "STAGE_MS")]
    with triton.InferenceServerClient(address) as client:
        found = client.infer(
            "search",
            [query],
            outputs=wanted,
            parameters={"k": 5, "candidates": 100, "mode": "hybrid"},
            client_timeout=10.0,
            timeout=10_000_000,  # microseconds: no step begins once nobody waits for it any more
        )
    ids, titles, scores, ranks, (stages,) = (found.as_numpy(output.name()) for output in wanted)
    for row in zip(ids[0], titles[0], scores[0], ranks[0], strict=True):
        id_, title, score, rank = row
        print(f"{score:+.4f}  (was {rank})  {id_.decode()}  {title.decode()}")
    for stage, took_ms in zip(("embed_query", "retrieve", "rerank"), stages, strict=True):
        print(f"{stage} {took_ms:.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
