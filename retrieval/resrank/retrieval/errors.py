"""Errors of the sidecar beyond the shared tree in :mod:`resrank.core.errors`."""

from __future__ import annotations

from resrank.core.errors import InvalidInputError, Place, RetrievalError
from resrank.core.metadata import FieldType


class StoreWriteError(RetrievalError):
    """The disk refused a write: full, read-only or failing (gRPC ``FAILED_PRECONDITION``).

    Nothing of the batch is stored; everything acknowledged before stays readable.
    """


class CollectionExistsError(RetrievalError):
    """A collection or an alias has the name already (gRPC ``ALREADY_EXISTS``)."""


class CollectionInUseError(RetrievalError):
    """A collection cannot be dropped: an alias names it, or it is the default one (gRPC ``FAILED_PRECONDITION``)."""


class StoreUnavailableError(RetrievalError):
    """The server behind the store does not answer, or went away (gRPC ``UNAVAILABLE``).

    The same call may succeed later. What it was asked to store may be stored: storing it again does no harm.
    """

    retryable = True


class SlowReaderError(RetrievalError):
    """Whoever asked for a backup reads none of it (gRPC ``DEADLINE_EXCEEDED``)."""


def other_type(place: int, id_: str, name: str, given: FieldType, kept: FieldType) -> InvalidInputError:
    """The error for a field that has another type in the records that have it.

    Args:
        place: Of the record in its batch.
        id_: Its id.
        name: The field.
        given: The type that the record has.
        kept: The others'.
    """
    return InvalidInputError(
        Place("records", (place,)),
        f"metadata {name!r} of id {id_!r} is of type {given.value}, and of type {kept.value} in records that have it "
        "already: a field has one type, remove those records first or build another index",
    )
