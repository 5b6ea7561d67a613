"""TensorRT-RTX's compiled kernels on disk, so that the next start does not compile them again."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, Self

_LOG = logging.getLogger(__name__)


class RuntimeCache:
    """One engine's cache file; it is written when :meth:`save` is called and when the engine is dropped.

    The runtime itself refuses a cache of another GPU, driver or version, and then compiles as without one.
    """

    def __init__(self, cache: Any, file: Path) -> None:
        """Reads the file into the cache.

        Args:
            cache: TensorRT-RTX's ``IRuntimeCache``.
            file: Where it is kept; need not exist.
        """
        self._cache = cache
        self._file = file
        if file.is_file() and not cache.deserialize(file.read_bytes()):
            _LOG.warning("%s: made by another GPU, driver or version; kernels are compiled again", file)
        # Kernels for the shapes that occur are compiled while the engine runs, so the last word is said at the end.
        weakref.finalize(self, _save, cache, file)

    @classmethod
    def attach(cls, config: Any, plan: Path, gpu: str) -> Self | None:
        """Gives an engine a cache, if the user named a folder for it in ``RESRANK_CACHE``.

        Beside the plan would be the natural place, but model repositories are read-only.

        Args:
            config: TensorRT-RTX's ``IRuntimeConfig`` that the engine's context will be made with.
            plan: The engine's plan.
            gpu: The GPU's name.
        """
        folder = os.environ.get("RESRANK_CACHE")
        if not folder:
            return None
        cache = config.create_runtime_cache()
        attached = cls(cache, cache_file(Path(folder), plan, gpu))
        config.set_runtime_cache(cache)
        return attached

    def save(self) -> None:
        """Writes the file; a folder that cannot be written costs the next start its time and nothing else."""
        _save(self._cache, self._file)


def cache_file(folder: Path, plan: Path, gpu: str) -> Path:
    """Where the kernels of one plan on one kind of GPU are kept.

    Args:
        folder: The cache folder.
        plan: The plan; its place, size and time stand for its content, which may be gigabytes.
        gpu: The GPU's name.
    """
    stat = plan.stat()
    key = f"{plan.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{gpu}"
    return folder / "tensorrt-rtx" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernels"


def _save(cache: Any, file: Path) -> None:
    blob = cache.serialize()
    if blob is not None:
        write_cache(bytes(blob), file)


def write_cache(content: bytes, file: Path) -> None:
    """Writes aside and renames, since several instances start at once; failure is a warning.

    Args:
        content: Of the file.
        file: Its place; missing folders are made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(aside).replace(file)
        except BaseException:
            Path(aside).unlink()
            raise
    except OSError as error:
        _LOG.warning("%s: compiled kernels are not kept: %s", file, error.strerror)
