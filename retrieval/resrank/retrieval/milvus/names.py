"""What the store's collections are called in Milvus, and what holds their names: one more collection."""

from __future__ import annotations

import json
import re
from typing import Any

from pymilvus import DataType, MilvusClient

from resrank.retrieval.milvus.server import MilvusServer, Row, quoted

_CATALOG = "resrank_catalog"
_MOST = 16_384  # rows in one answer of Milvus

COLLECTION = "collection"
ALIAS = "alias"
FIELD = "field"


def milvus_name(collection: str) -> str:
    """The name of a collection in Milvus, which takes letters, digits and underscores."""
    return "resrank_c_" + re.sub("[^a-z0-9]", lambda sign: f"_{ord(sign[0]):02x}", collection)


class Names:
    """Facts by kind and name, each a row that is replaced as a whole.

    Args:
        server: Where they are.
    """

    def __init__(self, server: MilvusServer) -> None:
        self._server = server
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=1024)
        schema.add_field("kind", DataType.VARCHAR, max_length=16)
        schema.add_field("facts", DataType.JSON)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="L2")
        server.make(_CATALOG, schema, index)

    def read(self, kind: str, *name: str) -> dict[str, Any] | None:
        """The facts of a name; None where there are none."""
        rows = self._server.rows(_CATALOG, f"name == {quoted(_key(kind, *name))}", ["facts"], 1)
        return _facts(rows[0]) if rows else None

    def all(self, kind: str, *beginning: str) -> dict[str, dict[str, Any]]:
        """The facts of all names of a kind that begin alike, by what follows."""
        start = _key(kind, *beginning, "")
        rows = self._server.rows(_CATALOG, f"kind == {quoted(kind)}", ["name", "facts"], _MOST)
        return {row["name"].removeprefix(start): _facts(row) for row in rows if row["name"].startswith(start)}

    def write(self, facts: dict[str, Any], kind: str, *name: str) -> None:
        """Sets the facts of a name."""
        row = {"name": _key(kind, *name), "kind": kind, "facts": facts, "vector": [0.0, 0.0]}
        self._server.upsert(_CATALOG, [row])

    def delete(self, kind: str, *name: str) -> None:
        """Removes a name."""
        self._server.delete(_CATALOG, f"name in [{quoted(_key(kind, *name))}]")


def _key(*parts: str) -> str:
    return "/".join(parts)


def _facts(row: Row) -> dict[str, Any]:
    found = row["facts"]
    facts: dict[str, Any] = json.loads(found) if isinstance(found, str | bytes) else dict(found)
    return facts
