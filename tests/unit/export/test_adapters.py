"""Adapter checkpoints: PEFT reads what is written, and a merge is PEFT's model in the same bytes everywhere."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import (
    CheckpointSpec,
    SlotContent,
    SlotSpec,
    encoder_identity,
    folder_sha256,
    read_spec,
    validate_folder,
)
from resrank.core.errors import CheckpointError
from resrank.export import adapters, shipped_checkpoints
from resrank.export.adapters import (
    BackboneAdapter,
    WholeWeights,
    default_checkpoint,
    merge_adapter,
    merged_weight,
    write_adapter,
)
from resrank.export.initialize import InitOptions, initialize
from resrank.model.modeling import ResRankModel
from support.tiny_adapter import CARD, cached_backbones, make_tiny_adapter, random_adapter
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import disturb_adapters, tiny_trainable

ROLES = ("encoder", "reranker")

# transformers renames "gradient" to "activation checkpointing", and PEFT still asks for the old name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    make_tiny_adapter(folder, base)
    return folder


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "checkpoint"
    merge_adapter(adapter, folder, encoder=base / "encoder", reranker=base / "reranker")
    return folder


@pytest.fixture
def packaged(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A cache that holds the base's backbones as packaged ones; returns what ``resrank.json`` calls them."""
    backbones = cached_backbones(base, tmp_path / "cache")
    monkeypatch.setenv("RESRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(adapters, "PACKAGED_BACKBONES", backbones)
    return backbones[0].source, backbones[1].source


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def digests(spec: CheckpointSpec) -> tuple[str, str]:
    return spec.encoder.sha256, spec.reranker.sha256


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "exclude_modules": ["pooler.dense", "k_proj"]},
        {"target_modules": ["query"]},
    ],
)
def test_a_merge_is_what_peft_merges(base: Path, tmp_path: Path, lora: dict[str, object]) -> None:
    train_reranker = "target_modules" not in lora  # a llama has no such layer
    make_tiny_adapter(tmp_path / "adapter", base, train_reranker=train_reranker, **lora)
    merge_adapter(tmp_path / "adapter", tmp_path / "out", encoder=base / "encoder", reranker=base / "reranker")

    for role in ROLES if train_reranker else ("encoder",):
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(base / role), tmp_path / "adapter" / role)
        expected = model.merge_and_unload().state_dict()
        found, before = weights(tmp_path / "out" / role), weights(base / role)
        assert found.keys() == expected.keys()
        assert max((found[name] - expected[name]).abs().max() for name in expected) < 1e-6
        changed = {name for name in found if not torch.equal(found[name], before[name])}
        assert changed == {name for name in found if (found[name] - before[name]).abs().max() > 1e-2}
        assert changed


def test_peft_loads_every_tensor_that_was_learned(base: Path, adapter: Path) -> None:
    learned = random_adapter(base / "reranker", seed=2).tensors
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base / "reranker"), adapter / "reranker")

    loaded = {name.replace(".default.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    assert loaded.keys() == learned.keys()
    assert all(torch.equal(loaded[name], learned[name].half().float()) for name in learned)


def test_the_merged_checkpoint_computes_what_the_adapted_model_computes(
    base: Path, adapter: Path, merged: Path
) -> None:
    """Before and after in torch: the states of both backbones, adapted by PEFT, and the fields of training."""
    model = ResRankModel.from_checkpoint(merged)
    assert (model.spec.name, model.spec.fusion.residual_gate) == ("tiny-adapter", pytest.approx(0.7))
    ids = torch.tensor([[5, 9, 30, 31, 6]])
    with torch.inference_mode():
        for role in ROLES:
            backbone = getattr(model, role)
            adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base / role), adapter / role).eval()
            expected = adapted(input_ids=ids).last_hidden_state
            torch.testing.assert_close(backbone(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
            plain = AutoModel.from_pretrained(base / role).eval()(input_ids=ids).last_hidden_state
            assert (expected - plain).abs().max() > 1e-2
    stored = load_file(adapter / "projectors.safetensors")
    torch.testing.assert_close(model.p_in.weight.detach(), stored["p_in.weight"], rtol=0, atol=0)
    torch.testing.assert_close(model.p_out.weight.detach(), stored["p_out.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("modes", [("lora", "lora"), ("frozen", "lora"), ("lora", "frozen")])
def test_what_training_holds_is_what_the_merged_checkpoint_computes(
    base: Path, tmp_path: Path, modes: tuple[str, str]
) -> None:
    """From the trainable model through both files to a model of its own: the same fields, the same weights."""
    config = {role: {"mode": mode} for role, mode in zip(ROLES, modes, strict=True)}
    trained, _ = tiny_trainable(base, config)
    disturb_adapters(trained)
    learned = {
        role: BackboneAdapter(fields, trained.adapter_state(role))
        for role in ("encoder", "reranker")
        if (fields := trained.adapter_config(role)) is not None
    }
    write_adapter(
        tmp_path / "adapter",
        base=base,
        spec=trained.trained_spec(),
        encoder=learned.get("encoder"),
        reranker=learned.get("reranker"),
        projectors=trained.projector_state(),
        card=CARD,
    )
    merge_adapter(tmp_path / "adapter", tmp_path / "out", encoder=base / "encoder", reranker=base / "reranker")

    found, expected = ResRankModel.from_checkpoint(tmp_path / "out"), trained.merged_model()
    assert found.spec.fusion.residual_gate == pytest.approx(trained.gate)
    assert trained.gate != read_spec(base).fusion.residual_gate
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=2e-3, rtol=0)  # adapters are rounded to fp16
    before = ResRankModel.from_checkpoint(base).state_dict()
    moved = {name.split(".")[0] for name in state if (state[name] - before[name]).abs().max() > 2e-2}
    assert moved == {"p_in", "p_out"} | {role for role, mode in zip(ROLES, modes, strict=True) if mode == "lora"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_merged_weight_has_the_bits_of_the_sum_in_its_stated_order(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(130, 7, generator=generator).to(dtype)  # more rows than one block
    a = torch.randn(3, 7, generator=generator).half()
    b = torch.randn(130, 3, generator=generator).half()

    expected = torch.empty_like(weight)
    for row in range(130):
        for column in range(7):
            total = float(b[row, 0]) * float(a[0, column])
            for k in (1, 2):
                total += float(b[row, k]) * float(a[k, column])
            value = np.float32(float(weight[row, column]) + total * 0.3)
            expected[row, column] = torch.tensor(value).to(dtype)
    assert torch.equal(merged_weight(weight, a, b, 0.3), expected)


def test_a_merge_is_the_same_to_the_byte_whatever_the_base_s_files_look_like(
    base: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    """As published, in shards, with a head, with another transformers' config and with another tokenizer's file."""
    encoder, reranker = (Path(shutil.copytree(base / role, tmp_path / role)) for role in ROLES)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"transformers_version": "4.0.0"}))
    (encoder / "tokenizer.json").write_text("{}")
    body = weights(base / "reranker")
    published = {f"model.{name}": tensor for name, tensor in body.items()}
    published["lm_head.weight"] = torch.zeros_like(body["embed_tokens.weight"])
    (reranker / "model.safetensors").unlink()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(published)}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in published.items() if places[name] == file}
        save_file(part, reranker / file, metadata={"format": "pt"})
    (reranker / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    spec = merge_adapter(adapter, tmp_path / "out", encoder=encoder, reranker=reranker)
    assert spec == validate_folder(tmp_path / "out") == read_spec(merged)
    assert folder_sha256(tmp_path / "out") == folder_sha256(merged)
    assert (tmp_path / "out" / "README.md").read_text() == CARD


def test_an_encoder_that_was_not_trained_keeps_its_index(base: Path, tmp_path: Path) -> None:
    make_tiny_adapter(tmp_path / "adapter", base, train_encoder=False)
    spec = merge_adapter(tmp_path / "adapter", tmp_path / "out", encoder=base / "encoder", reranker=base / "reranker")

    before = read_spec(base)
    assert encoder_identity(spec) == encoder_identity(before)
    assert spec.encoder == before.encoder
    assert spec.reranker.sha256 != before.reranker.sha256
    assert spec.reranker.source.startswith("tiny-reranker + tiny-adapter (")


def test_a_base_published_without_a_pooler_is_the_same_whoever_loads_it(base: Path, tmp_path: Path) -> None:
    """As a masked-language model is: transformers draws the pooler that it lacks at random, anew each time."""
    published = Path(shutil.copytree(base / "encoder", tmp_path / "published"))
    body = {f"bert.{name}": tensor for name, tensor in weights(published).items() if not name.startswith("pooler.")}
    save_file(body, published / "model.safetensors", metadata={"format": "pt"})
    options = InitOptions(max_passage_tokens=64, max_query_tokens=32, max_passages=16)
    one, two = (initialize(published, base / "reranker", tmp_path / name, options) for name in ("one", "two"))
    assert one == two

    make_tiny_adapter(tmp_path / "adapter", tmp_path / "one", train_encoder=False)
    spec = merge_adapter(tmp_path / "adapter", tmp_path / "out", encoder=published, reranker=base / "reranker")
    assert encoder_identity(spec) == encoder_identity(one)
    assert not any(
        name.startswith("pooler.") for name in ResRankModel.from_checkpoint(tmp_path / "out").encoder.state_dict()
    )


def test_equal_sizes_need_no_projectors(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "base", embedding_dim=48, encoder_family="llama", pooling="last")
    make_tiny_adapter(tmp_path / "adapter", tmp_path / "base", train_encoder=False, train_reranker=False)
    bases = {role: tmp_path / "base" / role for role in ROLES}
    spec = merge_adapter(tmp_path / "adapter", tmp_path / "out", **bases)

    assert not (tmp_path / "out" / "projectors.safetensors").exists()
    assert digests(spec) == digests(read_spec(tmp_path / "base"))
    assert spec.fusion.residual_gate == pytest.approx(0.7)


def test_other_base_weights_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "other", seed=1)
    (tmp_path / "parent").mkdir()

    with pytest.raises(
        CheckpointError,
        match=r"other/reranker: the sha256 of its weights is \w{64}, but the adapter was trained on tiny-reranker, "
        r"which has \w{64}: give the folder of that model with --reranker",
    ):
        merge_adapter(
            adapter, tmp_path / "parent" / "out", encoder=base / "encoder", reranker=tmp_path / "other" / "reranker"
        )
    assert list((tmp_path / "parent").iterdir()) == []


def test_bases_are_found_by_the_names_of_packaged_backbones(
    base: Path, merged: Path, packaged: tuple[str, str], tmp_path: Path
) -> None:
    make_tiny_adapter(tmp_path / "adapter", base, sources=packaged)
    spec = merge_adapter(tmp_path / "adapter", tmp_path / "out")

    assert digests(spec) == digests(read_spec(merged))
    assert spec.encoder.source.startswith("packed-encoder (resrank-test-encoder==1.0, Apache-2.0) + tiny-adapter (")


def test_a_base_that_is_not_at_hand_is_asked_for(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the reranker's base is not at hand .*give its folder with --reranker"):
        merge_adapter(adapter, tmp_path / "out", encoder=base / "encoder")
    with pytest.raises(CheckpointError, match=r"missing: no such folder"):
        merge_adapter(adapter, tmp_path / "out", encoder=tmp_path / "missing", reranker=base / "reranker")


def test_the_default_is_merged_once_and_is_found_as_a_base(
    base: Path, packaged: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "default"
    monkeypatch.setattr(shipped_checkpoints, "_built_in", lambda name: [place])

    made = make_tiny_adapter(place, base, sources=packaged, name="shipped")
    steps: list[str] = []
    first = default_checkpoint(steps.append)
    assert first == tmp_path / "cache" / "checkpoints" / f"shipped-{made.digest()[:12]}"
    assert steps == ["merging the encoder", "merging the reranker"]
    assert default_checkpoint(steps.append) == first
    assert len(steps) == 2

    make_tiny_adapter(tmp_path / "second", first, name="second", train_encoder=False)
    spec = merge_adapter(tmp_path / "second", tmp_path / "out")
    assert spec.encoder == read_spec(first).encoder
    assert spec.reranker.source.startswith(f"{packaged[1]} + shipped ({made.digest()[:12]}) + second (")


def test_training_s_paths_do_not_travel(adapter: Path) -> None:
    config = json.loads((adapter / "encoder" / "adapter_config.json").read_text())

    assert config["base_model_name_or_path"] == "tiny-encoder"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert [path for path in adapter.rglob("*") if path.is_file() and b"/tmp" in path.read_bytes()] == []


@pytest.mark.parametrize("value", [float("nan"), 1e5])  # 1e5 is more than fp16 holds
def test_a_number_that_cannot_be_stored_is_named(base: Path, tmp_path: Path, value: float) -> None:
    learned = random_adapter(base / "encoder")
    name = next(iter(learned.tensors))
    learned.tensors[name][0, 0] = value
    (tmp_path / "parent").mkdir()

    with pytest.raises(CheckpointError, match=rf"{name}: holds numbers that are not finite in float16"):
        write(tmp_path / "parent" / "out", base, learned)
    assert list((tmp_path / "parent").iterdir()) == []


def test_an_adapter_of_another_model_or_kind_is_not_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the base has no weight layers.0.mlp.down_proj.weight"):
        write(tmp_path / "out", base, random_adapter(base / "reranker"))
    with pytest.raises(CheckpointError, match="use_dora is True, but only plain LoRA"):
        write(tmp_path / "out", base, random_adapter(base / "encoder", use_dora=True))
    assert not (tmp_path / "out").exists()


def test_projectors_must_be_given_where_the_sizes_differ(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"projectors.safetensors: missing, but fusion.projector is linear"):
        write_adapter(
            tmp_path / "out", base=base, spec=read_spec(base), encoder=None, reranker=None, projectors={}, card=CARD
        )


def test_nothing_is_overwritten(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(adapter, tmp_path / "out", encoder=base / "encoder", reranker=base / "reranker")
    with pytest.raises(CheckpointError, match="exists already"):
        make_tiny_adapter(tmp_path / "out", base)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A limit on the size of a file fails the same writes as a full disk does, in Python and in safetensors."""
    (tmp_path / "parent").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (base / "encoder" / "model.safetensors").stat().st_size
    for limit in (size // 2, 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"parent/out: cannot be written: .*File too large"):
                merge_adapter(
                    adapter, tmp_path / "parent" / "out", encoder=base / "encoder", reranker=base / "reranker"
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list((tmp_path / "parent").iterdir()) == []


def write(out: Path, base: Path, encoder: BackboneAdapter) -> None:
    write_adapter(
        out,
        base=base,
        spec=read_spec(base),
        encoder=encoder,
        reranker=None,
        projectors=load_file(base / "projectors.safetensors"),
        card=CARD,
    )


@pytest.fixture(scope="module")
def compact_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compact") / "base"
    make_tiny_checkpoint(
        folder,
        compact=True,
        query_residual=True,
        residual_gate=0.0,
        score_residual=0.3,
        slots=SlotSpec(content=SlotContent.RELATIONS, neighbors=4),
    )
    return folder


def write_compact(out: Path, base: Path) -> None:
    """As training does it: the encoder frozen, all weights of the decoder."""
    write_adapter(
        out,
        base=base,
        spec=read_spec(base).model_copy(update={"name": "small"}),
        encoder=None,
        reranker=WholeWeights({name: value + 0.01 for name, value in weights(base / "reranker").items()}),
        projectors=load_file(base / "projectors.safetensors"),
        card=CARD,
    )


def test_a_decoder_without_a_base_comes_whole(compact_base: Path, tmp_path: Path) -> None:
    write_compact(tmp_path / "adapter", compact_base)
    assert not (tmp_path / "adapter" / "encoder" / "model.safetensors").exists()
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "out", encoder=compact_base / "encoder")

    assert merged == validate_folder(tmp_path / "out")
    assert encoder_identity(merged) == encoder_identity(read_spec(compact_base))
    assert merged.reranker.source.startswith(read_spec(compact_base).reranker.source + " + small (")
    before, after = weights(compact_base / "reranker"), weights(tmp_path / "out" / "reranker")
    assert all(torch.equal(after[name], before[name] + 0.01) for name in before)
    ResRankModel.from_checkpoint(tmp_path / "out")


def test_a_base_for_weights_that_are_there_is_refused(compact_base: Path, tmp_path: Path) -> None:
    write_compact(tmp_path / "adapter", compact_base)
    with pytest.raises(CheckpointError, match="reranker: has its weights with it: leave out --reranker"):
        merge_adapter(
            tmp_path / "adapter",
            tmp_path / "out",
            encoder=compact_base / "encoder",
            reranker=compact_base / "reranker",
        )


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda fields, folder: (folder / "model.safetensors").unlink(), "missing, but resrank.json names no base"),
        (
            lambda fields, folder: fields["reranker"].update(base_sha256="0" * 64),
            "weights are either whole or an adapter",
        ),
    ],
)
def test_weights_are_whole_or_of_a_base(
    compact_base: Path, tmp_path: Path, break_it: Callable[[dict[str, Any], Path], object], message: str
) -> None:
    write_compact(tmp_path / "adapter", compact_base)
    file = tmp_path / "adapter" / "resrank.json"
    fields = json.loads(file.read_text())
    break_it(fields, tmp_path / "adapter" / "reranker")
    fields["reranker"]["sha256"] = folder_sha256(tmp_path / "adapter" / "reranker")
    file.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=message):
        validate_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("trained", [True, False])
def test_an_adapter_of_the_first_layers_is_merged_with_the_whole_base(
    base: Path, trained: bool, tmp_path: Path
) -> None:
    options = InitOptions(max_query_tokens=32, max_passages=16, layers=1)
    initialize(base / "encoder", base / "reranker", tmp_path / "cut", options)
    make_tiny_adapter(tmp_path / "adapter", tmp_path / "cut", train_encoder=False, train_reranker=trained)
    for name, place in (("whole", base), ("first", tmp_path / "cut")):
        merge_adapter(tmp_path / "adapter", tmp_path / name, encoder=base / "encoder", reranker=place / "reranker")
    found = weights(tmp_path / "whole" / "reranker")
    assert {name.split(".")[1] for name in found if name.startswith("layers.")} == {"0"}
    assert (read_spec(tmp_path / "whole").digest()) == read_spec(tmp_path / "first").digest()
    unchanged = all(torch.equal(value, weights(base / "reranker")[name]) for name, value in found.items())
    assert unchanged != trained
