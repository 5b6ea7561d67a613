"""Searches the index of a running stack (`make serve`) and shows what reranking changed.

python search.py "who wrote the first algorithm?"
"""

import sys

from resrank.client import ResRankClient, ResRankError


def main(query: str, triton: str = "localhost:8001", retrieval: str = "localhost:8003") -> None:
    """Asks once and prints the five best passages."""
    with ResRankClient(triton, retrieval=retrieval, timeout_s=10.0) as client:
        try:
            result = client.search(query, k=5, candidates=100, mode="hybrid")
        except ResRankError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    for passage in result.passages:
        print(f"{passage.rank}. (was {passage.candidate_rank}) {passage.score:+.4f}  {passage.title}")
    print(", ".join(f"{stage} {took_ms:.1f} ms" for stage, took_ms in result.timings.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
