"""A repository as this machine serves it best: the exported one, with some settings of its configs replaced."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.errors import StackError
from resrank.core.names import Model, Parameter
from resrank.export.model_configs import CONFIG_FILE, set_parameters
from resrank.export.queue_bounds import bound_queues
from resrank.stack.tuning.settings import TunedSettings


def read_config(repository: Path, model: Model) -> ModelConfig:
    """Reads a model's config.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        model: Which.

    Raises:
        StackError: There is none, or it is damaged.
    """
    path = repository / model / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise StackError(f"{path}: not a readable model config: {error}") from error


def derive(repository: Path, settings: TunedSettings, folder: Path) -> None:
    """Writes the tuned configs into a folder and links everything else there.

    Links are symbolic: a folder in a temporary place costs nothing whatever the engines' size, on any file system, and
    nothing that is written there can reach the exported files.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        settings: What was found for it.
        folder: An empty folder.

    Raises:
        StackError: A config is damaged.
    """
    models = (*settings.models, Model.RERANK_TEXT)
    configs = {model: read_config(repository, model) for model in models}
    for model, chosen in settings.models.items():
        config = configs[model]
        set_parameters(
            config,
            {
                Parameter.ENGINES: chosen.engines,
                Parameter.THREADS: chosen.threads,
                Parameter.BATCH_ROWS: chosen.rows,
            },
        )
    bound_queues(configs, {model: chosen.row_ms for model, chosen in settings.models.items()})
    for entry in repository.iterdir():
        if entry.name not in models:
            (folder / entry.name).symlink_to(entry.absolute())
    for model, config in configs.items():
        (folder / model).mkdir()
        for entry in (repository / model).iterdir():
            if entry.name != CONFIG_FILE:
                (folder / model / entry.name).symlink_to(entry.absolute())
        (folder / model / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")
