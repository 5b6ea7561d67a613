"""Safetensors files read without torch: names, types and shapes from the header, and an identity of the weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrank.core.errors import CheckpointError
from resrank.core.json_lines import parse_json

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

# https://github.com/huggingface/safetensors#format: an 8-byte little-endian length, that much JSON, then the tensors.
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        name: Its name in the file.
        dtype: As the format writes it: ``F32``, ``BF16`` …
        shape: Its dimensions.
        file: The file that holds it.
        begin: Its first byte in that file.
        end: The byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def read_tensors(file: Path) -> dict[str, StoredTensor]:
    """Reads the header of one safetensors file.

    Args:
        file: The file.

    Returns:
        Every tensor's place, by name.

    Raises:
        CheckpointError: The file cannot be read, is cut short, or is not in the format.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 0 < length <= min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
                raise CheckpointError(f"{file}: not a safetensors file, or cut short ({size} bytes)")
            header = parse_json(stream.read(length))
        start = _LENGTH_BYTES + length
        tensors = {
            name: _stored(name, entry, file, start)
            for name, entry in header.items()
            if name != "__metadata__"  # free text about the file
        }
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: its safetensors header is not valid: {error}") from error
    for name, tensor in tensors.items():
        if tensor.end > size:
            raise CheckpointError(f"{file}: {name} ends at byte {tensor.end}, but the file has {size}: it is cut short")
    return tensors


def _stored(name: str, entry: Mapping[str, Any], file: Path, start: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
    begin, end = map(int, entry["data_offsets"])
    bits = _BITS.get(dtype)
    if bits is None:
        raise ValueError(f"{name}: dtype {dtype!r} is not one of {', '.join(_BITS)}")
    if min((begin, *shape), default=0) < 0 or (end - begin) * 8 != bits * math.prod(shape):
        raise ValueError(f"{name}: {dtype} {list(shape)} does not fill bytes {begin} to {end}")
    return StoredTensor(name, dtype, shape, file, start + begin, start + end)


def backbone_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Reads the headers of a backbone's weights, in one file or in shards.

    Args:
        folder: A backbone in the Hugging Face layout.

    Returns:
        Every tensor's place, by name.

    Raises:
        CheckpointError: There are no safetensors weights, or a file of them is missing or broken.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return read_tensors(folder / WEIGHTS_FILE)
    index = folder / WEIGHTS_INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS_FILE} (only safetensors are read, never pickles)")
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a list of safetensors files: {error}") from error
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not the name of a safetensors file beside it")
        tensors.update(read_tensors(folder / name))
    return tensors


def weights_sha256(folder: Path) -> str:
    """Identity of a backbone's weights, whatever wrote the files around them.

    Unlike a digest of the files it is the same for one file and for shards, and for a ``config.json`` that another
    version of transformers wrote.

    Args:
        folder: A backbone in the Hugging Face layout.

    Returns:
        Hex SHA-256 over name, dtype, shape and bytes of every tensor in the order of their names. A ``pooler`` is left
        out: transformers draws it at random where the published weights have none, and no pooling here uses it.

    Raises:
        CheckpointError: As for :func:`backbone_tensors`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone_tensors(folder).items()):
        if name.startswith("pooler."):
            continue
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise CheckpointError(f"{tensor.file}: {name} is cut short")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()
