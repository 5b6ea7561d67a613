"""The server becomes ready only when every model has computed its warm-up requests."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .conftest import Searching

WARMED = {
    ("passage_tokenizer", "passage"),
    ("query_tokenizer", "query"),
    ("encoder", "longest_passage"),
    ("bulk_encoder", "longest_passage"),
    ("encoder", "query"),
    ("rerank_prompt", "query"),
    ("reranker", "query"),
}


def test_every_model_with_something_to_warm_is_warm_when_the_server_is_ready(searching: Searching) -> None:
    configs = [
        text_format.Parse(path.read_text(), ModelConfig()) for path in searching.repository.glob("*/config.pbtxt")
    ]
    assert {(config.name, sample.name) for config in configs for sample in config.model_warmup} == WARMED
    log = searching.log.read_text()
    for model, sample in WARMED:
        assert f"model '{model}' instance {model}_0_0 is running warmup sample '{sample}'" in log
    # An error in one of them would have ended the server before it was ready.
    assert "failed to run warmup sample" not in log
