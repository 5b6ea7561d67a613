"""Carries out an order, in a process that gevent has patched."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
from gevent.event import Event
from rich.text import Text

from resrank.client import ResRankClient
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.terminal import Terminal, discard_output, flush_output, os_sentence, prepare_output, visible
from resrank.loadtest.callers import Callers, prepare_callers
from resrank.loadtest.console import print_probe, print_progress, print_saturation, print_summary
from resrank.loadtest.dataset import load_dataset
from resrank.loadtest.orders import Order, Role, RunOrder, SaturateOrder
from resrank.loadtest.report import HTML, write_report, write_saturation
from resrank.loadtest.result import RunResult
from resrank.loadtest.run import LOOPBACK, ScenarioRun
from resrank.loadtest.saturation import Probe, find_saturation
from resrank.loadtest.scenario import Scenario, load_scenario
from resrank.loadtest.summary import Summary, summarize
from resrank.loadtest.target import Target

_OK, _MISSED, _CANNOT, _INTERRUPTED = 0, 1, 2, 130

_WORKERS_COME_S = 300.0
"""How long a master waits: a worker embeds its passages before it comes."""

_PROGRESS_S = 5.0
_PROGRESS_CALLS = 10_000
"""Calls that a line of progress looks at: few enough that the load does not feel it."""

_screen = Terminal(highlight=False)
_notes = Terminal(stderr=True, highlight=False)


def main(document: str) -> int:
    """Carries out an order.

    Args:
        document: An :class:`~resrank.loadtest.orders.Order` as JSON.

    Returns:
        The exit code: 0 done, 1 an objective is missed, 2 nothing could be run, 130 interrupted.
    """
    order = Order.model_validate_json(document).what
    prepare_output()
    try:
        code = _run(order) if isinstance(order, RunOrder) else _saturate(order)
        flush_output()
    except ResRankError as error:
        return _cannot(str(error))
    except OSError as error:
        discard_output()
        return _cannot(os_sentence(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _cannot(sentence: str) -> int:
    with suppress(OSError):
        _notes.print(Text(f"Error: {visible(sentence, lines=True)}", style="red"), soft_wrap=True)
    return _CANNOT


def _run(order: RunOrder) -> int:
    scenario = load_scenario(order.scenario)
    if order.role is Role.WORKER:
        with _callers(scenario, order.target) as callers:
            run = ScenarioRun(scenario, callers, metrics_url=None)
            with _interruptible(run.stop):
                run.serve_master(order.master_port)
        return _OK
    if order.role is Role.MASTER:
        run = ScenarioRun(scenario, None, order.target.metrics_url, _web_reports(order))
        run.prepare_master(order.master_port)
        return _lead(run, order)
    with _callers(scenario, order.target) as callers:
        run = ScenarioRun(scenario, callers, order.target.metrics_url, _web_reports(order))
        run.prepare_here()
        return _lead(run, order)


def _lead(run: ScenarioRun, order: RunOrder) -> int:
    """Runs a scenario once, or as often as the web interface says."""
    _make_folder(order.out)
    if not order.headless:
        stop = Event()
        with _interruptible(stop.set):
            run.serve_web(
                order.web_port, stop, lambda: _say(f"locust's web interface: http://{LOOPBACK}:{order.web_port}")
            )
        return _OK
    if order.role is Role.MASTER:
        _say(f"waiting for {order.workers} workers on port {order.master_port}")
        run.wait_for_workers(order.workers, _WORKERS_COME_S)
    scenario = run.load.scenario
    _say(f"{scenario.name}: {scenario.duration_s:g} s of load")
    progress = gevent.spawn(_report_progress, run)
    with _interruptible(run.stop) as interrupted:
        summary = summarize(run.run(order.out / "locust"))
    progress.kill()
    write_report(summary, order.out)
    print_summary(summary, _screen)
    _screen.print(f"report: {order.out / HTML}", soft_wrap=True)
    if interrupted.is_set():
        return _INTERRUPTED
    return _OK if summary.kept else _MISSED


def _saturate(order: SaturateOrder) -> int:
    scenario, search = load_scenario(order.scenario), order.search
    # Goodput follows the rate that is tried: what a scenario demands of its own is no measure of another.
    slo = scenario.slo.model_copy(update={"min_goodput": None})
    if slo.empty:
        raise InvalidInputError("slo", f"{order.scenario} demands nothing of latency or outcomes: nothing to saturate")
    scenario = scenario.model_copy(update={"slo": slo})
    longest = search.longest_s(scenario.deadline_s)
    _say(f"{scenario.name}: at most {search.most_probes} probes, {longest / 60:.0f} minutes")
    with _callers(scenario, order.target) as callers:
        _make_folder(order.out)

        def probe(rate: float) -> Summary:
            at_rate = scenario.at_rate(rate, warmup_s=search.warmup_s, probe_s=search.probe_seconds(rate))
            run = ScenarioRun(at_rate, callers, order.target.metrics_url)
            run.prepare_here()
            with _interruptible(run.stop) as interrupted:
                summary = summarize(run.run())
            if interrupted.is_set():
                raise KeyboardInterrupt
            print_probe(Probe(rate, summary), _screen)
            return summary

        found = find_saturation(search, probe)
    print_saturation(found, search, _screen)
    _screen.print(f"written: {write_saturation(found, search, scenario, order.out)}", soft_wrap=True)
    return _MISSED if found.rate is None else _OK


@contextmanager
def _callers(scenario: Scenario, target: Target) -> Iterator[Callers]:
    dataset = load_dataset(scenario.data, with_passages=scenario.needs_passages())
    _say(f"asking {target.triton}, making candidates and one call of each kind")
    # One attempt: a retry would hide what the first one met.
    with ResRankClient(
        target.triton, retrieval=target.retrieval, timeout_s=scenario.deadline_s, max_attempts=1
    ) as client:
        yield prepare_callers(scenario, client, dataset)


@contextmanager
def _interruptible(stop: Callable[[], None]) -> Iterator[Event]:
    """Ctrl-C and SIGTERM end a run in order; the event tells that one came."""
    interrupted = Event()

    def on_signal() -> None:
        if not interrupted.is_set():
            interrupted.set()
            _say("stopping: calls under way end by themselves")
            gevent.spawn(stop)

    handlers = [gevent.signal_handler(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield interrupted
    finally:
        for handler in handlers:
            handler.cancel()


def _web_reports(order: RunOrder) -> Callable[[RunResult], None]:
    """In the web interface every run ends with a report of its own."""
    runs = 0

    def on_end(result: RunResult) -> None:
        nonlocal runs
        runs += 1
        folder = order.out / f"run-{runs}"
        summary = summarize(result)
        write_report(summary, folder)
        print_summary(summary, _screen)
        _screen.print(f"report: {folder / HTML}", soft_wrap=True)

    return (lambda _: None) if order.headless else on_end


def _report_progress(run: ScenarioRun) -> None:
    while True:
        gevent.sleep(_PROGRESS_S)
        print_progress(run.load.recording.latest(_PROGRESS_CALLS), run.load.elapsed(), _PROGRESS_S, _notes)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (probe := out / ".writable").touch()
        probe.unlink()
    except OSError as error:
        raise InvalidInputError("--out", f"{out} cannot be written ({error.strerror})") from error


def _say(what: str) -> None:
    _notes.print(f"{what} …", style="dim", markup=False, soft_wrap=True)
