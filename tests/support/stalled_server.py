"""Load on a server that is known exactly: it answers at once, but stands still for a while.

Run as ``python -m support.stalled_server SCENARIO FROM TO HEEDS``, it prints what the load test recorded, as JSON.
HEEDS is 1 for calls that end by their deadline and 0 for calls that do not.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import numpy as np  # noqa: E402

from resrank.core.errors import DeadlineExceededError  # noqa: E402
from resrank.loadtest.callers import DrawnCall  # noqa: E402
from resrank.loadtest.kinds import CallKind  # noqa: E402
from resrank.loadtest.run import ScenarioRun  # noqa: E402
from resrank.loadtest.scenario import load_scenario  # noqa: E402


def main(scenario: Path, stall_from: float, stall_to: float, *, heeds: bool) -> dict[str, Any]:
    """Runs the scenario; the server stalls between two times of the run."""

    def make(budget: float) -> None:
        now = run.load.elapsed()
        wait = stall_to - now if stall_from <= now < stall_to else 0.001
        gevent.sleep(min(wait, budget) if heeds else wait)
        if wait > budget:
            raise DeadlineExceededError("the server stood still")

    def draw(_: np.random.Generator) -> DrawnCall:
        return DrawnCall(CallKind.EMBED, make)

    callers: Any = SimpleNamespace(draw=draw)
    run = ScenarioRun(load_scenario(scenario), callers, metrics_url=None)
    run.prepare_here()
    result = run.run()
    calls, recording = result.recording.calls(), result.recording
    return {
        "start": calls["start"].tolist(),
        "latency": calls["latency"].tolist(),
        "late": calls["late"].tolist(),
        "outcome": calls["outcome"].tolist(),
        "held_back": recording.held_back,
        "unsent": recording.unsent,
        "problems": list(result.problems),
        "locust": {
            "requests": run.environment.stats.total.num_requests,
            "failures": run.environment.stats.total.num_failures,
            "errors": sorted(str(error.error) for error in run.environment.stats.errors.values()),
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), heeds=sys.argv[4] == "1")))
