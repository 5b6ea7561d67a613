from __future__ import annotations

import pytest
from hypothesis import given

from resrank.core.errors import InvalidInputError
from resrank.core.filters import Filter
from resrank.core.metadata import MetadataValue
from resrank.core.sidecar.filter_messages import filter_message, read_filter
from resrank.core.sidecar.metadata_messages import metadata_message, read_metadata, record_metadata, set_metadata
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from support.metadata_strategies import filters, metadata


@given(filters)
def test_a_filter_survives_the_wire(condition: Filter) -> None:
    assert read_filter(pb.Filter.FromString(filter_message(condition).SerializeToString())) == condition


@given(metadata)
def test_metadata_survives_the_wire(given_: dict[str, MetadataValue]) -> None:
    record = pb.Record(id="a")
    set_metadata(record, given_)
    assert set(record.metadata) == {name for name, value in given_.items() if isinstance(value, str)}
    assert record_metadata("records[0]", pb.Record.FromString(record.SerializeToString())) == given_
    assert read_metadata(pb.Metadata.FromString(metadata_message(given_).SerializeToString())) == given_


def test_strings_may_stand_in_either_place() -> None:
    record = pb.Record(id="a", metadata={"x": "1"}, values={"y": pb.Value(string="2")})
    assert record_metadata("records[0]", record) == {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (
            pb.Record(id="a", metadata={"x": "1"}, values={"x": pb.Value(number=2)}),
            "records[4]: 'x' of id 'a' stands in metadata and in values",
        ),
        (pb.Record(id="a", values={"x": pb.Value()}), "records[4]: metadata 'x' has no value"),
        (
            pb.Record(id="a", values={"x": pb.Value(number=float("inf"))}),
            "records[4]: metadata 'x' is not finite",
        ),
    ],
)
def test_metadata_that_is_none_is_refused(record: pb.Record, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        record_metadata("records[4]", record)
    assert str(caught.value) == sentence


def compared(operator: pb.Operator.ValueType, *values: pb.Value) -> pb.Filter:
    return pb.Filter(comparison=pb.Comparison(field="x", operator=operator, values=values))


EXISTS = compared(pb.OPERATOR_EXISTS)


def negated(levels: int) -> pb.Filter:
    message = pb.Filter()
    message.CopyFrom(EXISTS)
    for _ in range(levels):
        message = pb.Filter(negated=message)
    return message


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (pb.Filter(), "filter: holds neither comparison, all_of, any_of nor negated"),
        (pb.Filter(negated=pb.Filter()), "filter: holds neither"),
        (pb.Filter(all_of=pb.Filters()), "filter: all_of joins no conditions"),
        (compared(pb.OPERATOR_UNSPECIFIED), "filter: the comparison of 'x' names no operator (limit 1 to 8, got 0)"),
        (compared(99), "filter: the comparison of 'x' names no operator (limit 1 to 8, got 99)"),  # type: ignore[arg-type]
        (compared(pb.OPERATOR_EQ), "filter: x =: too few or too many values (limit 1, got 0)"),
        (compared(pb.OPERATOR_EQ, pb.Value()), "filter: metadata 'x' has no value"),
        (
            compared(pb.OPERATOR_EQ, pb.Value(strings=pb.StringList(values=["a"]))),
            'filter: x = ["a"]: compare with a string, a number or a bool; the value is a list',
        ),
        (negated(32), "filter: nested too deeply, in levels (limit 32, got 33)"),
        (pb.Filter(any_of=pb.Filters(filters=[EXISTS] * 5000)), "filter: too many conditions (limit 256, got 5000)"),
        (
            compared(pb.OPERATOR_IN, *[pb.Value(number=number) for number in range(100_000)]),
            "filter: too many values (limit 1000, got 100000)",
        ),
    ],
)
def test_a_filter_that_cannot_be_is_refused(message: pb.Filter, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_filter(message)
    assert str(caught.value).startswith(sentence)
