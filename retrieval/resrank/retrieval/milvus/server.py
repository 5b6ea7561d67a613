"""The connection to a Milvus server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import ErrorCode, MilvusException

from resrank.core.addresses import join_address
from resrank.core.errors import CollectionNotFoundError, InvalidInputError, RetrievalError
from resrank.retrieval.errors import StoreUnavailableError
from resrank.retrieval.store_url import HIDDEN, StoreUrl

_PORT = 19530
_CALL_S = 10.0
_CHANGE_S = 60.0  # of collections: an index is made, and loaded on several nodes
_CONNECT_S = 5.0
_RACE_S = 2.0
_NOT_LOADED = ("not loaded", "'released'")
_DOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}

Row = dict[str, Any]


class MilvusServer:
    """Calls a server, each call with a bound on its time, and names what fails.

    Args:
        url: ``milvus://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``.

    Raises:
        InvalidInputError: That is no such URL.
        StoreUnavailableError: No server answers, or it lets nobody in.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        parts = urlsplit(url.secret)
        try:
            port = parts.port or _PORT
        except ValueError:
            raise InvalidInputError("store", f"{url} has no port from 1 to 65535") from None
        if not parts.hostname or parts.query or parts.fragment:
            raise InvalidInputError("store", f"must be milvus://USER:PASSWORD@HOST:PORT/DATABASE, not {url}")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # every error is told here
        with self._translated():
            self._client = MilvusClient(
                f"http://{join_address(parts.hostname, port)}",
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                db_name=unquote(parts.path.strip("/")),
                timeout=_CONNECT_S,
                dedicated=True,
            )

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def fields(self, collection: str) -> list[Row] | None:
        """The fields of a collection, as pymilvus describes them; None where there is no such collection."""
        try:
            found: list[Row] = self._call("describe_collection", collection)["fields"]
        except CollectionNotFoundError:
            return None
        return found

    def make(self, collection: str, schema: Any, index: Any) -> None:
        """Makes a collection, unless there is one of its name, whose fields may be others.

        Args:
            collection: Its name.
            schema: pymilvus' schema.
            index: pymilvus' index parameters.
        """
        self._make_one(
            partial(self._call, "has_collection", collection),
            partial(
                self._call,
                "create_collection",
                collection,
                schema=schema,
                consistency_level="Strong",
                timeout=_CHANGE_S,
            ),
        )
        # Also where the collection was there: whoever made it may have died before this.
        self._make_one(
            partial(self._call, "list_indexes", collection),
            partial(self._call, "create_index", collection, index, timeout=_CHANGE_S),
        )
        self._call("load_collection", collection, timeout=_CHANGE_S)

    def drop(self, collection: str) -> None:
        """Removes a collection with all it holds; nothing where there is none."""
        if self._call("has_collection", collection):
            self._call("drop_collection", collection, timeout=_CHANGE_S)

    def search(
        self, collection: str, field: str, vector: Sequence[float], limit: int, condition: str, fields: list[str]
    ) -> list[Row]:
        """The nearest rows by the cosine of a field, each with some fields."""
        (hits,) = self._call(
            "search",
            collection,
            data=[vector],
            anns_field=field,
            limit=limit,
            filter=condition,
            output_fields=fields,
            search_params={"metric_type": "COSINE", "params": {"ef": max(limit, 64)}},
            consistency_level="Strong",
        )
        return [{**hit["entity"]} for hit in hits]

    def rows(self, collection: str, condition: str, fields: list[str], limit: int) -> list[Row]:
        """Rows that meet a condition, in the order of their primary keys."""
        return list(
            self._call(
                "query",
                collection,
                filter=condition,
                output_fields=fields,
                limit=limit,
                iterator="True",
                consistency_level="Strong",
            )
        )

    def count(self, collection: str, condition: str = "") -> int:
        """How many rows meet a condition."""
        (row,) = self._call(
            "query", collection, filter=condition, output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(row["count(*)"])

    def upsert(self, collection: str, rows: list[Row]) -> None:
        """Stores rows, each by itself, replacing those of the same primary key."""
        self._call("upsert", collection, rows)

    def delete(self, collection: str, condition: str) -> None:
        """Removes the rows that meet a condition on their primary key."""
        self._call("delete", collection, filter=condition)

    def _make_one(self, there: Callable[[], Any], make: Callable[[], Any]) -> None:
        if there():
            return
        try:
            make()
        except RetrievalError:
            # Perhaps another sidecar is faster, and not yet done.
            until = time.monotonic() + _RACE_S
            while not there():
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _call(self, method: str, collection: str, *arguments: Any, timeout: float = _CALL_S, **options: Any) -> Any:
        work = partial(getattr(self._client, method), collection, *arguments, timeout=timeout, **options)
        with self._translated():
            try:
                return work()
            except MilvusException as error:
                if not any(words in str(error.message) for words in _NOT_LOADED):
                    raise
                # The server was started anew, or somebody released the collection.
                self._client.load_collection(collection, timeout=_CHANGE_S)
                return work()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MilvusException as error:
            words = " ".join(str(error.message).split())
            password = self.url.password
            words = words.replace(password, HIDDEN) if password else words
            if error.code == ErrorCode.COLLECTION_NOT_FOUND or "collection not found" in words:
                raise CollectionNotFoundError("the collection was dropped meanwhile") from error
            if error.code in _DOWN or "connect" in words:
                raise StoreUnavailableError(
                    f"the store {self.url} does not answer: check that its server runs ({words})"
                ) from error
            raise RetrievalError(f"the store {self.url} failed: {words}") from error
        except grpc.RpcError as error:
            raise StoreUnavailableError(f"the store {self.url} does not answer: {error.details()}") from error


def quoted(text: str) -> str:
    """A string in Milvus' language of filters."""
    # Not as JSON: not every server reads its \\u, and all take other control characters as they are.
    for sign, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r")):
        text = text.replace(sign, escaped)
    return f'"{text}"'
