"""How a gateway is set up: a file, variables of the environment and options, the later before the earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, PositiveInt, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from resrank.client.settings import DEFAULT_TRITON_ADDRESS, TlsConfig
from resrank.core.addresses import check_target
from resrank.core.config_file import read_fields, sentence
from resrank.core.fail_open import OnFailure
from resrank.core.limits import MAX_LIST_CANDIDATES, MAX_MESSAGE_RECORDS
from resrank.core.logs import LogFormat, LogLevel
from resrank.core.server_tls import ServerTls, require_protection, server_tls

PREFIX = "RESRANK_GATEWAY_"
LOG_FORMAT_VARIABLE = "RESRANK_LOG_FORMAT"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the file where no option does."""

DEFAULT_PORT = 8080
DEFAULT_MODEL = "resrank"
ANY_MODEL = "*"
MIB = 1024 * 1024


def _names(given: Any) -> Any:
    """Names as a variable has them, with commas between."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


class GatewaySettings(BaseSettings):
    """Settings of one gateway. Each has a variable of its name after ``RESRANK_GATEWAY_``, and a field in the file.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        triton: ``host:port`` of Triton's gRPC endpoint.
        retrieval: The same of the retrieval sidecar; without it there is no reranking by ``document_ids``.
        upstream_tls_ca: Authorities that Triton's and the sidecar's certificates are checked against, a PEM file. A
            sidecar that is reached by a Unix domain socket is spoken to in plain text.
        upstream_tls_certificate: What the gateway shows to both, for mutual TLS; needs ``upstream_tls_key``.
        upstream_tls_key: Its private key.
        upstream_bearer_key_file: File with the key that the sidecar wants.
        models: Names under which ``model`` of a request finds this reranker; ``*`` for any.
        on_failure: What to do where the models are down, full or late, unless the request says otherwise.
        timeout_s: Seconds that a request may take behind the gateway.
        search_route: Who does the steps of a search: Triton's ``search`` model, or this gateway (``client``), which
            then needs ``retrieval``.
        max_body_bytes: Largest body; of a longer one no more is read than tells its length.
        max_documents: Documents or ids in one request.
        max_inputs: Texts in one request for embeddings.
        max_in_flight: Requests admitted at once; the next one is answered 429.
        body_timeout_s: Seconds in which a body must have come.
        keys: File of API keys, as ``resrank gateway key`` writes it; None lets everybody in.
        tls_certificate: The port's certificate, a PEM file.
        tls_key: Its private key.
        tls_client_ca: Authorities of callers' certificates; callers then need one (mutual TLS).
        insecure: Whether it may listen beyond loopback without TLS or to callers without a key or certificate.
        drain_s: Seconds that requests under way get at a stop.
        log_level: The least that is told.
        log_format: Lines for people, or one JSON object a line; also by ``RESRANK_LOG_FORMAT``, which the sidecar
            reads, too.

    Raises:
        ValidationError: A value is wrong, or two contradict each other.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_by_name=True, loc_by_alias=False
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    triton: str = DEFAULT_TRITON_ADDRESS
    retrieval: str | None = None
    upstream_tls_ca: Path | None = None
    upstream_tls_certificate: Path | None = None
    upstream_tls_key: Path | None = None
    upstream_bearer_key_file: Path | None = None
    models: Annotated[tuple[str, ...], Field(min_length=1), NoDecode, BeforeValidator(_names)] = (DEFAULT_MODEL,)
    on_failure: OnFailure = OnFailure.ERROR
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 10.0
    search_route: Literal["client", "server"] = "server"
    max_body_bytes: Annotated[int, Field(ge=1024, le=256 * MIB)] = 16 * MIB
    max_documents: Annotated[int, Field(ge=1, le=MAX_LIST_CANDIDATES)] = MAX_MESSAGE_RECORDS
    max_inputs: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_in_flight: PositiveInt = 128
    body_timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30.0
    keys: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    drain_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 20.0
    log_level: LogLevel = LogLevel.INFO
    log_format: Annotated[
        LogFormat, Field(validation_alias=AliasChoices(f"{PREFIX}LOG_FORMAT", LOG_FORMAT_VARIABLE))
    ] = LogFormat.TEXT

    @model_validator(mode="after")
    def _agree(self) -> Self:
        tls, _ = self.tls, self.upstream_tls  # which say what is wrong with their files
        require_protection(
            self.host,
            encrypted=tls is not None,
            authenticated=self.keys is not None or (tls is not None and tls.client_ca is not None),
            remedy="give --tls-certificate and --tls-key, and --keys or the setting tls_client_ca",
            insecure=self.insecure,
        )
        check_target("triton", self.triton)
        if self.retrieval is not None:
            check_target("retrieval", self.retrieval)
        if self.search_route == "client" and self.retrieval is None:
            raise ValueError("search_route: 'client' needs the sidecar's address, retrieval")
        return self

    @property
    def tls(self) -> ServerTls | None:
        """The port's certificates, read and checked; None for plain text."""
        return server_tls(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def upstream_tls(self) -> TlsConfig | None:
        """How Triton and the sidecar are spoken to; None for plain text."""
        files = (self.upstream_tls_ca, self.upstream_tls_certificate, self.upstream_tls_key)
        return None if files == (None, None, None) else TlsConfig(*files)

    def serves(self, model: str | None) -> bool:
        """Whether a request's ``model`` is this one; who names none means it."""
        return model is None or model in self.models or ANY_MODEL in self.models


def read_settings(file: Path | None = None, **given: Any) -> GatewaySettings:
    """Reads a gateway's settings.

    Args:
        file: YAML with fields of :class:`GatewaySettings`; None for none.
        **given: What goes before the environment, which goes before the file.

    Raises:
        InvalidInputError: The file cannot be read, or a setting is unknown, wrong, or contradicts another.
    """
    fields = {} if file is None else read_fields(file)

    class Read(GatewaySettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=fields)

    try:
        return Read(**given)
    except ValidationError as error:
        raise sentence(error, GatewaySettings) from None
