"""What ``resrank loadtest`` refuses before a load process exists, and what it orders one to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.loadtest.orders import Order, Role, RunOrder, SaturateOrder
from resrank.stack.cli.app import run

SCENARIOS = Path(__file__).parents[3] / "loadtest" / "scenarios"
SEARCH = str(SCENARIOS / "search.yaml")


class BecameError(Exception):
    """Stands for the process that the command turned into."""


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the process that the command becomes."""
    arguments: list[str] = []

    def execv(path: str, words: list[str]) -> None:
        arguments[:] = words
        assert path == sys.executable
        raise BecameError

    monkeypatch.setattr(os, "execv", execv)
    return arguments


def order(ordered: list[str], *arguments: str) -> RunOrder | SaturateOrder:
    with pytest.raises(BecameError):
        run(["loadtest", *arguments])
    assert ordered[:3] == [sys.executable, "-m", "resrank.loadtest"]
    return Order.model_validate_json(ordered[3]).what


def test_an_order_says_all_that_was_asked_for(ordered: list[str]) -> None:
    found = order(ordered, "run", SEARCH, "--headless", "--triton-port", "9001", "--out", "here")
    assert isinstance(found, RunOrder)
    assert (found.scenario, found.out, found.headless, found.role) == (Path(SEARCH), Path("here"), True, Role.LOCAL)
    assert (found.target.triton, found.target.retrieval) == ("127.0.0.1:9001", "127.0.0.1:8003")
    found = order(ordered, "run", SEARCH, "--worker", "--host", "10.0.0.9", "--yes-i-own-this-host")
    assert isinstance(found, RunOrder)
    assert (found.role, found.target.host, found.headless) == (Role.WORKER, "10.0.0.9", False)
    assert found.out.parts[:2] == ("var", "loadtest")
    found = order(ordered, "saturate", SEARCH, "--low", "2", "--high", "50", "--tolerance", "0.1")
    assert isinstance(found, SaturateOrder)
    assert (found.search.low, found.search.high, found.search.tolerance) == (2, 50, 0.1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nowhere.yaml"], "Error: nowhere.yaml: cannot be read"),
        (["run", SEARCH, "--host", "10.0.0.9"], "Error: --host: 10.0.0.9 is not this machine"),
        (["saturate", SEARCH, "--host", "example.com"], "Error: --host: example.com is not this machine"),
        (["saturate", SEARCH, "--low", "0"], "Error: low: must be greater than 0"),
        (["saturate", SEARCH, "--low", "9", "--high", "3"], "Error: low: 9 is above high, 3"),
        (["run", SEARCH, "--master", "--worker"], "give one of them"),
        (["run", SEARCH, "--headless", "--workers", "2"], "--workers says how many"),
    ],
)
def test_what_cannot_be_is_refused_with_2(
    ordered: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(["loadtest", *arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ordered == []


def test_a_wrong_field_is_named(ordered: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text((SCENARIOS / "search.yaml").read_text().replace("rate: 1", "rate: 0"))
    assert run(["loadtest", "run", str(path), "--headless"]) == 2
    assert capsys.readouterr().err == "Error: load.phases.0.rate: must be greater than 0 (limit 0.0, got 0)\n"
    assert ordered == []


def test_neither_help_nor_checks_load_gevent() -> None:
    """Its patches would reach whatever else runs in the process."""
    code = (
        "import sys; from resrank.stack.cli.app import run; run(['loadtest', 'run', '--help']); "
        f"run(['loadtest', 'run', {SEARCH!r}, '--host', '10.0.0.9']); sys.exit('gevent' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
