"""The trained checkpoints of this version: in the package where they are small, in a clone, or fetched by hand.

The wheel carries at most 4 MB of them (a test builds it and looks). What is larger is simply there in a clone; an
installed package takes it from the cache, by its digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import is_adapter
from resrank.core.errors import CheckpointError
from resrank.export.cache import cache_folder

DEFAULT = "default"
DIGESTS = {DEFAULT: "693e1029f39ec735bfbfe3d0c3398a68ddd1163fa50895b58dbddb086895ab65"}
"""Folder below ``checkpoints/`` to the digest of its ``resrank.json``, and through it of every file."""


def shipped_checkpoint(name: str) -> Path:
    """Finds one of the adapter checkpoints that belong to this version.

    Args:
        name: One of :data:`DIGESTS`.

    Raises:
        CheckpointError: It is nowhere here, or the cache has another one under its name; the message says where to get
            it.
    """
    cached = _cached(name)
    for folder in (*_built_in(name), cached):
        if is_adapter(folder):
            if folder == cached and (found := validate_adapter(folder).digest()) != DIGESTS[name]:
                raise CheckpointError(f"{folder}: is checkpoint {found}, but checkpoint '{name}' is {DIGESTS[name]}")
            return folder
    raise CheckpointError(
        f"checkpoint '{name}' is not part of the installed package: copy checkpoints/{name} of ResRank's source "
        f"repository to {cached}, or run in a clone"
    )


def _built_in(name: str) -> Iterator[Path]:
    """Inside the installed package, and beside the packages of a clone."""
    yield Path(__file__).with_name("checkpoints") / name
    yield Path(__file__).parents[3] / "checkpoints" / name


def _cached(name: str) -> Path:
    return cache_folder() / "adapters" / f"{name}-{DIGESTS[name][:12]}"
