from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from resrank.client import triton_calls
from resrank.core.errors import ResRankError
from resrank.core.filters import F
from resrank.core.names import Model, Tensor
from resrank.core.search import SearchOptions

SCORES = np.array([0.5, -0.25], "<f4")


def answer(name: str, datatype: str, shape: list[int], content: bytes) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(raw_output_contents=[content])
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def parse(response: service_pb2.ModelInferResponse) -> np.ndarray:
    call = triton_calls.rerank(b"query", np.ones((2, 4), np.float16), truncate=False, row_in_list=lambda row: row)
    return call.parse(response)


def test_scores_are_read() -> None:
    np.testing.assert_array_equal(parse(answer("SCORES", "FP32", [1, 2], SCORES.tobytes())), SCORES)


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (answer("SCORES", "FP32", [1, 2], b""), r"SCORES FP32 \[1, 2\] in 0 bytes"),  # as with NumPy 2 in Triton 2.51
        (answer("SCORES", "FP32", [1, 3], bytes(12)), r"SCORES FP32 \[1, 3\] in 12 bytes"),
        (answer("SCORES", "FP64", [1, 2], bytes(16)), r"SCORES FP64 \[1, 2\] in 16 bytes"),
        (answer("POINTS", "FP32", [1, 2], bytes(8)), r"POINTS FP32 \[1, 2\] in 8 bytes"),
        (service_pb2.ModelInferResponse(), "it sent: nothing"),
    ],
)
def test_another_answer_than_the_contract_s_is_a_typed_error_that_says_what_came(
    response: service_pb2.ModelInferResponse, told: str
) -> None:
    with pytest.raises(ResRankError, match=told):
        parse(response)


@pytest.mark.parametrize(
    ("model", "priority"), [(Model.EMBED_BULK, 2), (Model.EMBED_PASSAGE, 0), (Model.EMBED_QUERY, 0)]
)
def test_only_bulk_work_is_sent_at_a_lower_priority(model: Model, priority: int) -> None:
    request = triton_calls.embed(model, [b"a text"], truncate=False).build(1.0)
    assert request.model_name == model
    assert request.parameters["priority"].int64_param == priority


def test_a_server_that_knows_no_filters_is_not_believed() -> None:
    """It passes the parameter over, and would answer from all passages."""
    columns = {
        **dict.fromkeys((Tensor.IDS, Tensor.TITLES, Tensor.TEXTS), ("BYTES", [1, 0], b"")),
        **dict.fromkeys(
            (Tensor.SCORES, Tensor.CANDIDATE_SCORES, Tensor.DENSE_SCORES, Tensor.LEXICAL_SCORES, Tensor.RERANK_SCORES),
            ("FP32", [1, 0], b""),
        ),
        Tensor.CANDIDATE_RANKS: ("INT32", [1, 0], b""),
        Tensor.STAGE_MS: ("FP32", [1, 3], bytes(12)),
        Tensor.FAILURE: ("BYTES", [1, 1], bytes(4)),
    }
    response = service_pb2.ModelInferResponse()
    for name, (datatype, shape, content) in columns.items():
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(content)
    assert triton_calls.search(b"q", SearchOptions(), truncate=False).parse(response).ids == []
    for asked in (SearchOptions(filter=F("year") >= 2020), SearchOptions(collection="docs")):
        with pytest.raises(ResRankError, match="without a METADATA"):
            triton_calls.search(b"q", asked, truncate=False).parse(response)
