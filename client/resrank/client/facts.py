"""What the client remembers of the models' configs."""

from __future__ import annotations

import time

from resrank.client.triton_calls import ModelFacts
from resrank.core.names import Model

MAX_AGE_S = 10.0
"""After this long a config is asked for again: behind the same address there may by then be a server with another
encoder, whose vectors must not be sought in the old one's index."""


class FactsCache:
    """Model configs, each kept for ``MAX_AGE_S``. Safe for several threads: single dictionary operations only."""

    def __init__(self) -> None:
        self._entries: dict[Model, tuple[float, ModelFacts]] = {}

    def get(self, model: Model) -> ModelFacts | None:
        """The model's config, or None when it is not known or too old."""
        entry = self._entries.get(model)
        if entry is None or time.monotonic() - entry[0] > MAX_AGE_S:
            return None
        return entry[1]

    def put(self, facts: ModelFacts) -> None:
        """Remembers a config that was just read."""
        self._entries[facts.model] = (time.monotonic(), facts)

    def clear(self) -> None:
        """Forgets all, for instance since the server went away."""
        self._entries.clear()
