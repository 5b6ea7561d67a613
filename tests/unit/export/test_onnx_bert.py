"""A BERT that comes as an ONNX graph is the same model afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from resrank.core.checkpoint import Pooling
from resrank.core.errors import CheckpointError
from resrank.export.backbone_files import load_backbone
from resrank.export.initialize import InitOptions, initialize
from resrank.export.onnx_bert import convert_onnx_bert
from support.tiny_checkpoint import make_bert, make_llama

# torch's exporter meets its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PROMPTS = {"query": "query: ", "passage": "passage: "}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BertConfig]:
    """A graph, the folder of a tokenizer for it, and its config."""
    folder = tmp_path_factory.mktemp("onnx")
    make_bert(folder / "bert", 32)
    config = BertConfig.from_pretrained(folder / "bert")
    model = BertModel.from_pretrained(folder / "bert", add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # all alike, they would be one constant of the graph
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.ones(1, 7, dtype=torch.int64)
    program = torch.onnx.export(
        model, (ids, ids), dynamo=True, verbose=False, input_names=["input_ids", "attention_mask"],
        dynamic_shapes=({1: torch.export.Dim.DYNAMIC}, {1: torch.export.Dim.DYNAMIC}),
    )  # fmt: skip
    assert program is not None
    program.optimize()
    program.save(folder / "graph.onnx")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "graph.onnx", folder / "bert", config


def converted(graph: tuple[Path, Path, BertConfig], out: Path) -> Path:
    file, tokenizer, config = graph
    out.mkdir()
    convert_onnx_bert(file, config.to_dict(), tokenizer, PROMPTS, out)
    return out


def test_weights_are_those_that_the_graph_was_made_of(graph: tuple[Path, Path, BertConfig], tmp_path: Path) -> None:
    """To the bit, the transposed and folded ones too."""
    found = load_backbone(converted(graph, tmp_path / "model")).state_dict()
    expected = torch.load(graph[0].with_name("weights.pt"))
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


def test_a_checkpoint_of_it_pools_by_the_mean_and_knows_its_prompts(
    graph: tuple[Path, Path, BertConfig], tmp_path: Path
) -> None:
    make_llama(tmp_path / "llama", 48)
    spec = initialize(
        converted(graph, tmp_path / "model"), tmp_path / "llama", tmp_path / "out", InitOptions(max_query_tokens=16)
    )
    assert spec.encoder.pooling is Pooling.MEAN
    assert (spec.encoder.query_instruction, spec.encoder.passage_instruction) == ("query: ", "passage: ")


def test_another_graph_or_vocabulary_is_refused(graph: tuple[Path, Path, BertConfig], tmp_path: Path) -> None:
    file, tokenizer, config = graph
    (tmp_path / "no.onnx").write_bytes(b"not a graph")
    for number, (path, fields, problem) in enumerate(
        (
            (tmp_path / "no.onnx", {}, "not a readable ONNX graph"),
            (file, {"num_hidden_layers": config.num_hidden_layers + 1}, "not the expected BERT: lacks"),
        )
    ):
        (out := tmp_path / str(number)).mkdir()
        with pytest.raises(CheckpointError, match=problem):
            convert_onnx_bert(path, {**config.to_dict(), **fields}, tokenizer, PROMPTS, out)
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    fields = json.loads((tokenizer / "tokenizer.json").read_text())
    fields["model"]["vocab"]["another"] = config.vocab_size
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "words").mkdir()
    with pytest.raises(CheckpointError, match=f"has {config.vocab_size + 1} words, but the model {config.vocab_size}"):
        convert_onnx_bert(file, config.to_dict(), tmp_path / "tokenizer", PROMPTS, tmp_path / "words")
