"""Errors of the sidecar beyond the shared tree in :mod:`resrank.core.errors`."""

from resrank.core.errors import RetrievalError


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
