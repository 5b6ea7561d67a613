"""One backbone's folder in the Hugging Face layout: found or fetched, loaded, cut to its first layers, written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.json_lines import parse_json
from resrank.model.weights import drop_drawn_pooler, refuse_missing_weights

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# No .bin, .pt or .py is ever fetched: weights are safetensors and code is transformers' own.
_HUB_FILES = ["*.json", "*/config.json", "model*.safetensors", "*.txt", "*.model"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
NO_FIELDS: dict[str, Any] = {}
_NO_ITEMS: list[dict[str, Any]] = []
_Json = TypeVar("_Json", dict[str, Any], list[dict[str, Any]])


def resolve_source(source: str | Path, *, digest_known: bool = False) -> Path:
    """The folder of a backbone, fetched from the hub when it is an id, ``owner/name@COMMIT``.

    Args:
        source: Folder or id.
        digest_known: Whether the caller compares the weights with a digest, so that an id needs no commit.

    Raises:
        CheckpointError: It is neither a folder nor an id, names no commit, or cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name, at, commit = str(source).partition("@")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(f"{source}: no such folder, and not a hub id of the form owner/name")
    if at and not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"{source}: {commit!r} is no revision; give {name}@COMMIT with its 40 hex digits")
    if not commit and not digest_known:
        raise CheckpointError(
            f"{source}: what a hub's branch holds can change, so give {name}@COMMIT, the 40 hex digits of a revision"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # connection, permission and missing-repository errors of several libraries
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{source}: no such folder, and not fetched from the hub ({first_line}); download it elsewhere and give "
            "its folder"
        ) from error


def source_name(source: str | Path) -> str:
    """What ``resrank.json`` says about where a backbone came from: its hub id, or its folder's name."""
    return Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else str(source)


def load_backbone(folder: Path) -> PreTrainedModel:
    """Loads the base model (no head) of a folder, refusing what would leave a weight at random.

    Raises:
        CheckpointError: It cannot be loaded from safetensors, or is not a text model of one stack.
    """
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for an unusable folder
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{folder}: cannot be loaded as a safetensors model: {first_line}") from error
    refuse_missing_weights(folder, report["missing_keys"])
    drop_drawn_pooler(model, report["missing_keys"])
    if model.config.is_encoder_decoder:
        raise CheckpointError(f"{folder}: encoder-decoder models are neither encoder nor reranker here")
    if not isinstance(getattr(model.config, "hidden_size", None), int):
        raise CheckpointError(f"{folder}/config.json: no hidden_size; only text models can be backbones")
    if any(module.get("type", "").endswith(".Dense") for module in read_json(folder / "modules.json", _NO_ITEMS)):
        raise CheckpointError(f"{folder}/modules.json: a Dense module after pooling is not supported")
    loaded: PreTrainedModel = model.eval()
    return loaded


def keep_layers(model: PreTrainedModel, layers: int, source: Path) -> None:
    """Drops all layers of a decoder but the first ones, in place; its final norm stays.

    Args:
        model: The decoder.
        layers: How many to keep.
        source: Where it came from, for the error.

    Raises:
        InvalidInputError: It does not have so many.
        CheckpointError: It is not built of ``layers``.
    """
    stack = getattr(model, "layers", None)
    if not isinstance(stack, torch.nn.ModuleList):
        raise CheckpointError(f"{source}: not a stack of decoder layers, so none can be dropped")
    if not 1 <= layers <= len(stack):
        raise InvalidInputError("layers", f"{source.name} does not have them", limit=f"1 to {len(stack)}", value=layers)
    model.layers = stack[:layers]
    model.config.num_hidden_layers = layers
    if (types := getattr(model.config, "layer_types", None)) is not None:
        model.config.layer_types = types[:layers]


def save_backbone(model: PreTrainedModel, source: Path, target: Path) -> None:
    """Writes weights, config and tokenizer in the Hugging Face layout.

    Raises:
        CheckpointError: ``source`` has no tokenizer that can be written as ``tokenizer.json``.
    """
    model.save_pretrained(target)
    if (source / "tokenizer.json").is_file():
        # Copied, not loaded and saved: transformers may rebuild a tokenizer with another pre-tokenizer.
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        return
    try:
        AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True).save_pretrained(target)
    except Exception as error:  # as above
        raise CheckpointError(f"{source}: no tokenizer.json, and none can be made: {error}") from error
    if not (target / "tokenizer.json").is_file():
        raise CheckpointError(f"{source}: its tokenizer cannot be written as tokenizer.json")


def read_json(path: Path, empty: _Json) -> _Json:
    """The content of a JSON file, or ``empty`` when it is not there or holds another kind of value."""
    if not path.is_file():
        return empty
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    return content if isinstance(content, type(empty)) else empty
