"""How long an export takes, how long `serve` is until it is ready, and what its processes occupy at rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.study import Study
from resrank.core.progress import Notify
from resrank.stack.ports import choose_ports

EXPORT_LIMIT_S = 45.0
READY_LIMIT_S = 10.0
MEMORY_LIMIT_MB = 1000.0

_STARTS = 3
_REST_S = 2.0
_COMMAND = [sys.executable, "-m", "resrank.stack"]
_HOST = "127.0.0.1"


def run(deployment: Deployment, *, notify: Notify = lambda _: None) -> Study:
    """Runs the commands as a user does, in processes of their own.

    Args:
        deployment: The checkpoint that is exported, and the repository that is served, on an empty index.
        notify: Called with one line per step.

    Returns:
        Seconds of an export, and of each start; memory as PSS, which counts shared pages once over all processes.

    Raises:
        BenchmarkError: A command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        notify("export")
        started = time.perf_counter()
        made = subprocess.run(
            [*_COMMAND, "export", str(deployment.checkpoint), "--out", str(Path(folder, "repository"))],
            capture_output=True,
            text=True,
            check=False,
        )
        export_s = time.perf_counter() - started
        if made.returncode != 0:
            raise BenchmarkError(f"export failed: {made.stderr.strip()[-500:]}")
        starts = []
        for number in range(1, _STARTS + 1):
            notify(f"serve, {number} of {_STARTS}")
            starts.append(_serve(deployment.repository, Path(folder, f"index-{number}")))
    ready = Side.of("until ready", [seconds for seconds, _, _ in starts])
    memory = Side.of("PSS of all processes", [megabytes for _, megabytes, _ in starts])
    return Study(
        name="start",
        title="`resrank export` and `resrank serve`",
        columns=("start", "until ready, s", "processor time, s", "PSS, MB"),
        rows=tuple(
            (f"{number}", seconds, processor_s, megabytes)
            for number, (seconds, megabytes, processor_s) in enumerate(starts, 1)
        ),
        measurements=(
            _limit("export", "s", Side.of("resrank export", [export_s]), EXPORT_LIMIT_S),
            _limit("serve until ready", "s", ready, READY_LIMIT_S),
            _limit("memory at rest", "MB", memory, MEMORY_LIMIT_MB),
        ),
        notes=("The first start reads files that later ones find in memory.",),
    )


def _limit(name: str, unit: str, measured: Side, limit: float) -> Measurement:
    return Measurement(name, unit, measured, Side.of("limit", [limit]), Bound.AT_MOST, 1.0)


def _serve(repository: Path, index: Path) -> tuple[float, float, float]:
    """Seconds until ready, PSS in MB and processor seconds of all processes, a moment later."""
    ports = choose_ports(_HOST, None, None, None, None)
    names = ("--triton-port", "--metrics-port", "--retrieval-port", "--retrieval-metrics-port")
    told = [part for pair in zip(names, map(str, ports), strict=True) for part in pair]
    started = time.perf_counter()
    with subprocess.Popen(
        [*_COMMAND, "serve", str(repository), "--index", str(index), *told],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if line.strip() == "ready":
                    break
            else:
                raise BenchmarkError(f"serve ended before it was ready: {''.join(said)[-500:]}")
            seconds = time.perf_counter() - started
            time.sleep(_REST_S)
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            megabytes = sum(member.memory_full_info().pss for member in family) / 1e6
            times = [member.cpu_times() for member in family]
        finally:
            process.send_signal(signal.SIGINT)
            for _ in process.stdout:  # a full pipe would hold the process up
                pass
    return seconds, megabytes, sum(each.user + each.system for each in times)
