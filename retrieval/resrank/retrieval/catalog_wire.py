"""The proto boundary of collections, aliases and backups, as :mod:`resrank.retrieval.wire` is that of records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from resrank.core.addresses import check_target
from resrank.core.collection_names import check_collection_name, collection_name
from resrank.core.errors import InvalidInputError
from resrank.core.limits import LARGEST_QUOTA
from resrank.core.sidecar.metadata_messages import set_metadata
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.retrieval.catalog import Alias, CollectionInfo
from resrank.retrieval.quota import Quota
from resrank.retrieval.records import Encoder, RecordBatch

_PART_BYTES = 2 * 1024 * 1024
"""Of records in one message; gRPC's clients take messages of 4 MiB unless they are told otherwise."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_collection(name: str) -> str:
    """Reads whose records a request is about; ``default`` where it does not say.

    Raises:
        InvalidInputError: It can be no name.
    """
    return collection_name("collection", name)


def parse_new_collection(request: pb.CreateCollectionRequest) -> tuple[str, Quota]:
    """Reads name and quota of a collection to be made.

    Raises:
        InvalidInputError: One of them breaks its rule.
    """
    for unit in ("records", "bytes"):
        if (value := getattr(request.quota, unit)) > LARGEST_QUOTA:
            raise InvalidInputError(f"quota.{unit}", "too large", limit=LARGEST_QUOTA, value=value)
    return (
        check_collection_name("collection", request.collection),
        Quota(records=request.quota.records, bytes=request.quota.bytes),
    )


def parse_alias(request: pb.SetAliasRequest) -> tuple[Alias, str | None]:
    """Reads an alias and the encoder that it is meant for.

    Raises:
        InvalidInputError: A name, the address or the digest is none.
    """
    alias = Alias(
        name=check_collection_name("alias.name", request.alias.name),
        collection=check_collection_name("alias.collection", request.alias.collection),
        triton=check_target("alias.triton", request.alias.triton) if request.alias.triton else "",
    )
    sha256 = request.encoder_sha256
    if sha256 and not _SHA256.fullmatch(sha256):
        raise InvalidInputError("encoder_sha256", f"must be 64 lowercase hex digits, not {sha256[:80]!r}")
    return alias, sha256 or None


def collection_message(info: CollectionInfo) -> pb.Collection:
    """Writes a collection."""
    usage = info.usage
    return pb.Collection(
        name=info.name,
        encoder_sha256="" if usage.encoder is None else usage.encoder.sha256,
        dimension=0 if usage.encoder is None else usage.encoder.dimension,
        record_count=usage.record_count,
        bytes=usage.bytes,
        quota=pb.Quota(records=usage.quota.records, bytes=usage.quota.bytes),
    )


def alias_message(alias: Alias) -> pb.Alias:
    """Writes an alias."""
    return pb.Alias(name=alias.name, collection=alias.collection, triton=alias.triton)


def first_part(encoder: Encoder | None) -> pb.BackupPart:
    """Writes the beginning of a backup."""
    if encoder is None:
        return pb.BackupPart()
    return pb.BackupPart(encoder_sha256=encoder.sha256, dimension=encoder.dimension)


def records_parts(batch: RecordBatch) -> Iterator[pb.BackupPart]:
    """Writes records of a backup, as Upsert takes them, in messages that every gRPC client reads."""
    part = pb.BackupPart()
    size = 0
    for record, vector in zip(batch.records, batch.vectors.astype("<f2", copy=False), strict=True):
        message = pb.Record(id=record.id, title=record.title, text=record.text, embedding=vector.tobytes())
        set_metadata(message, record.metadata)
        if size and size + message.ByteSize() > _PART_BYTES:
            yield part
            part, size = pb.BackupPart(), 0
        part.records.append(message)
        size += message.ByteSize()
    yield part
