"""Reranks for several queries at once over one channel, with a deadline on each and overload told from failure.

python async_rerank.py localhost:8001
"""

import asyncio
import sys

from resrank.client import AsyncResRankClient, DeadlineExceededError, QueueFullError

PASSAGES = [
    "Ada Lovelace published the first algorithm meant for a machine, in 1843.",
    "Grace Hopper wrote the first compiler in 1952.",
    "The Jacquard loom of 1804 was controlled by punched cards.",
]
QUERIES = ["who wrote the first algorithm?", "who wrote the first compiler?", "what controlled the loom?"]


async def best(client: AsyncResRankClient, query: str) -> str:
    """The best passage for a query, or why there is none."""
    try:
        result = await client.rerank(query, passages=PASSAGES, timeout_s=5.0)
    except QueueFullError:
        return "the server is overloaded: answer without reranking"
    except DeadlineExceededError:
        return "too late: answer without reranking"
    return f"{result.passages[0].score:+.4f}  {result.passages[0].text}"


async def main(address: str) -> None:
    """Asks all queries at the same time."""
    async with AsyncResRankClient(address) as client:
        answers = await asyncio.gather(*(best(client, query) for query in QUERIES))
    for query, answer in zip(QUERIES, answers, strict=True):
        print(f"{query}\n    {answer}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"))
