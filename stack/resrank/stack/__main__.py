"""Entry point of the ``resrank`` command and of ``python -m resrank.stack``."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:  # while something was imported: what a command does is interrupted in its own way
        sys.exit(130)


def _run() -> int:
    try:
        import rich
        import typer
    except ModuleNotFoundError as error:
        # The base install is the client alone; the script exists in it all the same.
        from resrank.core.extras import install_command

        sys.exit(f"Error: the resrank command needs {error.name}: {install_command('cli')} (for all parts: [all])")
    del rich, typer
    from resrank.core.telemetry import no_telemetry
    from resrank.core.terminal import prepare_output
    from resrank.stack.cli.app import run

    no_telemetry()  # for what libraries import by themselves, and for the processes that commands start
    prepare_output()
    return run()


if __name__ == "__main__":
    main()
