"""The root of the ``resrank`` command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.text import Text

from resrank.core import __version__
from resrank.core.errors import ResRankError
from resrank.core.terminal import Terminal, discard_output, flush_output, os_sentence, visible
from resrank.stack.cli.exit_codes import MEANINGS, ExitCode, exit_code, missing_extra
from resrank.stack.cli.lazy_group import LazyGroup

_EPILOG = "Exit codes:\n\n" + "\n".join(f"- {code.value}: {meaning}" for code, meaning in MEANINGS.items())

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resrank {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """ResRank on Triton: rerank passages that an LLM compressed to one vector each.

    From a checkpoint to a search:

    - `resrank doctor`
    - `resrank checkpoint merge --default`
    - `resrank export checkpoint --out repository`
    - `resrank serve repository --index index`
    - `resrank index build corpus.jsonl --index index`
    - `resrank search "who wrote it?" --k 10`
    """


def run(arguments: list[str] | None = None) -> int:
    """Runs the command and turns its errors, and those of its output, into one red sentence on stderr.

    Args:
        arguments: What follows ``resrank`` on the command line; those of this process when None.

    Returns:
        The exit code.
    """
    try:
        with _tidy_end() as ended:
            code = _run(arguments)
        if ended.is_set() and code == ExitCode.INTERRUPTED:
            code = ExitCode.TERMINATED
        flush_output()
    except BrokenPipeError:  # whoever read the output has had enough of it
        code = ExitCode.FAILURE
    except OSError as error:
        discard_output()
        code = _fail(os_sentence(error), ExitCode.FAILURE)
    discard_output()
    return code


@contextmanager
def _tidy_end() -> Iterator[threading.Event]:
    """Lets SIGTERM unwind what is under way, as Ctrl-C does: by itself it leaves everything half done behind.

    Servers and load tests put handlers of their own over this one.

    Yields:
        Set once the signal has come.
    """
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return

    def end(number: int, frame: object) -> None:
        if not ended.is_set():  # a second one does not cut short what is being tidied up
            ended.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str] | None) -> int:
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="resrank")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ResRankError as error:
        return _fail(str(error), exit_code(error))
    except ModuleNotFoundError as error:
        sentence = missing_extra(error)
        if sentence is None:
            raise
        return _fail(sentence, ExitCode.FAILURE)
    return ExitCode.OK


def _fail(sentence: str, code: ExitCode) -> int:
    with suppress(OSError):  # where standard error cannot be written either, the code is all that is left
        Terminal(stderr=True).print(Text(f"Error: {visible(sentence, lines=True)}", style="red"), soft_wrap=True)
    return code
