"""Why a load test cannot start."""

from resrank.core.errors import ResRankError


class LoadTestError(ResRankError):
    """A load test cannot start or cannot be finished; the message says why. No load is sent after it."""
