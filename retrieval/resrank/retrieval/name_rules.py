"""What may become of a catalog's names: one rule and one sentence for each, whatever keeps the names."""

from __future__ import annotations

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    QuotaExceededError,
)
from resrank.core.sidecar.words import COLLECTION_NOT_FOUND, QUOTA_EXCEEDED
from resrank.retrieval.catalog import Alias
from resrank.retrieval.errors import CollectionExistsError, CollectionInUseError


def not_found(name: str) -> CollectionNotFoundError:
    """The error for a name that is no collection's and no alias's."""
    return CollectionNotFoundError(f"{COLLECTION_NOT_FOUND} and no alias {name!r}")


def refuse_taken(name: str, *, is_collection: bool, is_alias: bool) -> None:
    """Refuses a new collection of a name that is taken."""
    if is_collection:
        raise CollectionExistsError(f"there is a collection {name!r} already: drop it, or choose another name")
    if is_alias:
        raise CollectionExistsError(f"there is an alias {name!r} already: choose another name")


def refuse_more(what: str, limit: int, count: int) -> None:
    """Refuses one more of what there are so many of."""
    if count >= limit:
        raise QuotaExceededError(f"{QUOTA_EXCEEDED}: too many {what} (limit {limit}, got {count + 1}); remove some")


def refuse_no_collection(name: str, *, is_alias: bool) -> None:
    """Refuses to drop what no request may drop, whether or not it is there."""
    if name == DEFAULT_COLLECTION:
        raise CollectionInUseError(f"the collection {name!r} always exists: delete its records instead")
    if is_alias:
        raise CollectionInUseError(f"{name!r} is an alias: delete the alias, or drop the collection it names")


def refuse_named(name: str, alias: str | None) -> None:
    """Refuses to drop a collection that an alias names."""
    if alias is not None:
        raise CollectionInUseError(
            f"the alias {alias!r} names the collection {name!r}: point it elsewhere or delete it first"
        )


def refuse_alias(alias: Alias, *, is_collection: bool, onto_alias: bool) -> None:
    """Refuses an alias of a collection's name, or onto an alias."""
    if is_collection:
        raise CollectionExistsError(f"{alias.name!r} is a collection: give the alias another name")
    if alias.collection == alias.name or onto_alias:
        raise InvalidInputError("alias.collection", f"{alias.collection!r} is an alias itself: name a collection")


def require_alias_encoder(alias: Alias, collection: str | None, triton: str | None) -> None:
    """Refuses an alias whose collection and Triton have different encoders, as far as both are known."""
    if triton is not None and collection is not None and collection != triton:
        raise EncoderMismatchError(
            f"the collection {alias.collection!r} belongs to encoder {collection}, "
            f"{alias.triton or 'the Triton named'} serves encoder {triton}: the alias stays as it was"
        )
