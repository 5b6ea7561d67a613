"""Calls a live stack with clients that others wrote, each unmodified but for base URL and key, in its own environment.

Run as ``python tests/acceptance/run.py REPOSITORY [CLIENT...]``; ``make acceptance`` does. Each folder of ``clients``
holds the versions that are installed (``requirements.txt``) and the calls that are made (``calls.py``). A folder of
``adapters`` is named after an extra of this project, which is installed there, and holds tests (``checks.py``), the
framework's own among them. The exit code is 1 where a call failed.
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
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from resrank.stack.ports import choose_ports

HERE = Path(__file__).parent
ENVIRONMENTS = Path("var/acceptance")
FRAMEWORKS = {"haystack": "haystack-ai", "langchain": "langchain-core", "llama-index": "llama-index-core"}
"""Extras of this project to the package whose version the table tells."""

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


@dataclass(frozen=True)
class Stack:
    """Where a live stack is: the gateway's URL, and addresses of gRPC."""

    url: str
    triton: str
    retrieval: str

    @property
    def environment(self) -> dict[str, str]:
        """What programs are told."""
        return {
            **os.environ,
            "RESRANK_ACCEPTANCE_URL": self.url,
            "RESRANK_ACCEPTANCE_TRITON": self.triton,
            "RESRANK_ACCEPTANCE_RETRIEVAL": self.retrieval,
            "PYTHONPATH": str(HERE / "path"),
        }


@contextmanager
def live_stack(repository: Path) -> Iterator[Stack]:
    """Serves a repository with the gateway, before an empty index."""
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
                yield Stack(url, f"{HOST}:{triton}", f"{HOST}:{retrieval}")
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


def environment(client: str, *packages: str) -> Path:
    """The Python of a client's environment, made where it is missing or of other versions.

    Args:
        client: A folder below this one.
        packages: Installed beside its requirements.
    """
    wanted, folder = HERE / client / "requirements.txt", ENVIRONMENTS / Path(client).name
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    if not made.is_file() or made.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        uv = Path(sys.executable).with_name("uv")  # in a tenth of pip's time, where it could be had
        install = [uv, "pip", "install", "--python", python] if uv.is_file() else [python, "-m", "pip", "install"]
        subprocess.run([*install, "--quiet", "-r", wanted, *packages], check=True)
        made.write_text(wanted.read_text())
    return python


def version(python: Path, package: str) -> str:
    """What of a package is installed in an environment."""
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def calls(client: str, stack: Stack) -> list[Call]:
    """Makes a client's calls."""
    python = environment(f"clients/{client}")
    program = HERE / "clients" / client / "calls.py"
    ended = subprocess.run(
        [python, program], env=stack.environment, capture_output=True, text=True, timeout=CALL_S, check=False
    )
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"call"')]
    if ended.returncode != 0 or not told:
        told.append({"call": "calls.py", "result": "", "problem": ended.stderr.strip()[-400:] or "it made no call"})
    found = version(python, client)
    return [Call(client, found, each["call"], each["result"], each["problem"]) for each in told]


def checks(adapter: str, stack: Stack) -> list[Call]:
    """Runs an adapter's tests, of which the table has a line each."""
    python = environment(f"adapters/{adapter}", "-e", f".[{adapter}]")
    folder = HERE / "adapters" / adapter
    report = ENVIRONMENTS / adapter / "report.xml"
    report.unlink(missing_ok=True)
    options = ["-c", HERE / "adapters" / "pytest.ini", "--rootdir", folder, "-p", "filled_index"]
    ended = subprocess.run(
        [python, "-m", "pytest", *options, f"--junit-xml={report}", folder / "checks.py"],
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=CALL_S,
        check=False,
    )
    found = version(python, FRAMEWORKS[adapter])
    if not report.is_file():
        return [Call(adapter, found, "checks.py", "", (ended.stdout + ended.stderr).strip()[-400:])]
    return [
        Call(adapter, found, case.attrib["name"].removeprefix("test_"), "as it should be", _problem(case))
        for case in ElementTree.parse(report).iter("testcase")
    ]


def _problem(case: ElementTree.Element) -> str | None:
    """Why a test did not pass; one that was skipped did not."""
    wrong = [child for child in case if child.tag in ("failure", "error", "skipped")]
    return (wrong[0].text or wrong[0].tag).strip()[-400:] if wrong else None


def main(repository: Path, wanted: list[str]) -> int:
    """Makes all calls and prints the table."""
    made_by = dict.fromkeys(FRAMEWORKS, checks)
    made_by |= dict.fromkeys(sorted(path.name for path in (HERE / "clients").iterdir()), calls)
    console = Console(width=160)
    with live_stack(repository) as stack:
        made = [call for client in wanted or made_by for call in made_by[client](client, stack)]
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
