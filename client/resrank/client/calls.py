"""One request to one server, described apart from how it is sent, so that threads and asyncio share the description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from resrank.core.errors import Place
from resrank.core.fail_open import NOTHING, Reserve

T = TypeVar("T")


class Server(StrEnum):
    """The two servers a client speaks to, as messages name them."""

    TRITON = "Triton"
    RETRIEVAL = "the retrieval sidecar"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unary request that is built when it is sent and whose answer is parsed when it comes.

    Attributes:
        server: Who is asked.
        method: The method's name in the server's stub.
        subject: What is asked, for messages: ``model 'rerank'``.
        build: Makes the protobuf request, given the seconds that are left for it.
        parse: Reads the protobuf response.
        locate: Turns the server's place of an error into the caller's, ``CANDIDATES[3]`` of the second block into
            ``CANDIDATES[103]``; None where they are the same.
        reserve: What of the client's call's whole time must be left when this request ends.
        address: Of another server of this kind than the client's own, where an alias names one; else empty.
    """

    server: Server
    method: str
    subject: str
    build: Callable[[float], Any]
    parse: Callable[[Any], T]
    locate: Callable[[Place], Place] | None = None
    reserve: Reserve = NOTHING
    address: str = ""
