"""Requests about a name that may be an alias, which stands for a collection and the Triton to ask together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from resrank.client import plans, retrieval_calls
from resrank.client.facts import FactsCache
from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    ModelNotReadyError,
    ServerUnavailableError,
)

T = TypeVar("T")

_MOVED = (EncoderMismatchError, CollectionNotFoundError, ServerUnavailableError, ModelNotReadyError)
"""What a request meets that was begun before an alias moved: what it stood for may be gone by then."""


@dataclass(frozen=True)
class Target:
    """What a name stands for at one moment.

    Attributes:
        collection: Its own name; empty for the default one.
        triton: ``host:port`` of the Triton whose checkpoint belongs to it; empty for the client's own.
    """

    collection: str
    triton: str = ""


def at_target(
    facts_of: Callable[[str], FactsCache],
    name: str,
    plan_for: Callable[[FactsCache, Target], plans.Plan[T]],
    *,
    has_sidecar: bool,
) -> plans.Plan[T]:
    """Runs a plan on what a name stands for, so that all of it is of one collection and one checkpoint.

    The name is resolved once, and once more where the plan fails as it does in the middle of a swap.

    Args:
        facts_of: What is known of the models of the Triton at an address.
        name: A collection's, or an alias's; empty for the default collection, which needs no resolving.
        plan_for: Makes the plan, whose requests to Triton go where the alias says.
        has_sidecar: Whether there is a sidecar to ask; without one the name goes to Triton's ``search`` as it is.
    """

    def run(target: Target) -> plans.Plan[T]:
        return plans.sent_to(target.triton, plan_for(facts_of(target.triton), target))

    if name in ("", DEFAULT_COLLECTION) or not has_sidecar:
        return (yield from run(Target(name)))
    target = yield from _resolved(name)
    try:
        return (yield from run(target))
    except _MOVED as error:
        again = yield from _resolved(name)
        # The same Triton may serve another checkpoint since its facts were asked for.
        if again == target and not isinstance(error, EncoderMismatchError):
            raise
        facts_of(again.triton).clear()
    return (yield from run(again))


def _resolved(name: str) -> plans.Plan[Target]:
    alias = yield from plans.one(retrieval_calls.alias(name))
    return Target(name) if alias is None else Target(alias.collection, alias.triton)
