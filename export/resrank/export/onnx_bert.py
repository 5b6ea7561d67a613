"""A BERT whose only published form is an ONNX graph, as a folder in the Hugging Face layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertModel

from resrank.core.errors import CheckpointError
from resrank.model.quiet import quiet_transformers

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_WEIGHTS = ("embeddings.", "encoder.")  # names that BertModel gives them, too; the rest is the graph's own


def convert_onnx_bert(
    graph_file: Path, config: dict[str, Any], tokenizer: Path, prompts: dict[str, str], target: Path
) -> None:
    """Takes the weights over by name.

    A weight matrix has no name of its own in the graph, where it was transposed and folded into a constant; but the
    bias that is added to its product has one, so the graph itself says which is which.

    Args:
        graph_file: The graph, its external data beside it.
        config: Of ``BertConfig``; the graph does not say it.
        tokenizer: Folder of a tokenizer with the same vocabulary.
        prompts: What is put before texts, ``query`` and ``passage``.
        target: The folder to write, with pooling by the mean.

    Raises:
        CheckpointError: The graph is not that of such a model, or the tokenizer has another vocabulary.
    """
    with quiet_transformers():
        model = BertModel(BertConfig(**config), add_pooling_layer=False)
        loaded = model.load_state_dict(_state(graph_file), strict=False)
        # Positions and token types are counted, not learned.
        missing = [name for name in loaded.missing_keys if not name.endswith("_ids")]
        if missing or loaded.unexpected_keys:
            raise CheckpointError(
                f"{graph_file}: not the expected BERT: lacks {missing[:1]}, has {loaded.unexpected_keys[:1]}"
            )
        model.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, target / name)
    words = len(json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    if words != config["vocab_size"]:
        raise CheckpointError(f"{tokenizer}: has {words} words, but the model {config['vocab_size']}")
    (target / "1_Pooling").mkdir()
    for file, fields in (
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}),
        ("config_sentence_transformers.json", {"prompts": prompts}),
    ):
        (target / file).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _state(graph_file: Path) -> dict[str, torch.Tensor]:
    """The weights under the names of ``BertModel``."""
    try:
        graph = onnx.load(graph_file).graph
    except Exception as error:  # onnx and protobuf raise many kinds
        raise CheckpointError(f"{graph_file}: not a readable ONNX graph: {error}") from error
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    state = {name: value for name, value in values.items() if name.startswith(_WEIGHTS) and value.dtype == np.float32}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith("encoder.") and name.endswith(".bias")]
        if node.op_type != "Add" or not biases:
            continue
        product = producer[next(name for name in node.input if name != biases[0])]
        if product.op_type != "MatMul":
            raise CheckpointError(f"{graph_file}: {biases[0]} is not added to a product")
        # x @ W in the graph, x @ W.T in torch.
        state[biases[0].removesuffix("bias") + "weight"] = values[product.input[1]].T
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}
