"""What a checkpoint promises is checked, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resrank.core.checkpoint import (
    CheckpointSpec,
    encoder_identity,
    file_sha256,
    folder_sha256,
    projector_shapes,
    read_spec,
    validate_folder,
)
from resrank.core.errors import CheckpointError
from resrank.core.tokenization import EncoderTokenizer
from resrank.core.weights import backbone_tensors
from support.tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "resrank.json"
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def test_a_complete_checkpoint_is_read_with_all_its_fields(checkpoint: Path) -> None:
    spec = validate_folder(checkpoint)

    stored = json.loads((checkpoint / "resrank.json").read_text())
    assert spec.model_dump(mode="json") == stored
    assert stored["schema_version"] == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda f: f["encoder"].pop("pooling"), "encoder.pooling"),
        (lambda f: f["encoder"].update(pooling="max"), "encoder.pooling"),
        (lambda f: f["encoder"].update(embedding_dim=0), "encoder.embedding_dim"),
        (lambda f: f["encoder"].update(sha256="abc"), "encoder.sha256"),
        (lambda f: f["reranker"].update(max_passages=0), "reranker.max_passages"),
        (lambda f: f["reranker"]["prompt"].pop("before_passages"), "reranker.prompt.before_passages"),
        (lambda f: f["fusion"].update(input_scale=-1), "fusion.input_scale"),
        (lambda f: f["fusion"].update(temperature=0.03), "fusion.temperature"),
        (lambda f: f.update(schema_version=2), "schema_version"),
        (lambda f: f.update(loss="ranknet"), "loss"),
    ],
)
def test_a_wrong_missing_or_unknown_field_is_named_with_its_file(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    edit(checkpoint, change)

    with pytest.raises(CheckpointError) as caught:
        read_spec(checkpoint)
    assert str(caught.value).startswith(f"{checkpoint / 'resrank.json'}: {field}: ")


def test_identity_projectors_need_equal_sizes(checkpoint: Path) -> None:
    edit(checkpoint, lambda f: f["fusion"].update(projector="identity", projectors_sha256=None))

    with pytest.raises(CheckpointError, match=r"embedding_dim \(32\) = reranker.hidden_size \(48\)"):
        read_spec(checkpoint)


def test_a_gate_of_zero_needs_the_query_residual(checkpoint: Path) -> None:
    edit(checkpoint, lambda f: f["fusion"].update(residual_gate=0, query_residual=False))

    with pytest.raises(CheckpointError, match=r"fusion: .*zero vector"):
        read_spec(checkpoint)


def test_a_missing_or_garbled_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file; a checkpoint folder holds resrank.json"):
        read_spec(tmp_path)
    (tmp_path / "resrank.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="the whole file"):
        read_spec(tmp_path)
    (tmp_path / "resrank.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_spec(tmp_path)


@pytest.mark.parametrize("backbone", ["encoder", "reranker"])
def test_changed_weights_are_found(checkpoint: Path, backbone: str) -> None:
    weights = checkpoint / backbone / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(CheckpointError, match=rf"{backbone}: sha256 is [0-9a-f]{{64}}, but resrank.json says"):
        validate_folder(checkpoint)
    assert validate_folder(checkpoint, verify_hashes=False).encoder.embedding_dim == 32


def test_changed_projectors_are_found_and_are_another_checkpoint(checkpoint: Path) -> None:
    weights = checkpoint / "projectors.safetensors"
    before = validate_folder(checkpoint)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"projectors\.safetensors: sha256 is [0-9a-f]{64}, but"):
        validate_folder(checkpoint)
    edit(checkpoint, lambda f: f["fusion"].update(projectors_sha256=file_sha256(weights)))
    assert validate_folder(checkpoint).digest() != before.digest()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_of_a_backbone_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / "reranker" / name).unlink()

    with pytest.raises(CheckpointError, match=f"reranker/{name}: missing"):
        validate_folder(checkpoint)


def test_pickled_weights_are_never_accepted(checkpoint: Path) -> None:
    (checkpoint / "encoder" / "model.safetensors").rename(checkpoint / "encoder" / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="only safetensors are read, never pickles"):
        validate_folder(checkpoint, verify_hashes=False)


def test_projectors_are_there_exactly_when_promised(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "projectors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing, but fusion.projector is linear"):
        validate_folder(checkpoint)

    same = tmp_path / "same"
    make_tiny_checkpoint(same, embedding_dim=32, hidden_size=32)
    validate_folder(same)
    (same / "projectors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"present, but fusion.projector is identity"):
        validate_folder(same)


def test_digests_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / "a"
    file.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    by_hand = hashlib.sha256(b"a\x003\x00" + file_sha256(file).encode()).hexdigest()
    assert folder_sha256(tmp_path / "one") == by_hand

    file.rename(tmp_path / "one" / "b")
    assert folder_sha256(tmp_path / "one") != by_hand


@pytest.mark.parametrize(
    ("section", "change", "same_vectors"),
    [
        ("encoder", {"source": "elsewhere"}, True),
        ("fusion", {"residual_gate": 0.5}, True),
        ("reranker", {"max_passages": 4}, True),
        ("encoder", {"pooling": "cls"}, False),
        ("encoder", {"embedding_norm": "none"}, False),
        ("encoder", {"query_instruction": "query: "}, False),
        ("encoder", {"sha256": "0" * 64}, False),
    ],
)
def test_an_index_belongs_to_all_that_decides_a_vector(
    made: Path, section: str, change: dict[str, Any], same_vectors: bool
) -> None:
    spec = read_spec(made)
    fields = spec.model_dump(mode="json")
    fields[section] |= change
    other = CheckpointSpec.model_validate(fields)

    assert (encoder_identity(other) == encoder_identity(spec)) is same_vectors
    assert other.digest() != spec.digest()


RELATIONS = {"content": "relations", "neighbors": 16}


def relational(fields: dict[str, Any]) -> None:
    """Changes the fields of a checkpoint with vectors into those of one that reads relations alone, without text."""
    fields["reranker"].update(slots=dict(RELATIONS), prompt=None, eos_token=None)
    fields["fusion"].update(
        residual_gate=0,
        query_residual=True,
        score_residual=0.3,
        cosine_map={"slope": 4.84, "center": 0.72, "offset": 0.05},
    )


def test_fields_that_say_nothing_are_left_out_of_the_digest(checkpoint: Path) -> None:
    stored = json.loads((checkpoint / "resrank.json").read_text())
    assert not {"slots"} & stored["reranker"].keys()
    assert not {"cosine_map", "score_residual", "lexical_weight"} & stored["fusion"].keys()
    before = read_spec(checkpoint)
    edit(
        checkpoint,
        lambda f: (
            f["reranker"].update(slots={"content": "vector"}),
            f["fusion"].update(cosine_map=None, score_residual=0, lexical_weight=0.3),
        ),
    )
    assert read_spec(checkpoint).digest() == before.digest()


def test_what_a_reranker_of_relations_says_is_read(checkpoint: Path) -> None:
    before = read_spec(checkpoint)
    edit(checkpoint, relational)
    spec = read_spec(checkpoint)
    assert spec.reranker.slots.width(32) == 52
    assert not spec.fusion.has_vector_residual
    assert projector_shapes(spec.encoder, spec.reranker, spec.fusion) == {
        "p_in.weight": (48, 52),
        "score_head.weight": (48,),
    }
    assert spec.fusion.cosine_map is not None
    assert spec.fusion.cosine_map.apply(0.72) == pytest.approx(0.05)
    assert encoder_identity(spec) == encoder_identity(before)
    assert spec.digest() != before.digest()
    assert CheckpointSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["reranker"]["slots"].update(content="gram"),
            "slots.content: Input should be 'vector', 'relations'",
        ),
        (lambda f: f["reranker"]["slots"].update(layout=2), "reranker.slots.layout: Extra inputs are not permitted"),
        (lambda f: f["reranker"]["slots"].update(neighbors=0), "neighbors: Input should be greater than or equal to 1"),
        (
            lambda f: f["reranker"]["slots"].update(neighbors=257),
            "neighbors: Input should be less than or equal to 256",
        ),
        (lambda f: f["reranker"]["slots"].pop("neighbors"), "slots that hold relations need slots.neighbors"),
        (lambda f: f["reranker"]["slots"].update(content="vector"), "slots.neighbors is for slots that hold relations"),
        (lambda f: f["fusion"].update(query_residual=False, residual_gate=1), "relations need fusion.query_residual"),
        (
            lambda f: f["fusion"].update(projector="identity", projectors_sha256=None),
            "relations need fusion.projector linear",
        ),
        (lambda f: f["fusion"].update(residual_gate=1), "reranker.prompt is null, so there is no query state"),
        (lambda f: f["fusion"].update(score_residual=0), "reranker.prompt is null, so there is no query state"),
        (lambda f: f["reranker"].update(eos_token="</s>"), "prompt and eos_token are given together"),
        (lambda f: f["fusion"].update(lexical_weight=11), "fusion.lexical_weight: Input should be less than or equal"),
        (
            lambda f: f["fusion"].update(score_residual=-1),
            "fusion.score_residual: Input should be greater than or equal",
        ),
        (
            lambda f: f["fusion"]["cosine_map"].update(slope=0),
            "cosine_map.slope: out of range (limit above 0, at most 1000, got 0",
        ),
    ],
)
def test_contradictions_of_relations_are_one_sentence(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(checkpoint, lambda f: (relational(f), change(f)))
    with pytest.raises(CheckpointError) as caught:
        read_spec(checkpoint)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_projectors_is_refused(checkpoint: Path) -> None:
    edit(checkpoint, lambda f: (relational(f), f["fusion"].update(projectors_sha256=None)))
    with pytest.raises(CheckpointError, match=r"holds p_in.weight \[48, 32\], p_out.* not p_in.weight \[48, 52\]"):
        validate_folder(checkpoint)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "", "\ufeff{}"])
def test_json_that_no_program_wrote_is_named(checkpoint: Path, content: str) -> None:
    spec = read_spec(checkpoint)
    encoder = spec.encoder.model_copy(update={"append_eos": True})
    (checkpoint / "encoder" / "model.safetensors").unlink()
    for name in ("resrank.json", "encoder/tokenizer_config.json", "encoder/model.safetensors.index.json"):
        (checkpoint / name).write_text(content)

    with pytest.raises(CheckpointError, match=r"resrank\.json: "):
        read_spec(checkpoint)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: "):
        EncoderTokenizer(checkpoint / "encoder", encoder, for_queries=True)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        backbone_tensors(checkpoint / "encoder")
