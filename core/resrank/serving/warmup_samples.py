"""The requests that Triton warms a model with, for engines that its one warm-up does not reach."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resrank.names import Tensor
from resrank.serving.step import StepRequest

WARMUP_FOLDER = "warmup"
"""Inside a model's folder: where Triton looks for ``input_data_file``."""

_NUMBERS = {"TYPE_INT64": np.int64, "TYPE_FP16": np.float16}


def warmup_requests(args: Mapping[str, str]) -> list[StepRequest]:
    """Reads the samples that an engine model's config names, one row each.

    Args:
        args: What Triton gives to ``initialize``.

    Raises:
        OSError: A sample's file cannot be read.
        ValueError: It does not have the shape that the config says.
    """
    folder = Path(args["model_repository"]) / WARMUP_FOLDER
    requests = []
    for sample in json.loads(args["model_config"]).get("model_warmup", ()):
        arrays = {}
        for name, tensor in sample["inputs"].items():
            numbers = np.fromfile(folder / tensor["input_data_file"], _NUMBERS[tensor["data_type"]])
            arrays[Tensor(name)] = numbers.reshape(1, *map(int, tensor["dims"]))
        requests.append(StepRequest(arrays))
    return requests
