"""The queries and passages that calls are made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from resrank.core.corpus import read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.json_lines import read_json_lines
from resrank.loadtest.scenario import Data

_MOST_QUERIES = 100_000
"""Queries that are kept in memory; further ones of the file are left out."""


@dataclass(frozen=True)
class Dataset:
    """What a scenario's data files hold.

    Attributes:
        queries: Texts, at least one.
        passages: What the encoder reads of each; empty where no call needs any.
    """

    queries: tuple[str, ...]
    passages: tuple[str, ...]

    def query(self, rng: np.random.Generator, words: int | None) -> str:
        """One query.

        Args:
            rng: Chooses it.
            words: How many words it has, of this query and those that follow it; None for as many as it has.
        """
        place = int(rng.integers(len(self.queries)))
        if words is None:
            return self.queries[place]
        found: list[str] = []
        while len(found) < words:
            found += self.queries[place].split()
            place = (place + 1) % len(self.queries)
        return " ".join(found[:words])


def load_dataset(data: Data, *, with_passages: bool) -> Dataset:
    """Reads the files.

    Args:
        data: Which.
        with_passages: Whether any call needs passages.

    Raises:
        InvalidInputError: A file cannot be read, a line is wrong, or there is nothing in it.
    """
    queries = []
    for line, record in islice(read_json_lines(data.queries), _MOST_QUERIES):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(f"{data.queries}:{line}", "must have text, a string that is not empty")
        queries.append(text)
    if not queries:
        raise InvalidInputError("data.queries", f"{data.queries} holds no queries")
    passages: list[str] = []
    if with_passages and data.passages is not None:
        found = islice(read_passages(data.passages, on_empty=lambda _: None), data.distinct_passages)
        passages = [passage.encoder_text for passage in found]
        if not passages:
            raise InvalidInputError("data.passages", f"{data.passages} holds no passages")
    return Dataset(tuple(queries), tuple(passages))
