"""Calls a live stack with clients that others wrote, each unmodified but for base URL and key, in its own environment.

Run as ``python tests/acceptance/run.py REPOSITORY [CLIENT...]``; ``make acceptance`` does. Each folder of ``clients``
holds the versions that are installed (``requirements.txt``) and the calls that are made (``calls.py``). The exit code
is 1 where a call failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from resrank.stack.ports import choose_ports

HERE = Path(__file__).parent
ENVIRONMENTS = Path("var/acceptance")
HOST = "127.0.0.1"
READY_S = 300.0
CALL_S = 300.0


@dataclass(frozen=True)
class Call:
    """One call of a client, and what came of it."""

    client: str
    version: str
    call: str
    result: str
    problem: str | None


@contextmanager
def live_stack(repository: Path) -> Iterator[str]:
    """Serves a repository with the gateway, and gives the gateway's URL."""
    triton, metrics, retrieval, retrieval_metrics, http = choose_ports(HOST, None, None, None, None, None)
    with tempfile.TemporaryDirectory(prefix="resrank-acceptance-") as folder:
        ports = {
            "--triton-port": triton,
            "--metrics-port": metrics,
            "--retrieval-port": retrieval,
            "--retrieval-metrics-port": retrieval_metrics,
            "--http": http,
        }
        options = [word for option, port in ports.items() for word in (option, str(port))]
        command = [
            Path(sys.executable).with_name("resrank"),
            "serve",
            repository,
            "--index",
            f"{folder}/index",
            *options,
        ]
        with Path(folder, "log").open("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                url = f"http://{HOST}:{http}"
                wait_ready(url, process, Path(folder, "log"))
                yield url
            finally:
                process.terminate()


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the gateway says that all is well; fails with the log's end when the stack has ended."""
    until = monotonic() + READY_S
    while True:
        try:
            with urlopen(f"{url}/health", timeout=5.0):
                return
        except (URLError, OSError):
            if process.poll() is not None or monotonic() > until:
                sys.exit(f"the stack does not serve:\n{log.read_text()[-2000:]}")
            sleep(0.5)


def environment(client: str) -> Path:
    """The Python of a client's environment, made where it is missing or of other versions."""
    wanted, folder = HERE / "clients" / client / "requirements.txt", ENVIRONMENTS / client
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    if not made.is_file() or made.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        uv = Path(sys.executable).with_name("uv")  # in a tenth of pip's time, where it could be had
        install = [uv, "pip", "install", "--python", python] if uv.is_file() else [python, "-m", "pip", "install"]
        subprocess.run([*install, "--quiet", "-r", wanted], check=True)
        made.write_text(wanted.read_text())
    return python


def calls(client: str, url: str) -> list[Call]:
    """Makes a client's calls."""
    python = environment(client)
    variables = {**os.environ, "RESRANK_ACCEPTANCE_URL": url, "PYTHONPATH": str(HERE / "path")}
    program = HERE / "clients" / client / "calls.py"
    ended = subprocess.run(
        [python, program], env=variables, capture_output=True, text=True, timeout=CALL_S, check=False
    )
    asked = f"from importlib.metadata import version; print(version({client!r}))"
    version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"call"')]
    if ended.returncode != 0 or not told:
        told.append({"call": "calls.py", "result": "", "problem": ended.stderr.strip()[-400:] or "it made no call"})
    return [Call(client, version, each["call"], each["result"], each["problem"]) for each in told]


def main(repository: Path, wanted: list[str]) -> int:
    """Makes all calls and prints the table."""
    clients = wanted or sorted(path.name for path in (HERE / "clients").iterdir())
    console = Console(width=160)
    with live_stack(repository) as url:
        made = [call for client in clients for call in calls(client, url)]
    table = Table("client", "version", "call", "best three, and their scores", box=None)
    for call in made:
        table.add_row(
            call.client, call.version, call.call, call.result if call.problem is None else f"FAILED: {call.problem}"
        )
    console.print(table)
    failed = sum(call.problem is not None for call in made)
    console.print(f"{len(made) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
