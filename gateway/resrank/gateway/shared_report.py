"""What the servers behind a gateway say of themselves, asked once for all who want to know at about the same time."""

from __future__ import annotations

import asyncio
import time

from resrank.client import AsyncResRankClient, HealthReport

_ASKING_S = 2.0
_KEPT_S = 1.0
"""Probes need no key, and each report is a dozen requests: so they come once a second, however many ask."""


class SharedReport:
    """The last report on the servers, made anew when somebody asks and it is old.

    Args:
        client: Asks them.
    """

    def __init__(self, client: AsyncResRankClient) -> None:
        self._client = client
        self._asking: asyncio.Task[HealthReport] | None = None
        self._last: HealthReport | None = None
        self._told = 0.0

    async def get(self) -> HealthReport:
        """The report, at most a second old; who asks while it is being made waits for the same one."""
        if self._last is not None and time.monotonic() - self._told < _KEPT_S:
            return self._last
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)  # who hangs up ends it for nobody else

    async def _ask(self) -> HealthReport:
        try:
            self._last = await self._client.health(timeout_s=_ASKING_S)
            self._told = time.monotonic()
            return self._last
        finally:
            self._asking = None
