"""What tuning found, in a file of the user's: a repository is immutable, and another machine would choose otherwise."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, ValidationError

from resrank.core.checkpoint import file_sha256
from resrank.core.durability import replace_file
from resrank.core.errors import StackError
from resrank.core.json_lines import parse_json
from resrank.core.names import MANIFEST_FILE, Model
from resrank.core.strict_json import Sha256, StrictModel
from resrank.stack.machine import Machine, describe_machine

TUNING_SCHEMA: Final = 2
_ENGINE_PACKAGES = ("openvino", "onnxruntime")


class MachineFacts(StrictModel):
    """What settings depend on besides the repository.

    Attributes:
        cpu: The processor's name.
        cores: Cores that this process may use.
        engines: Version of each CPU engine that is installed.
    """

    cpu: str
    cores: int = Field(ge=1)
    engines: dict[str, str]

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Takes from a description what matters here."""
        engines = {name: machine.versions[name] for name in _ENGINE_PACKAGES if name in machine.versions}
        return cls(cpu=machine.cpu, cores=machine.cores, engines=engines)


class ModelSettings(StrictModel):
    """How one engine model is run.

    Attributes:
        engines: Side by side in the model's process.
        threads: Threads in each.
        rows: Rows of several requests that are computed together at most.
        row_ms: Milliseconds of a row under full load, from which its queue is bounded.
    """

    engines: int = Field(ge=1)
    threads: int = Field(ge=1)
    rows: int = Field(ge=1)
    row_ms: float = Field(gt=0)


class TunedSettings(StrictModel):
    """The whole file.

    Attributes:
        schema_version: Of this file's form.
        manifest_sha256: The repository it was measured on.
        machine: The machine it was measured on.
        models: ``encoder`` and ``reranker``.
    """

    schema_version: Literal[2] = TUNING_SCHEMA
    manifest_sha256: Sha256
    machine: MachineFacts
    models: dict[Model, ModelSettings]


def settings_file(repository: Path, machine: MachineFacts) -> Path:
    """Where the settings of a repository on a machine are kept.

    The name is made of all that they depend on: a repository that is exported again, an engine that is updated or a
    container with fewer cores has none until it is tuned again.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        machine: What serves it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resrank"
    key = hashlib.sha256((file_sha256(repository / MANIFEST_FILE) + machine.model_dump_json()).encode()).hexdigest()
    return cache / "tuned" / f"{key[:32]}.json"


def read_settings(repository: Path) -> TunedSettings | None:
    """The settings that were measured for a repository on this machine.

    Args:
        repository: Model repository as ``resrank export`` writes it.

    Returns:
        None where it was never tuned here, or is no repository, which whoever serves it will say better.

    Raises:
        StackError: The file is damaged.
    """
    if not (repository / MANIFEST_FILE).is_file():
        return None
    file = settings_file(repository, MachineFacts.of(describe_machine()))
    try:
        return TunedSettings.model_validate(parse_json(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise StackError(
            f"{file} holds no tuned settings ({str(error).splitlines()[0]}): remove it, or run resrank serve --tune"
        ) from None


def write_settings(repository: Path, models: dict[Model, ModelSettings]) -> tuple[TunedSettings, Path]:
    """Writes what was found on this machine, aside and renamed into place.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        models: What was found.

    Returns:
        The settings, and their file.

    Raises:
        StackError: The file cannot be written.
    """
    machine = MachineFacts.of(describe_machine())
    settings = TunedSettings(
        manifest_sha256=file_sha256(repository / MANIFEST_FILE), machine=machine, models=dict(models)
    )
    file = settings_file(repository, machine)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
    except OSError as error:
        raise StackError(f"{file} could not be written: {error}; set XDG_CACHE_HOME to a writable folder") from error
    return settings, file
