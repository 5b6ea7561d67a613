"""The signals that ask a server to stop."""

from __future__ import annotations

import signal

STOPS = (signal.SIGTERM, signal.SIGINT)


def ignore_stops() -> None:
    """Lets nothing but the end come after a stop.

    With its event loop a server's handlers go, and a signal that comes while Python ends would end the process as one
    that was killed.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
