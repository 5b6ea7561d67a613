"""Programs built with an earlier version of the proto keep working: what is in the contract never changes its meaning.

The contract file lists every field, enum value and method that was ever released. Additions are free; append them with
``python tests/unit/retrieval/test_proto_compatibility.py``, which refuses to drop or change what stands there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FileDescriptor

from resrank.core.sidecar.v1 import retrieval_pb2

CONTRACT = Path(__file__).with_name("retrieval_v1_contract.json")


def described(file: FileDescriptor) -> dict[str, str]:
    """Every name of the wire format with what must stay the same about it."""
    entries: dict[str, str] = {}
    for message in file.message_types_by_name.values():
        entries |= _fields(message)
    for enum in file.enum_types_by_name.values():
        entries |= {f"{enum.full_name}.{value.name}": f"= {value.number}" for value in enum.values}
    for service in file.services_by_name.values():
        for method in service.methods:
            streams = "stream " if method.client_streaming else "", "stream " if method.server_streaming else ""
            entries[f"{service.full_name}/{method.name}"] = (
                f"({streams[0]}{method.input_type.full_name}) -> {streams[1]}{method.output_type.full_name}"
            )
    return entries


def _fields(message: Descriptor) -> dict[str, str]:
    entries: dict[str, str] = {}
    for field in message.fields:
        kind = field.message_type or field.enum_type
        name = kind.full_name if kind else f"scalar {field.type}"
        entries[f"{message.full_name}.{field.name}"] = f"= {field.number}, {name}, repeated={field.is_repeated}"
    for nested in message.nested_types:
        entries |= _fields(nested)
    return entries


def breaks(contract: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    return {name: f"was {was}, is {now.get(name, 'gone')}" for name, was in contract.items() if now.get(name) != was}


def test_nothing_released_has_changed() -> None:
    contract = json.loads(CONTRACT.read_text(encoding="utf-8"))
    assert len(contract) > 40
    assert not breaks(contract, described(retrieval_pb2.DESCRIPTOR))


def test_everything_is_in_the_contract() -> None:
    assert sorted(described(retrieval_pb2.DESCRIPTOR)) == sorted(json.loads(CONTRACT.read_text(encoding="utf-8")))


def test_a_changed_number_and_a_removed_field_are_found() -> None:
    contract = described(retrieval_pb2.DESCRIPTOR)
    now = dict(contract)
    now["resrank.retrieval.v1.SearchRequest.k"] = now["resrank.retrieval.v1.SearchRequest.k"].replace("= 2", "= 9")
    del now["resrank.retrieval.v1.Record.title"]
    assert set(breaks(contract, now)) == {
        "resrank.retrieval.v1.SearchRequest.k",
        "resrank.retrieval.v1.Record.title",
    }


if __name__ == "__main__":
    current = described(retrieval_pb2.DESCRIPTOR)
    if CONTRACT.exists() and (broken := breaks(json.loads(CONTRACT.read_text(encoding="utf-8")), current)):
        sys.exit(f"not appended, since released names changed: {broken}")
    CONTRACT.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n", encoding="utf-8")
