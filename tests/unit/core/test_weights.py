"""Safetensors headers and the identity of weights, against the library and by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from resrank.core.errors import CheckpointError
from resrank.core.weights import backbone_tensors, read_tensors, weights_sha256

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.arange(4, dtype=np.float16),
    "scalar": np.array(7, dtype=np.int64),
}


def test_names_types_shapes_and_bytes_are_those_that_the_library_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "model.safetensors").read_bytes()
    found = read_tensors(tmp_path / "model.safetensors")

    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "b.weight": ("F32", (2, 3)),
        "a.bias": ("F16", (4,)),
        "scalar": ("I64", ()),
    }
    assert all(content[tensor.begin : tensor.end] == TENSORS[name].tobytes() for name, tensor in found.items())


def test_the_identity_is_of_names_types_shapes_and_bytes_in_the_order_of_names(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    digest = hashlib.sha256()
    for head in ('["a.bias", "F16", [4]]', '["b.weight", "F32", [2, 3]]', '["scalar", "I64", []]'):
        digest.update(head.encode() + TENSORS[json.loads(head)[0]].tobytes())

    assert weights_sha256(tmp_path) == digest.hexdigest()


def test_the_identity_is_the_same_in_shards_with_other_metadata_and_with_another_pooler(tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    save_file(TENSORS, whole / "model.safetensors")
    save_file({"b.weight": TENSORS["b.weight"]}, shards / "model-2.safetensors", metadata={"by": "another"})
    rest = {name: tensor for name, tensor in TENSORS.items() if name != "b.weight"}
    save_file({**rest, "pooler.dense.weight": np.ones((2, 2))}, shards / "model-1.safetensors")
    places = {"b.weight": "model-2.safetensors", "a.bias": "model-1.safetensors", "scalar": "model-1.safetensors"}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (shards / "config.json").write_text("{}")

    assert weights_sha256(shards) == weights_sha256(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"a.bias": np.arange(4, dtype=np.float16) + 1},
        {"a.bias": np.arange(4, dtype=np.float16).reshape(2, 2)},
        {"a.bias": np.arange(4, dtype=np.float16).view(np.int16)},
        {"c.bias": np.arange(4, dtype=np.float16)},
    ],
)
def test_any_other_weights_have_another_identity(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    for name, tensors in (("one", TENSORS), ("two", TENSORS | change)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")

    assert weights_sha256(tmp_path / "one") != weights_sha256(tmp_path / "two")


def broken(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a safetensors file, or cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file, or cut short"),
        (broken(b"{not json"), "its safetensors header is not valid"),
        (broken(b"[]"), "its safetensors header is not valid"),
        (broken(b'{"w": {"dtype": "F32", "shape": [1]}}'), "its safetensors header is not valid"),
        (broken(b'{"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}'), "w: dtype 'F99' is not one of"),
        (
            broken(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
            r"w: F32 \[2\] does not fill bytes 0 to 4",
        ),
        (
            broken(b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', bytes(4)),
            r"w: F32 \[-1\] does not fill bytes 4 to 0",
        ),
        (
            broken(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(4)),
            "w ends at byte .*it is cut short",
        ),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=problem):
        read_tensors(tmp_path / "model.safetensors")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model.safetensors \(only safetensors are read, never pickles\)"):
        backbone_tensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone.safetensors: cannot be read"):
        read_tensors(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "model.bin", 7])
def test_an_index_leads_to_safetensors_files_of_its_own_folder_only(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))

    with pytest.raises(CheckpointError, match="is not the name of a safetensors file beside it"):
        backbone_tensors(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not a list of safetensors files"):
        backbone_tensors(tmp_path)
