"""A retrieval sidecar that runs, whoever started it."""

from __future__ import annotations

import grpc

from resrank.core.addresses import NO_PROXY, check_target, is_local
from resrank.core.errors import InvalidInputError, ServerUnavailableError, StackError
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.core.sidecar.v1 import retrieval_pb2, retrieval_pb2_grpc

_FIELD = "retrieval_url"
_ASKING_S = 30.0


class RunningSidecar:
    """Asks a sidecar that others look after.

    Args:
        target: ``host:port`` of its port, or ``unix:PATH`` of its socket, on this machine.
    """

    def __init__(self, target: str) -> None:
        self.local_target = target

    @classmethod
    def joined(cls, target: str) -> RunningSidecar:
        """One that a second Triton is to be served beside.

        Raises:
            InvalidInputError: That is no address, or leads to another machine.
        """
        check_target(_FIELD, target)
        if not is_local(target):
            raise InvalidInputError(
                _FIELD,
                f"{target} is on another machine: Triton asks its sidecar in plain text, by loopback or unix:PATH",
            )
        return cls(target)

    @property
    def address(self) -> str:
        """Where it is asked."""
        return self.local_target

    def is_ready(self) -> bool:
        """Whether its health service says ``SERVING``."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        with grpc.insecure_channel(self.local_target, NO_PROXY) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:  # not listening yet
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def encoders(self) -> dict[str, str]:
        """The encoder that each collection belongs to, by name; empty for one that holds nothing.

        Raises:
            ServerUnavailableError: No sidecar answers.
            StackError: It does not say.
        """
        with grpc.insecure_channel(self.local_target, NO_PROXY) as channel:
            try:
                answer = retrieval_pb2_grpc.RetrievalServiceStub(channel).ListCollections(
                    retrieval_pb2.ListCollectionsRequest(), timeout=_ASKING_S
                )
            except grpc.RpcError as error:
                raise self._typed(error) from error
        return {one.name: one.encoder_sha256 for one in answer.collections}

    def require_place_for(self, encoder_sha256: str) -> None:
        """Refuses a Triton none of whose vectors the sidecar has, or could come to have.

        Raises:
            ServerUnavailableError: No sidecar answers.
            StackError: All of its collections belong to other encoders, or it does not say.
        """
        encoders = self.encoders()
        if not {encoder_sha256, ""} & set(encoders.values()):
            other = encoder_mismatch(next(iter(encoders.values())), encoder_sha256)
            raise StackError(
                f"the sidecar at {self.local_target}: {other}, or make an empty collection first: "
                "resrank collection create NAME"
            )

    def _typed(self, error: grpc.RpcError) -> ServerUnavailableError | StackError:
        match error.code():
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
                return ServerUnavailableError(
                    f"no retrieval sidecar answers at {self.local_target}: start it, or give its socket, unix:PATH, "
                    "where its port wants TLS"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return StackError(f"what answers at {self.local_target} is no retrieval sidecar: check the address")
            case grpc.StatusCode.UNAUTHENTICATED:
                return StackError(
                    f"the retrieval sidecar at {self.local_target} wants a key: give its socket, unix:PATH, which "
                    "wants none"
                )
        return StackError(f"the retrieval sidecar does not say what its index holds: {error.details()}")
