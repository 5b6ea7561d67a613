"""Opens the store that a URL names: the local kind is always there, others are found by their entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.extras import install_command
from resrank.retrieval.catalog import Catalog
from resrank.retrieval.local.catalog import LocalCatalog
from resrank.retrieval.settings import EXACT_INDEX, SidecarSettings
from resrank.retrieval.store_url import LOCAL, StoreUrl

GROUP = "resrank.stores"
"""Entry points of this group name a URL's scheme, and a :data:`StoreOpener`."""

StoreOpener: TypeAlias = Callable[[StoreUrl, SidecarSettings], Catalog]
"""Opens a store, or raises a :class:`~resrank.core.errors.ResRankError` that says what to do."""

_EXTRAS = {"postgresql": "store-postgres", "milvus": "store-milvus"}


def open_store(settings: SidecarSettings) -> Catalog:
    """Opens the store of a sidecar.

    Raises:
        InvalidInputError: No kind of store has the URL's scheme, or it is told what is a local one's to know.
        RetrievalError: The store cannot be opened, or the package that it needs is not installed.
    """
    url = settings.store
    if url.scheme == LOCAL:
        return LocalCatalog.open(
            url.folder,
            dense_index=settings.dense_index,
            dense_search_parameters=settings.dense_search_parameters,
            dense_device=settings.dense_device,
        )
    if settings.dense_index != EXACT_INDEX or settings.dense_search_parameters:
        raise InvalidInputError("dense_index", f"is of local stores alone: {url} has an index of its own")
    found = entry_points(group=GROUP)
    if url.scheme not in found.names:
        known = ", ".join(sorted({LOCAL, *found.names}))
        raise InvalidInputError("store", f"no kind of store has the scheme {url.scheme!r}: there are {known}")
    return _load(found[url.scheme])(url, settings)


def _load(entry: EntryPoint) -> StoreOpener:
    try:
        opener: StoreOpener = entry.load()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(entry.name)
        missing = (error.name or "").partition(".")[0]
        if extra is None or missing == "resrank":
            raise
        raise RetrievalError(
            f"{entry.name}:// stores need the Python package {missing}: {install_command(extra)}"
        ) from error
    return opener
