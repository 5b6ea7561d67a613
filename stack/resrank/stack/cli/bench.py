"""``resrank bench``: the benchmarks of a clone. They compare with others and are no part of the wheel."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import typer

from resrank.core.errors import StackError

if find_spec("resrank.benchmarks") is not None:
    app: typer.Typer = import_module("resrank.benchmarks.command").app
else:
    app = typer.Typer(rich_markup_mode="markdown")

    @app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def bench() -> None:
        """Measure speed against the same work done otherwise (in a clone of the repository only)."""
        raise StackError(
            "the benchmarks are not part of the installed package: clone the repository and call `resrank bench` there"
        )
