"""What every client's calls share: where the gateway is, what is asked, and what a right answer is.

On the path of the client's own environment, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BASE_URL = os.environ["RESRANK_ACCEPTANCE_URL"]
KEY = os.environ.get("RESRANK_ACCEPTANCE_KEY", "any")
QUERY = "Which river flows through the capital of France?"
DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Paris, the capital of France, lies on the river Seine.",
    "In 1969 two astronauts walked on the moon while a third stayed in orbit.",
    "Bread is made of flour, water, salt and yeast.",
    "The Danube flows through Vienna, Bratislava, Budapest and Belgrade.",
]
BEST = 1


class Answer:
    """What a call came to."""

    result = ""

    def ranked(self, places: Sequence[int], scores: Sequence[float | None] = ()) -> None:
        """Holds a ranking to what it must be.

        Args:
            places: Of the best three documents, best first.
            scores: Theirs, where the client tells them.
        """
        if len(places) != 3 or places[0] != BEST:
            raise AssertionError(f"the best three documents are {list(places)}, and {BEST} should be the first")
        told = [float(score) for score in scores if score is not None]
        if len(told) != len(scores) or told != sorted(told, reverse=True) or any(not 0 <= one <= 1 for one in told):
            raise AssertionError(f"scores must fall, from 0 to 1, and are {list(scores)}")
        self.result = f"{list(places)} " + " ".join(f"{score:.3f}" for score in told)

    def told(self, text: str) -> None:
        """Keeps what is no ranking."""
        if not text:
            raise AssertionError("nothing was told")
        self.result = text


@contextmanager
def answers(call: str) -> Iterator[Answer]:
    """Makes one call and prints what came of it as a line of JSON; what fails does not stop the next."""
    answer = Answer()
    problem = None
    try:
        yield answer
    except Exception as error:
        problem = "".join(traceback.format_exception_only(error)).strip()
    print(json.dumps({"call": call, "result": answer.result, "problem": problem}))
