"""A load test by a master and its workers, on a server that answers at once.

Run as ``python -m support.shared_load worker SCENARIO PORT DELAY``, it makes calls until its master has no more for
it, and tells of the last ones so many seconds late. Run as ``python -m support.shared_load master SCENARIO PORT
WORKERS``, it runs once and prints a line of JSON. With ``web`` in place of ``master`` it runs twice, as from the web
interface, prints a line for each, and goes on until its standard input ends.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

from resrank.loadtest.callers import DrawnCall  # noqa: E402
from resrank.loadtest.kinds import CallKind  # noqa: E402
from resrank.loadtest.result import RunResult  # noqa: E402
from resrank.loadtest.run import ScenarioRun  # noqa: E402
from resrank.loadtest.scenario import load_scenario  # noqa: E402
from resrank.stack.ports import choose_ports  # noqa: E402

STOP_TIMEOUT_S = 1.0
"""As long locust's workers pause after each run: with the usual one a test would wait longer."""


def work(scenario: Path, port: int, delay_s: float) -> None:
    """A worker; SIGINT ends it as it ends one of the command."""
    callers: Any = SimpleNamespace(draw=lambda _: DrawnCall(CallKind.EMBED, lambda _: gevent.sleep(0.001)))
    run = ScenarioRun(load_scenario(scenario), callers, metrics_url=None)
    events: Any = run.environment.events
    events.test_stop.add_listener(lambda **_: gevent.sleep(delay_s))
    gevent.signal_handler(signal.SIGINT, lambda: gevent.spawn(run.stop))
    run.serve_master(port)


def lead(scenario: Path, port: int, workers: int, *, web: bool) -> None:
    """A master of one run, or of two from the web interface."""
    run = ScenarioRun(load_scenario(scenario), None, metrics_url=None, on_end=tell)
    run.environment.stop_timeout = STOP_TIMEOUT_S
    run.prepare_master(port)
    run.wait_for_workers(workers, 60)
    if not web:
        run.run()
        return
    stop = Event()

    def twice() -> None:
        runner: Any = run.environment.runner
        for _ in range(2):
            while len(runner.clients.ready) < workers:
                gevent.sleep(0.1)
            run.ended.clear()
            runner.start_shape()
            run.ended.wait()
            gevent.sleep(1.5)  # locust lets go of a run a moment later
        gevent.get_hub().threadpool.apply(sys.stdin.read)
        stop.set()

    (web_port,) = choose_ports("127.0.0.1", None)
    run.serve_web(web_port, stop, lambda: gevent.spawn(twice))


def tell(result: RunResult) -> None:
    """One line for a run."""
    told = {"calls": len(result.recording.calls()), "processes": result.processes, "problems": result.problems}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    role, file, at, number = sys.argv[1:]
    if role == "worker":
        work(Path(file), int(at), float(number))
    else:
        lead(Path(file), int(at), int(number), web=role == "web")
