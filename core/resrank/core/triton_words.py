"""The words by which a failure is known behind Triton, whose gRPC status tells too little.

A server that is down, a full queue and a request that waited too long are all ``UNAVAILABLE``, and of a call to another
model the Python backend keeps the text alone. Servers write these words, the client and models that call models read
them.
"""

from __future__ import annotations

QUEUE_FULL = "Exceeds maximum queue size"
"""Triton's words, and those of queues in front of it, for a request that was shed at once."""

WAITED_TOO_LONG = "Request timeout expired"
"""Likewise, for one whose time was over before it was computed."""

RETRIEVAL_FAILURE = "retrieval: "
"""How the ``search`` model begins the message of a :class:`RetrievalError`, so that clients tell it from its own."""

SIDECAR_UNAVAILABLE = "the retrieval sidecar does not answer"
"""How it begins the message of a :class:`ServerUnavailableError`, which is about the sidecar and not about Triton."""

STOPPING = ("Server is stopping", "has no available versions", "Server exiting")
"""What Triton says of requests that come, or reach their next step, after it was told to end: the second for a model
that was unloaded. Its status alone (``UNAVAILABLE``, ``NOT_FOUND``, or ``INTERNAL`` where a model called the other)
does not tell that another server would answer."""
