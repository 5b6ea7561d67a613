"""Metadata as the sidecar's messages have it: the same for client and server."""

from __future__ import annotations

from resrank.core.errors import InvalidInputError, Place
from resrank.core.metadata import Metadata, MetadataValue, metadata_value
from resrank.core.sidecar.v1 import retrieval_pb2 as pb


def value_message(value: MetadataValue) -> pb.Value:
    """A value as a message."""
    if isinstance(value, str):
        return pb.Value(string=value)
    if isinstance(value, bool):
        return pb.Value(bool=value)
    if isinstance(value, tuple):
        return pb.Value(strings=pb.StringList(values=value))
    return pb.Value(number=value)


def read_value(place: Place | str, name: str, message: pb.Value) -> MetadataValue:
    """A message's value.

    Args:
        place: What errors call whose value it is.
        name: Of the field, for errors.
        message: The message.

    Raises:
        InvalidInputError: It has none, or a number that is not finite.
    """
    match message.WhichOneof("kind"):
        case "string":
            return message.string
        case "bool":
            return message.bool
        case "strings":
            return tuple(message.strings.values)
        case "number":
            return metadata_value(place, name, message.number)
    raise InvalidInputError(place, f"metadata {name!r} has no value")


def set_metadata(record: pb.Record, metadata: Metadata) -> None:
    """Gives a record its metadata: strings where they always stood, the others among ``values``."""
    for name, value in metadata.items():
        if isinstance(value, str):
            record.metadata[name] = value
        else:
            record.values[name].CopyFrom(value_message(value))


def record_metadata(place: Place | str, record: pb.Record) -> dict[str, MetadataValue]:
    """A record's metadata.

    Args:
        place: What errors call the record.
        record: The message.

    Raises:
        InvalidInputError: A name stands there twice, or its value is none.
    """
    metadata: dict[str, MetadataValue] = dict(record.metadata)
    for name, message in record.values.items():
        if name in metadata:
            raise InvalidInputError(place, f"{name!r} of id {record.id!r} stands in metadata and in values")
        metadata[name] = read_value(place, name, message)
    return metadata


def metadata_message(metadata: Metadata) -> pb.Metadata:
    """Metadata as a search returns it."""
    return pb.Metadata(values={name: value_message(value) for name, value in metadata.items()})


def read_metadata(message: pb.Metadata) -> dict[str, MetadataValue]:
    """Metadata that a search returned.

    Raises:
        InvalidInputError: A value is none.
    """
    return {name: read_value("metadata", name, value) for name, value in message.values.items()}
