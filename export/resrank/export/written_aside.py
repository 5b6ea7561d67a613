"""A folder that is there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from resrank.core.durability import flush, flush_tree
from resrank.core.errors import CheckpointError


def refuse_existing(out: Path) -> None:
    """Raises where something would be overwritten.

    Raises:
        CheckpointError: ``out`` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already; remove it or choose another folder")


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """Gives a folder beside ``out`` that becomes ``out`` when the block ends well and vanishes when it does not.

    Raises:
        CheckpointError: ``out`` exists already or cannot be written, or the block failed to write in it.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Not named by the process: in a container its id comes again, and what a killed one left would block it.
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error}") from error
    try:
        try:
            yield partial
        except (OSError, SafetensorError) as error:  # a full disk above all
            raise CheckpointError(f"{out}: cannot be written: {error}") from error
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes for the owner alone, but a server often runs as another user
        partial.chmod(0o755)  # made for the owner alone, too
        try:
            flush_tree(partial)  # else a power cut could leave the name without the weights
            partial.rename(out)
            flush(out.parent)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be put in its place: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_once(folder: Path, make: Callable[[], object]) -> None:
    """Makes a folder of the cache, unless it is there or another process puts it there meanwhile.

    The first two commands after an installation want the same ones, say.

    Args:
        folder: That is wanted.
        make: Makes it by :func:`written_aside`.

    Raises:
        CheckpointError: It cannot be made, and is not there.
    """
    if folder.is_dir():
        return
    try:
        make()
    except CheckpointError:
        if not folder.is_dir():
            raise
