"""The digest of a backup: made by the server, and compared by whoever writes or restores one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from resrank.core.sidecar.v1 import retrieval_pb2 as pb


class RecordsDigest:
    """sha256 of records' deterministic serialisations, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, records: Iterable[pb.Record]) -> None:
        """Takes the next records, in their order."""
        for record in records:
            self._digest.update(record.SerializeToString(deterministic=True))

    def value(self) -> bytes:
        """The 32 bytes of what was taken so far."""
        return self._digest.digest()
