"""What an adapter checkpoint promises is checked without torch, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resrank.core.adapter import read_lora, refuse_foreign_lora, validate_adapter
from resrank.core.checkpoint import folder_sha256, is_adapter, read_spec, validate_folder
from resrank.core.errors import CheckpointError
from resrank.core.weights import backbone_tensors
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_tiny_checkpoint

QUERY = "base_model.model.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    make_tiny_adapter(folder, base)
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def agree_on_digests(adapter: Path) -> None:
    """Writes the digests of what the folders hold now, so that only other checks can fail."""

    def change(fields: dict[str, Any]) -> None:
        for name in ("encoder", "reranker"):
            fields[name]["sha256"] = folder_sha256(adapter / name)

    edit_json(adapter / "resrank.json", change)


def test_a_complete_adapter_checkpoint_is_read_with_all_its_fields(adapter: Path) -> None:
    spec = validate_adapter(adapter)

    assert is_adapter(adapter)
    assert spec.model_dump(mode="json") == json.loads((adapter / "resrank.json").read_text())
    assert (spec.kind, spec.schema_version, spec.fusion.residual_gate) == ("adapter", 1, 0.7)


def test_it_is_read_without_torch(adapter: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from resrank.core.adapter import validate_adapter; "
        f"validate_adapter(Path({str(adapter)!r})); "
        "assert not {'torch', 'peft', 'safetensors', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_where_a_full_checkpoint_is_wanted_the_way_to_one_is_named(adapter: Path) -> None:
    for read in (read_spec, validate_folder):
        with pytest.raises(
            CheckpointError, match=rf"an adapter checkpoint; .*resrank checkpoint merge {adapter} --out"
        ):
            read(adapter)


def test_where_an_adapter_is_wanted_a_full_checkpoint_and_an_empty_folder_are_refused(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match="a full checkpoint, not an adapter checkpoint: there is nothing to merge"
    ):
        validate_adapter(base)
    with pytest.raises(CheckpointError, match=r"resrank\.json: no such file"):
        validate_adapter(tmp_path)


def test_a_side_without_a_base_has_to_bring_its_weights(adapter: Path) -> None:
    edit_json(adapter / "resrank.json", lambda fields: fields["encoder"].pop("base_sha256"))

    with pytest.raises(CheckpointError, match=r"encoder/model\.safetensors: missing, but resrank\.json names no base"):
        validate_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda f: f["encoder"].update(pooling="max"), "encoder.pooling"),
        (lambda f: f["reranker"].update(base_sha256="abc"), "reranker.base_sha256"),
        (lambda f: f["fusion"].update(residual_gate=0), "fusion"),
        (lambda f: f.update(schema_version=2), "schema_version"),
        (lambda f: f.update(loss="ranknet"), "loss"),
    ],
)
def test_a_wrong_missing_or_unknown_field_is_named_with_its_file(
    adapter: Path, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    edit_json(adapter / "resrank.json", change)

    with pytest.raises(CheckpointError) as caught:
        validate_adapter(adapter)
    assert str(caught.value).startswith(f"{adapter / 'resrank.json'}: {field}: ")


@pytest.mark.parametrize("part", ["encoder/tokenizer.json", "reranker/adapter_config.json", "projectors.safetensors"])
def test_a_changed_file_is_refused(adapter: Path, part: str) -> None:
    with (adapter / part).open("ab") as file:
        file.write(b" ")

    with pytest.raises(CheckpointError, match=r"sha256 is \w{64}, but resrank.json says \w{64}"):
        validate_adapter(adapter)


def test_projectors_of_other_sizes_are_refused(adapter: Path) -> None:
    weights = {"p_in.weight": np.zeros((48, 31), np.float32), "p_out.weight": np.zeros((32, 48), np.float32)}
    save_file(weights, adapter / "projectors.safetensors")
    digest = hashlib.sha256((adapter / "projectors.safetensors").read_bytes()).hexdigest()
    edit_json(adapter / "resrank.json", lambda f: f["fusion"].update(projectors_sha256=digest))

    with pytest.raises(CheckpointError, match=r"projectors.safetensors: holds .*\[48, 31\].*, not .*\[48, 32\]"):
        validate_adapter(adapter)


def test_a_lora_is_read_with_its_scaling(adapter: Path) -> None:
    lora = read_lora(adapter / "encoder")
    assert lora is not None
    assert (lora.rank, lora.scaling) == (4, 8 / 4)
    a, b = lora.modules["encoder.layer.1.intermediate.dense"]
    assert (a.shape, b.shape, a.dtype) == ((4, 32), (64, 4), "F16")

    edit_json(adapter / "encoder" / "adapter_config.json", lambda f: f.update(use_rslora=True))
    lora = read_lora(adapter / "encoder")
    assert lora is not None
    assert lora.scaling == 8 / 4**0.5  # arXiv 2312.03732


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["pooler"]),
        ("rank_pattern", {"query": 8}),
        ("alpha_pattern", {"query": 8}),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("something_of_next_year", {"on": True}),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(adapter: Path, field: str, value: object) -> None:
    edit_json(adapter / "encoder" / "adapter_config.json", lambda f: f.update({field: value}))

    with pytest.raises(CheckpointError, match=rf"adapter_config.json: {field} is .*only .*plain LoRA"):
        read_lora(adapter / "encoder")


@pytest.mark.parametrize(
    ("field", "value"),
    [("peft_type", "LOHA"), ("r", 0), ("r", "4"), ("lora_alpha", -1), ("target_modules", "all-linear")],
)
def test_a_wrong_field_of_the_lora_config_is_named(adapter: Path, field: str, value: object) -> None:
    edit_json(adapter / "encoder" / "adapter_config.json", lambda f: f.update({field: value}))

    with pytest.raises(CheckpointError, match=rf"adapter_config.json: {field}: "):
        read_lora(adapter / "encoder")


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    (adapter / "encoder" / "adapter_model.safetensors").rename(adapter / "encoder" / "adapter_model.bin")
    agree_on_digests(adapter)

    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: missing \(only safetensors are read"):
        validate_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), rf"{QUERY}.lora_A.weight has no {QUERY}.lora_B.weight"),
        (lambda t: t.update({"lm_head.weight": np.zeros((2, 2), np.float32)}), "lm_head.weight is neither"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((5, 32), np.float16)}),
            rf"{QUERY}.lora_A.weight is \[5, 32\], which is not of rank 4",
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((4, 32), np.int8)}),
            rf"{QUERY}.lora_A.weight is I8, not F16, BF16 or F32",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_are_no_pairs_of_that_rank_are_named(
    adapter: Path, change: Callable[[dict[str, np.ndarray]], object], problem: str
) -> None:
    edit_tensors(adapter / "encoder", change)

    with pytest.raises(CheckpointError, match=problem):
        read_lora(adapter / "encoder")


def rename(tensors: dict[str, np.ndarray], new: str) -> None:
    for end in (".lora_A.weight", ".lora_B.weight"):
        tensors[new + end] = tensors.pop(QUERY + end)


def widen(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{QUERY}.lora_A.weight"] = np.zeros((4, 33), np.float16)


def drop(tensors: dict[str, np.ndarray]) -> None:
    for end in (".lora_A.weight", ".lora_B.weight"):
        tensors.pop(QUERY + end)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: rename(t, f"{QUERY}s"), r"lora_A.weight: the base has no weight .*self.querys.weight"),
        (widen, rf"{QUERY}: B @ A is \[32, 33\], but the base's .*self.query.weight is \[32, 32\]"),
        (drop, r"target_modules names encoder.layer.0.attention.self.query, but .* has no tensors for it"),
    ],
)
def test_an_adapter_of_another_architecture_is_named_by_its_tensor(
    adapter: Path, base: Path, change: Callable[[dict[str, np.ndarray]], object], problem: str
) -> None:
    tensors = backbone_tensors(base / "encoder")
    lora = read_lora(adapter / "encoder")
    assert lora is not None
    refuse_foreign_lora(lora, tensors)

    edit_tensors(adapter / "encoder", change)
    lora = read_lora(adapter / "encoder")
    assert lora is not None
    with pytest.raises(CheckpointError, match=problem):
        refuse_foreign_lora(lora, tensors)
