"""A command group that imports a sub-command when it is called, so that ``resrank`` starts at once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

SUB_COMMANDS = {
    "doctor": "resrank.stack.cli.doctor",
    "checkpoint": "resrank.stack.cli.checkpoint",
    "export": "resrank.stack.cli.export",
    "serve": "resrank.stack.cli.serve",
    "gateway": "resrank.stack.cli.gateway",
    "index": "resrank.stack.cli.index",
    "collection": "resrank.stack.cli.collection",
    "alias": "resrank.stack.cli.alias",
    "search": "resrank.stack.cli.search",
    "traces": "resrank.stack.cli.traces",
    "demo": "resrank.stack.cli.demo",
    "bench": "resrank.stack.cli.bench",
    "loadtest": "resrank.stack.cli.loadtest",
    "train": "resrank.stack.cli.train",
    "eval": "resrank.stack.cli.eval",
    "calibrate": "resrank.stack.cli.calibrate",
}
"""Sub-command to the module whose ``app`` it is, in the order of the help."""


_COMPLETION_OPTIONS = {"install_completion", "show_completion"}


class LazyGroup(TyperGroup):
    """The root group. Only ``--help`` imports every sub-command, and those import their part only when called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's own Context class
        """Names in the order of the help."""
        return list(SUB_COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Imports a sub-command; None for an unknown name."""
        if cmd_name not in SUB_COMMANDS:
            return None
        command = typer.main.get_command(import_module(SUB_COMMANDS[cmd_name]).app)
        command.name = cmd_name
        # typer gives every app these two; once, at the root, is enough.
        command.params = [option for option in command.params if option.name not in _COMPLETION_OPTIONS]
        _refuse_empty_paths(command)
        return command


def _refuse_empty_paths(command: Any) -> None:
    """Has every path of a command, and of those below it, refuse the empty text: a variable that a shell did not have.

    ``Path("")`` is the working directory, in which an index or a repository would be made.
    """
    for parameter in command.params:

        def filled(
            ctx: typer.Context,
            value: Any,
            *,
            parameter: Any = parameter,
            read: Callable[..., Any] = parameter.process_value,
        ) -> Any:
            found = read(ctx, value)
            texts, paths = (value, found) if isinstance(value, list | tuple) else ([value], [found])
            if "" in texts and any(isinstance(path, Path) for path in paths or ()):
                raise typer.BadParameter("the path is empty", ctx=ctx, param=parameter)
            return found

        parameter.process_value = filled
    for inner in getattr(command, "commands", {}).values():
        _refuse_empty_paths(inner)
