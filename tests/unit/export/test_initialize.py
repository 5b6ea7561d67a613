"""Checkpoints made of two backbones: what is taken from where, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, T5Config, T5Model

from resrank.core.checkpoint import Pooling, Projector, SlotContent, SlotSpec, read_spec, validate_folder
from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.fusion import CosineMap
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer
from resrank.export.backbone_files import resolve_source
from resrank.export.compact import CompactDecoder
from resrank.export.initialize import (
    CHAT_PROMPT,
    PLAIN_PROMPT,
    InitOptions,
    first_projectors,
    initialize,
)
from resrank.export.written_aside import written_aside
from support.tiny_checkpoint import SENTENCES, make_bert, make_llama, make_tiny_checkpoint
from support.tiny_families import make_backbone

SMALL = InitOptions(max_query_tokens=32, max_passages=16)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "bert"
    make_bert(folder, 32)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "llama"
    make_llama(folder, 48)
    return folder


def nothing_left_behind(out: Path) -> bool:
    return list(out.parent.iterdir()) == []


def test_the_default_is_dense_start(bert: Path, llama: Path, tmp_path: Path) -> None:
    spec = initialize(bert, llama, tmp_path / "out", SMALL)

    assert spec.fusion.residual_gate == 0
    assert spec.fusion.query_residual
    assert spec == validate_folder(tmp_path / "out")
    assert (spec.encoder.source, spec.reranker.source, spec.name) == ("bert", "llama", "bert+llama")


def test_what_a_killed_run_left_does_not_block_the_next(bert: Path, llama: Path, tmp_path: Path) -> None:
    left = tmp_path / f".out.{os.getpid()}.partial"  # in a container the same process id comes again
    left.mkdir()
    initialize(bert, llama, tmp_path / "out", SMALL)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert sorted(tmp_path.iterdir()) == [left, tmp_path / "out"]


def test_a_checkpoint_gets_its_name_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def fsync(handle: int) -> None:
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        assert (tmp_path / "out").exists() == (len(flushed) == 2)  # the file and its folder before, the parent after
        flushed.append(Path(f"/proc/self/fd/{handle}").resolve().name)

    monkeypatch.setattr(os, "fsync", fsync)
    fails = True
    with (
        pytest.raises(CheckpointError, match=r"out: cannot be put in its place: .*No space left"),
        written_aside(tmp_path / "out") as partial,
    ):
        (partial / "file").write_text("content")
    assert list(tmp_path.iterdir()) == []
    fails = False
    with written_aside(tmp_path / "out") as partial:
        (partial / "file").write_text("content")
    assert flushed == ["file", partial.name, tmp_path.name]


def test_the_same_backbones_and_seed_give_the_same_checkpoint(bert: Path, llama: Path, tmp_path: Path) -> None:
    first = initialize(bert, llama, tmp_path / "first", SMALL)
    second = initialize(bert, llama, tmp_path / "second", SMALL)

    assert first.digest() == second.digest()
    one, two = (load_file(tmp_path / name / "projectors.safetensors") for name in ("first", "second"))
    assert all(torch.equal(one[key], two[key]) for key in ("p_in.weight", "p_out.weight"))


def test_the_stored_weights_are_the_backbones(bert: Path, llama: Path, tmp_path: Path) -> None:
    initialize(bert, llama, tmp_path / "out", SMALL)

    for source, copy in ((bert, "encoder"), (llama, "reranker")):
        stored = load_file(tmp_path / "out" / copy / "model.safetensors")
        original = load_file(source / "model.safetensors")
        assert stored.keys() == original.keys()
        assert all(torch.equal(stored[key], original[key]) for key in original)


def test_the_language_model_head_is_not_kept(bert: Path, llama: Path, tmp_path: Path) -> None:
    with_head = Path(shutil.copytree(llama, tmp_path / "with-head"))
    body = load_file(llama / "model.safetensors")
    head = torch.zeros_like(body["embed_tokens.weight"])
    save_file(
        {f"model.{key}": value for key, value in body.items()} | {"lm_head.weight": head},
        with_head / "model.safetensors",
        metadata={"format": "pt"},
    )
    initialize(bert, with_head, tmp_path / "out", SMALL)

    assert load_file(tmp_path / "out/reranker/model.safetensors").keys() == body.keys()


@pytest.mark.parametrize(("d", "h"), [(32, 48), (48, 32), (32, 32)])
def test_projectors_keep_angles_as_far_as_the_smaller_side_allows(d: int, h: int, tmp_path: Path) -> None:
    make_bert(tmp_path / "bert", d)
    make_llama(tmp_path / "llama", h)
    spec = initialize(tmp_path / "bert", tmp_path / "llama", tmp_path / "out", SMALL)
    linear = spec.fusion.model_copy(update={"projector": Projector.LINEAR})
    weights = first_projectors(spec.encoder, spec.reranker, linear, seed=3)
    p_in = weights["p_in.weight"].double().numpy()

    assert p_in.shape == (h, d)
    gram = p_in.T @ p_in if h >= d else p_in @ p_in.T
    np.testing.assert_allclose(gram, np.eye(min(d, h)), atol=1e-5)
    np.testing.assert_array_equal(weights["p_out.weight"].numpy(), weights["p_in.weight"].numpy().T)
    assert not np.allclose(p_in, first_projectors(spec.encoder, spec.reranker, linear, seed=4)["p_in.weight"])


def test_equal_sizes_need_no_projector(bert: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "llama", 32)
    spec = initialize(bert, tmp_path / "llama", tmp_path / "out", SMALL)

    assert spec.fusion.projector is Projector.IDENTITY
    assert not (tmp_path / "out" / "projectors.safetensors").exists()


def test_a_passage_enters_the_reranker_with_the_length_of_a_token(bert: Path, llama: Path, tmp_path: Path) -> None:
    spec = initialize(bert, llama, tmp_path / "out", SMALL)

    table = load_file(llama / "model.safetensors")["embed_tokens.weight"].double().numpy()
    p_in = load_file(tmp_path / "out" / "projectors.safetensors")["p_in.weight"].double().numpy()
    unit = np.random.default_rng(0).standard_normal(32)
    unit /= np.linalg.norm(unit)
    x = spec.fusion.input_scale * (p_in @ unit)
    assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(table, axis=1).mean(), rel=1e-4)


def test_pooling_follows_the_option_then_the_files_then_the_architecture(
    bert: Path, llama: Path, tmp_path: Path
) -> None:
    assert initialize(bert, llama, tmp_path / "1", SMALL).encoder.pooling is Pooling.MEAN
    causal = initialize(llama, llama, tmp_path / "2", SMALL).encoder
    assert causal.pooling is Pooling.LAST
    assert causal.append_eos

    told = Path(shutil.copytree(bert, tmp_path / "told"))
    (told / "1_Pooling").mkdir()
    (told / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert initialize(told, llama, tmp_path / "3", SMALL).encoder.pooling is Pooling.CLS
    options = InitOptions(pooling=Pooling.LAST, max_query_tokens=32, max_passages=16)
    overruled = initialize(told, llama, tmp_path / "4", options).encoder
    assert overruled.pooling is Pooling.LAST
    assert not overruled.append_eos  # [SEP] already ends every text


def test_instructions_and_limits_follow_the_sentence_transformers_files(
    bert: Path, llama: Path, tmp_path: Path
) -> None:
    told = Path(shutil.copytree(bert, tmp_path / "told"))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (told / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (told / "sentence_bert_config.json").write_text('{"max_seq_length": 96}')
    encoder = initialize(told, llama, tmp_path / "out", SMALL).encoder

    assert (encoder.query_instruction, encoder.passage_instruction) == ("query: ", "passage: ")
    assert encoder.max_passage_tokens == 96


def test_the_prompt_suits_the_tokenizer(bert: Path, llama: Path, tmp_path: Path) -> None:
    assert initialize(bert, llama, tmp_path / "1", SMALL).reranker.prompt == CHAT_PROMPT

    plain = Path(shutil.copytree(llama, tmp_path / "plain"))
    content = (plain / "tokenizer.json").read_text().replace("<|im_start|>", "<s>")
    (plain / "tokenizer.json").write_text(content)
    reranker = initialize(bert, plain, tmp_path / "2", SMALL).reranker
    assert reranker.prompt == PLAIN_PROMPT
    PromptTokenizer(tmp_path / "2" / "reranker", reranker)


def test_the_tokenizer_is_copied_to_the_byte(bert: Path, llama: Path, tmp_path: Path) -> None:
    initialize(bert, llama, tmp_path / "out", SMALL)

    for source, copy in ((bert, "encoder"), (llama, "reranker")):
        assert (tmp_path / "out" / copy / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_bidirectional_reranker_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    with pytest.raises(CheckpointError, match="not a causal decoder"):
        initialize(bert, bert, tmp_path / "parent" / "out", SMALL)
    assert nothing_left_behind(tmp_path / "parent" / "out")


def test_a_pickle_only_backbone_is_refused(bert: Path, llama: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(bert, tmp_path / "pickled"))
    torch.save(load_file(bert / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (tmp_path / "parent").mkdir()

    with pytest.raises(CheckpointError, match="cannot be loaded as a safetensors model"):
        initialize(pickled, llama, tmp_path / "parent" / "out", SMALL)
    assert nothing_left_behind(tmp_path / "parent" / "out")


def test_an_encoder_decoder_is_refused(llama: Path, tmp_path: Path) -> None:
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5Model(config).save_pretrained(tmp_path / "t5")

    with pytest.raises(CheckpointError, match="encoder-decoder models are neither encoder nor reranker"):
        initialize(tmp_path / "t5", llama, tmp_path / "out", SMALL)


def test_an_encoder_with_a_layer_after_pooling_is_refused(bert: Path, llama: Path, tmp_path: Path) -> None:
    dense = Path(shutil.copytree(bert, tmp_path / "dense"))
    (dense / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')

    with pytest.raises(CheckpointError, match=r"modules.json: a Dense module after pooling is not supported"):
        initialize(dense, llama, tmp_path / "out", SMALL)


def test_weights_that_would_be_random_are_refused(bert: Path, llama: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copytree(llama, tmp_path / "partial"))
    weights = load_file(llama / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is layers.1.mlp.up_proj.weight"):
        initialize(bert, partial, tmp_path / "out", SMALL)


def test_more_than_the_positions_of_a_backbone_is_refused(bert: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"max_passages 1000 need .* positions, but the reranker has 1024"):
        initialize(bert, llama, tmp_path / "out", InitOptions(max_passages=1000))
    refused = r"^max_passage_tokens: is more than the encoder reads \(limit 1024, got 1025\)"
    with pytest.raises(InvalidInputError, match=refused):
        initialize(bert, llama, tmp_path / "out", InitOptions(max_passage_tokens=1025))


def test_more_than_a_checkpoint_can_say_is_refused_whatever_the_encoder_reads(
    bert: Path, llama: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long"
    make_llama(long, 32)
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        fields = json.loads((long / name).read_text())
        (long / name).write_text(json.dumps({**fields, field: 131072}))
    with pytest.raises(InvalidInputError, match=r"^max_passage_tokens: .*\(limit 32768, got 40000\)"):
        initialize(long, llama, tmp_path / "out", InitOptions(max_passage_tokens=40000))
    told = tmp_path / "told"
    shutil.copytree(bert, told)
    (told / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "which river: "}}))
    with pytest.raises(InvalidInputError, match=r"^max_query_tokens: 3 tokens leave no room beside the instruction"):
        initialize(told, llama, tmp_path / "out", InitOptions(max_query_tokens=3))


def test_positions_behind_those_of_padding_are_not_counted(llama: Path, tmp_path: Path) -> None:
    """RoBERTa's first token stands at position 2, so a table of 1026 takes 1024 tokens."""
    make_backbone("xlm-roberta", tmp_path / "roberta")
    positions = json.loads((tmp_path / "roberta" / "config.json").read_text())["max_position_embeddings"]
    refused = rf"^max_passage_tokens: .*\(limit {positions - 2}, got {positions}\)"
    with pytest.raises(InvalidInputError, match=refused):
        initialize(tmp_path / "roberta", llama, tmp_path / "out", InitOptions(max_passage_tokens=positions))


def test_an_existing_folder_is_not_touched(bert: Path, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")

    with pytest.raises(CheckpointError, match="exists already"):
        initialize(bert, llama, tmp_path / "out", SMALL)
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_what_is_neither_folder_nor_hub_id_is_refused(llama: Path, tmp_path: Path) -> None:
    for source in ("./missing", "a b", str(tmp_path / "missing")):
        with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
            initialize(source, llama, tmp_path / "out", SMALL)


@pytest.mark.parametrize(
    ("d", "h", "family", "pooling"), [(32, 48, "bert", "mean"), (48, 48, "llama", "last"), (64, 32, "bert", "cls")]
)
def test_tiny_checkpoints_react_to_candidates_and_queries(
    tmp_path: Path, d: int, h: int, family: str, pooling: str
) -> None:
    """Computed with transformers alone: a fixture whose states hardly differ would let a broken graph pass."""
    folder = tmp_path / "out"
    spec = make_tiny_checkpoint(folder, embedding_dim=d, hidden_size=h, encoder_family=family, pooling=pooling)
    encoder = AutoModel.from_pretrained(folder / "encoder").eval()
    reranker = AutoModel.from_pretrained(folder / "reranker").eval()
    weights = load_file(folder / "projectors.safetensors") if d != h else {}
    p_in, p_out = weights.get("p_in.weight", torch.eye(h)), weights.get("p_out.weight", torch.eye(h))
    tokens = EncoderTokenizer(folder / "encoder", spec.encoder, for_queries=False)
    prompts = PromptTokenizer(folder / "reranker", spec.reranker)

    with torch.inference_mode():
        rows = []
        for text in SENTENCES:
            states = encoder(input_ids=torch.tensor(tokens.encode([text.encode()]).input_ids)).last_hidden_state[0]
            rows.append({"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling])
        e = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        scores = []
        for query in (b"Which river?", b"Who walked on the moon?"):
            batch = prompts.layout.batch(prompts.encode([query]), [len(SENTENCES)])
            inputs = reranker.get_input_embeddings()(torch.tensor(batch.input_ids))
            inputs[0, torch.tensor(batch.passage_positions[0])] = spec.fusion.input_scale * e @ p_in.T
            z = torch.nn.functional.normalize(reranker(inputs_embeds=inputs).last_hidden_state[0] @ p_out.T, dim=-1)
            passages = z[torch.tensor(batch.passage_positions[0])] + e
            scores.append(torch.cosine_similarity(passages, z[batch.last_position[0]], dim=-1).sort().values)
    gaps = torch.stack(scores).diff(dim=1)
    assert (gaps > 1e-2).float().mean() >= 0.5
    assert (scores[0] - scores[1]).abs().max() > 1e-2


def test_overrides_reach_the_options_and_the_fields(tmp_path: Path) -> None:
    spec = make_tiny_checkpoint(tmp_path / "out", max_passages=5, embedding_norm="none", state_norm="none")

    assert (spec.reranker.max_passages, spec.encoder.embedding_norm, spec.fusion.state_norm) == (5, "none", "none")
    assert read_spec(tmp_path / "out") == spec
    assert Tokenizer.from_file(str(tmp_path / "out" / "reranker" / "tokenizer.json")).token_to_id("<|im_end|>") == 2


RELATIONS = SlotSpec(content=SlotContent.RELATIONS, neighbors=4)


def test_a_compact_reranker_has_no_tokenizer_and_no_vocabulary(bert: Path, tmp_path: Path) -> None:
    options = replace(
        SMALL, slots=RELATIONS, score_residual=0.3, cosine_map=CosineMap(slope=4.84, center=0.72, offset=0.05)
    )
    spec = initialize(bert, CompactDecoder(layers=3, width=48, seed=7), tmp_path / "out", options)

    assert spec == validate_folder(tmp_path / "out")
    assert (spec.reranker.prompt, spec.reranker.eos_token) == (None, None)
    assert (spec.reranker.hidden_size, spec.fusion.input_scale) == (48, 3.0)
    assert {file.name for file in (tmp_path / "out/reranker").iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "out/reranker/config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["intermediate_size"]) == (3, 2, 96)
    weights = load_file(tmp_path / "out/projectors.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "p_in.weight": (48, 16),
        "score_head.weight": (48,),
    }
    assert not weights["score_head.weight"].any()


def test_a_compact_rerankers_weights_follow_from_its_seed_alone(bert: Path, tmp_path: Path) -> None:
    options = replace(SMALL, slots=RELATIONS, score_residual=0.3)
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        decoder = CompactDecoder(2, 24, seed)
        digests.append(initialize(bert, decoder, tmp_path / str(number), options).reranker.sha256)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ((2, 100), "width: .*a multiple of 24, at most 3072, got 100"),
        ((2, 3096), "width: .*got 3096"),
        ((0, 96), "layers: .*1 to 64, got 0"),
        ((10**5, 96), "layers: .*1 to 64, got 100000"),
    ],
)
def test_impossible_compact_sizes_are_named(decoder: tuple[int, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CompactDecoder(*decoder)


def test_a_compact_reranker_without_score_residual_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"reranker.prompt is null, .*fusion.score_residual above 0"):
        initialize(bert, CompactDecoder(), tmp_path / "out", replace(SMALL, slots=RELATIONS))
    assert nothing_left_behind(tmp_path / "out")


def test_the_first_layers_compute_what_they_compute_in_the_whole_decoder(
    bert: Path, llama: Path, tmp_path: Path
) -> None:
    spec = initialize(bert, llama, tmp_path / "out", replace(SMALL, layers=1))

    assert spec == validate_folder(tmp_path / "out")
    assert spec.reranker.source == "llama"
    whole, cut = (AutoModel.from_pretrained(folder) for folder in (llama, tmp_path / "out/reranker"))
    ids = torch.tensor([[5, 9, 7, 30]])
    with torch.no_grad():
        first = whole(input_ids=ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(cut(input_ids=ids).last_hidden_state, whole.norm(first))


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_decoder_does_not_have_are_refused(
    layers: int, bert: Path, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=rf"layers: llama does not have them \(limit 1 to 2, got {layers}\)"):
        initialize(bert, llama, tmp_path / "out", replace(SMALL, layers=layers))


def test_slots_with_both_start_as_their_parts_do(bert: Path, llama: Path, tmp_path: Path) -> None:
    contents = {
        name: SlotSpec(content=name, neighbors=None if name is SlotContent.VECTOR else 4) for name in SlotContent
    }
    weights = {}
    for name, slots in contents.items():
        initialize(bert, llama, tmp_path / name, replace(SMALL, slots=slots))
        weights[name] = load_file(tmp_path / name / "projectors.safetensors")
    joined = torch.cat([weights[SlotContent.VECTOR]["p_in.weight"], weights[SlotContent.RELATIONS]["p_in.weight"]], 1)
    torch.testing.assert_close(weights[SlotContent.BOTH]["p_in.weight"], joined)
    for tensors in weights.values():
        torch.testing.assert_close(tensors["p_out.weight"], weights[SlotContent.VECTOR]["p_out.weight"])


def test_a_hub_id_names_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    fetched: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: object) -> str:
        fetched.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="owner/name@COMMIT, the 40 hex digits of a revision"):
        resolve_source("owner/name")
    for revision in ("main", "0a0a0a0", ""):
        with pytest.raises(CheckpointError, match=f"'{revision}' is no revision; give owner/name@COMMIT with its 40"):
            resolve_source(f"owner/name@{revision}")
    assert resolve_source(f"owner/name@{'0a' * 20}") == tmp_path
    assert resolve_source("owner/name", digest_known=True) == tmp_path
    assert fetched == [("owner/name", "0a" * 20), ("owner/name", None)]
