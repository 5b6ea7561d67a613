"""Calls a gRPC server that answers one method at once and keeps the callers of another waiting.

Run as ``python -m support.patient_client ADDRESS SCENARIO WAITING``: with so many callers waiting it makes one more
call, and then has the others released. It fails when that call is not answered before.
"""

from gevent import monkey

monkey.patch_all()

import grpc.experimental.gevent  # noqa: E402

grpc.experimental.gevent.init_gevent()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import grpc  # noqa: E402

from resrank.loadtest.run import ScenarioRun  # noqa: E402
from resrank.loadtest.scenario import load_scenario  # noqa: E402

LIMIT_S = 10.0


def main(address: str, scenario: Path, waiting: int) -> None:
    """Makes the calls as a run of the scenario would."""
    ScenarioRun(load_scenario(scenario), None, metrics_url=None)
    with grpc.insecure_channel(address) as channel:
        wait, answer, release = (channel.unary_unary(f"/test/{name}") for name in ("wait", "answer", "release"))
        callers = [gevent.spawn(wait, b"", timeout=2 * LIMIT_S) for _ in range(waiting)]
        gevent.sleep(0.2)
        answer(b"", timeout=LIMIT_S)
        release(b"", timeout=LIMIT_S)
        gevent.joinall(callers, raise_error=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
