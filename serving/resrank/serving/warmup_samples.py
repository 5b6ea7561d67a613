"""The requests that a config has Triton warm a model with, for engines that its one warm-up does not reach."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.names import Tensor
from resrank.serving.step import StepRequest

WARMUP_FOLDER = "warmup"
"""Inside a model's folder: where Triton looks for ``input_data_file``."""

_NUMBERS: Mapping[str, Any] = {"TYPE_INT64": np.int64, "TYPE_FP16": np.float16}


def warmup_requests(folder: Path, config: Mapping[str, Any]) -> list[StepRequest]:
    """Reads the samples that an engine model's config names, one row each.

    Args:
        folder: The model's.
        config: In protobuf's JSON form, as Triton gives it to ``initialize``.

    Raises:
        ValueError: A sample's file cannot be read, or is not what the config says.
    """
    return [
        StepRequest({Tensor(name): _read(folder / WARMUP_FOLDER, tensor) for name, tensor in sample["inputs"].items()})
        for sample in config.get("model_warmup", ())
    ]


def _read(folder: Path, tensor: Mapping[str, Any]) -> NDArray[Any]:
    file = folder / tensor["input_data_file"]
    try:
        return np.fromfile(file, _NUMBERS[tensor["data_type"]]).reshape(1, *map(int, tensor["dims"]))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is not the warm-up sample that the model's config names: {error}") from error
