from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer

from resrank.core import __version__
from resrank.core.errors import (
    CheckpointError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    Place,
    QueueFullError,
    ResRankError,
    ServerUnavailableError,
    StackError,
)
from resrank.core.extras import install_command
from resrank.stack.cli import exit_codes, lazy_group
from resrank.stack.cli.app import run
from support.tiny_manifest import make_manifest, write_tiny_manifest

Fail = Callable[[BaseException], list[str]]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """``fail(error)`` registers a sub-command that raises the error and returns the arguments that call it."""

    def register(error: BaseException) -> list[str]:
        app = typer.Typer()

        @app.command()
        def failing() -> None:
            raise error

        module = ModuleType("failing")
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "failing", module)
        monkeypatch.setitem(lazy_group.SUB_COMMANDS, "failing", "failing")
        return ["failing"]

    return register


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("k", "must be positive", limit=1, value=0), 2),
        (ServerUnavailableError("nobody answers at 127.0.0.1:1"), 3),
        (ModelNotReadyError("rerank is not loaded"), 3),
        (DeadlineExceededError("10 s passed"), 4),
        (QueueFullError("the queue is full"), 5),
        (StackError("tritonserver exited with status 1"), 1),
        (CheckpointError("resrank.json: no such file"), 1),
        (ResRankError("anything else"), 1),
    ],
)
def test_each_error_is_one_sentence_and_its_exit_code(
    fail: Fail, capsys: pytest.CaptureFixture[str], error: ResRankError, code: int
) -> None:
    assert run(fail(error)) == code
    said = capsys.readouterr()
    assert said.err == f"Error: {error}\n"
    assert said.out == ""


def test_a_subclass_gets_the_code_of_its_base(fail: Fail) -> None:
    class EmptyQueryError(InvalidInputError):
        pass

    assert run(fail(EmptyQueryError("QUERY", "is empty"))) == 2


def test_markup_in_a_message_is_text(fail: Fail, capsys: pytest.CaptureFixture[str]) -> None:
    run(fail(InvalidInputError(Place("CANDIDATES", (17,)), "holds [red]NaN[/red]")))
    assert capsys.readouterr().err == "Error: CANDIDATES[17]: holds [red]NaN[/red]\n"


def test_an_interrupt_is_130(fail: Fail) -> None:
    assert run(fail(KeyboardInterrupt())) == 130


def test_a_command_that_is_told_to_end_tidies_up_and_ends_with_143(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from resrank.export.written_aside import written_aside
from resrank.stack.cli import app

def work(arguments):
    with written_aside(Path({str(tmp_path / "out")!r})) as partial:
        print("begun", flush=True)
        time.sleep(60)

app.typer.main.get_command = lambda _: type("Command", (), {{"main": staticmethod(lambda **_: work(None))}})
sys.exit(app.run([]))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert list(tmp_path.iterdir())
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_something_is_imported_is_130_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "resrank.stack", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        # What runs in the background has it ignored, and so have its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_control_characters_of_a_message_are_shown(fail: Fail, capsys: pytest.CaptureFixture[str]) -> None:
    run(fail(ResRankError("title \x1b[2J\nsecond line\r\x9b1m")))
    assert capsys.readouterr().err == "Error: title \\x1b[2J\nsecond line\\r\\x9b1m\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "var/index"), "var/index: Permission denied"),
        (OSError(28, "No space left on device"), "the output cannot be written (No space left on device)"),
    ],
)
def test_an_error_of_the_system_is_one_sentence(
    fail: Fail, capsys: pytest.CaptureFixture[str], error: OSError, sentence: str
) -> None:
    assert run(fail(error)) == 1
    assert capsys.readouterr().err == f"Error: {sentence}\n"


CHECKS = [sys.executable, "-m", "resrank.stack", "doctor"]


def test_what_the_output_s_encoding_lacks_is_written_out() -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(CHECKS, env=ascii_only, capture_output=True, timeout=120, check=False)
    assert b"Traceback" not in ended.stderr
    assert b"\\u2713 Python: " in ended.stdout  # the mark before a check that is passed


def test_output_onto_a_full_device_is_one_sentence() -> None:
    for options in ([], ["--output", "json"]):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [*CHECKS, *options], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
            )
        assert ended.returncode == 1
        assert ended.stderr == "Error: the output cannot be written (No space left on device)\n"


def test_nobody_reads_to_the_end_is_no_error() -> None:
    with subprocess.Popen(CHECKS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_missing_extra_is_named(fail: Fail, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))) == 1
    assert install_command("export") in capsys.readouterr().err


def test_a_module_of_nobodys_is_a_bug_and_raised(fail: Fail) -> None:
    with pytest.raises(ModuleNotFoundError):
        run(fail(ModuleNotFoundError("No module named 'tpyo'", name="tpyo")))


@pytest.mark.parametrize(
    "arguments", [["nope"], ["serve"], ["serve", "x", "--triton-port", "70000"], ["doctor", "--x"]]
)
def test_wrong_usage_is_2(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESRANK_REPOSITORY", raising=False)
    assert run(arguments) == 2


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"resrank {__version__}\n"


def test_the_help_lists_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    for name in lazy_group.SUB_COMMANDS:
        assert f" {name} " in told
    for code in exit_codes.ExitCode:
        assert f" {code.value}: " in told


@pytest.mark.parametrize("name", list(lazy_group.SUB_COMMANDS))
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"resrank {name}" in capsys.readouterr().out


def test_serving_a_folder_that_is_no_repository_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(tmp_path)]) == 1
    assert f"{tmp_path} has no manifest.json" in capsys.readouterr().err


def test_options_have_environment_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESRANK_TRITON_PORT", "70000")
    assert run(["serve", "x"]) == 2


def test_starting_imports_no_part() -> None:
    program = (
        "import sys; from resrank.stack.cli.app import run; run(['--version'])\n"
        "heavy = {'torch', 'transformers', 'tritonclient', 'faiss', 'openvino', 'onnxruntime', 'numpy', 'grpc'}\n"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_typer_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['typer'] = None\nfrom resrank.stack.__main__ import main\nmain()"  # None: not found
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert install_command("cli") in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "{repository}", "--index", "{index}", "--triton-port", "9001", "--metrics-port", "9001"],
        ["serve", "{repository}", "--index", "{index}", "--triton-port", "9001", "--retrieval-port", "9001"],
        ["doctor", "--metrics-port", "9001", "--retrieval-port", "9001"],
    ],
)
def test_one_port_for_two_servers_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    models = make_manifest().models
    fileless = {model: facts.model_copy(update={"onnx_sha256": {}}) for model, facts in models.items()}
    write_tiny_manifest(tmp_path / "repository", models=fileless)
    places = {"repository": tmp_path / "repository", "index": tmp_path / "index"}

    assert run([argument.format(**places) for argument in arguments]) == 2

    assert capsys.readouterr().err == "Error: ports: 9001 is given twice: every server needs a port of its own\n"
    assert not places["index"].exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "x", "--triton-url", ""],
        ["search", "x", "--retrieval-url", ""],
        ["search", "x", "--triton-url", "http://localhost:8001"],
        ["search", "x", "--triton-url", "::1"],
        ["index", "build", "{corpus}", "--index", "{index}", "--triton-url", ""],
        ["index", "upsert", "{corpus}", "--index", "{index}", "--triton-url", "localhost:99999"],
        ["eval", "examples/hotpotqa-mini", "--triton-url", ""],
        ["eval", "examples/hotpotqa-mini", "--triton-url", "localhost:1", "--retrieval-url", ""],
    ],
)
def test_what_is_no_address_is_refused_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "x"}\n')
    places = {"corpus": tmp_path / "corpus.jsonl", "index": tmp_path / "index"}

    assert run([argument.format(**places) for argument in arguments]) == 2

    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert "address" in sentence or "port of" in sentence
    assert not places["index"].exists()


@pytest.mark.parametrize("id_", ["", "\udcff", "x" * 513])
def test_an_id_that_no_passage_has_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], id_: str) -> None:
    assert run(["index", "delete", "good", id_, "--index", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("Error: ids[1]: ")


def test_an_id_that_is_not_there_is_shown_and_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "delete", "a\x1b[2J", "--index", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "deleted 0, not in the index: a\\x1b[2J\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "build", "", "--index", "x"],
        ["index", "build", "x", "--index", ""],
        ["index", "describe", "--index", ""],
        ["serve", ""],
        ["serve", "x", "--index", ""],
        ["serve", "x", "--log-dir", ""],
        ["export", "", "--out", "x"],
        ["export", "x", "--out", ""],
        ["checkpoint", "show", ""],
        ["eval", "", "--out", "x"],
        ["eval", "x", "--indexes", ""],
        ["train", ""],
        ["demo", "--work", ""],
        ["loadtest", "run", ""],
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert "the path is empty" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["serve", "{repository}"], ["doctor"]])
def test_an_empty_host_is_not_every_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    models = make_manifest().models
    fileless = {model: facts.model_copy(update={"onnx_sha256": {}}) for model, facts in models.items()}
    write_tiny_manifest(tmp_path, models=fileless)
    assert run([*(part.format(repository=tmp_path) for part in command), "--host", ""]) == 2
    assert capsys.readouterr().err.startswith("Error: host: ")
