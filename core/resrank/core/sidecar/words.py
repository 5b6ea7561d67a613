"""Words in the sidecar's statuses that callers tell failures apart by, where the status alone does not.

Triton's ``search`` model hands on the text alone.
"""

from __future__ import annotations

QUOTA_EXCEEDED = "quota exceeded"
"""Begins the message of a RESOURCE_EXHAUSTED that does not pass by itself; the others mean a full queue."""

ENCODER_MISMATCH = "the index belongs to encoder"
"""Begins what is said to a search or a reading whose vectors come from another encoder."""

COLLECTION_NOT_FOUND = "there is no collection"
"""Begins what is said of a name that is none."""
