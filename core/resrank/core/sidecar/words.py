"""Words of the sidecar's statuses that callers tell failures apart by, where the status alone does not."""

QUOTA_EXCEEDED = "quota exceeded"
"""Begins the message of a RESOURCE_EXHAUSTED that does not pass by itself; the others mean a full queue."""
