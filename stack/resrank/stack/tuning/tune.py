"""Tunes a repository for this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resrank.core.errors import StackError
from resrank.core.names import Model, Parameter
from resrank.core.progress import Notify
from resrank.export.manifest import Runtime, read_manifest
from resrank.stack.gpu import Machine
from resrank.stack.machine import usable_cores
from resrank.stack.repository_check import require_servable
from resrank.stack.tuning.choice import Choice, Setting, choose
from resrank.stack.tuning.repository import read_config
from resrank.stack.tuning.settings import ModelSettings, TunedSettings, write_settings
from resrank.stack.tuning.trials import Trials

BUDGETS_S = {Model.RERANKER: 90.0, Model.ENCODER: 50.0}
"""Less than three minutes in all. The reranker gets more: a pass over 100 candidates takes an engine on two cores some
hundred times as long as the encoding of a query."""

_ROWS = {Model.RERANKER: (8, 4, 1, 16), Model.ENCODER: (64, 16, 32)}


def tune(repository: Path, notify: Notify = lambda _: None) -> tuple[dict[Model, Choice], TunedSettings, Path]:
    """Measures and writes down what serves best here.

    Args:
        repository: Model repository as ``resrank export`` writes it, for a CPU.
        notify: Called with one line per step.

    Returns:
        Of each engine model what was measured and taken; the settings, and the file that ``resrank serve`` reads.

    Raises:
        ManifestError: The repository has no readable manifest.
        StackError: It is not for a CPU or cannot be served here, an engine fails, or the file cannot be written.
    """
    manifest = read_manifest(repository)
    if manifest.runtime is not Runtime.CPU:
        raise StackError(
            f"{repository} was exported for runtime {manifest.runtime.value}, and --tune measures CPU engines: serve "
            "it without"
        )
    require_servable(repository, manifest, Machine())
    choices: dict[Model, Choice] = {}
    for model, budget_s in BUDGETS_S.items():
        notify(f"measuring the {model.value}, up to {budget_s:.0f} s")
        default, others = settings_of(repository, model, usable_cores())
        with Trials(repository, model) as trials:
            choices[model] = choose(default, others, trials.measure, budget_s=budget_s)
    models = {
        model: ModelSettings(
            engines=choice.chosen.engines,
            threads=choice.chosen.threads,
            rows=choice.chosen.rows,
            row_ms=1e3 / choice.rows_per_s,
        )
        for model, choice in choices.items()
    }
    return choices, *write_settings(repository, models)


def settings_of(repository: Path, model: Model, cores: int) -> tuple[Setting, list[Setting]]:
    """What the repository does by itself, and what else is worth a try.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        model: ``encoder`` or ``reranker``.
        cores: Cores that serve.

    Returns:
        The default and the others, the most promising first.
    """
    config = read_config(repository, model)
    parameters = {name: parameter.string_value for name, parameter in config.parameters.items()}
    default = Setting(
        int(parameters.get(Parameter.ENGINES, 1)),
        int(parameters[Parameter.THREADS]) or cores,
        int(parameters.get(Parameter.BATCH_ROWS, config.max_batch_size)),
    )
    rows = [count for count in _ROWS[model] if count <= config.max_batch_size]
    others = [Setting(engines, per, count) for engines, per in _splits(cores) for count in rows]
    return default, [setting for setting in others if setting != default]


def _splits(cores: int) -> Iterator[tuple[int, int]]:
    """Engines and threads that use all cores: one engine, two halves, four quarters, and one engine a core."""
    for engines in sorted({1, 2, 4, cores}):
        if engines <= cores:
            yield engines, cores // engines
