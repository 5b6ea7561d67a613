#!/usr/bin/env python3
"""Holds a model repository to the checkpoint that it should have been exported from.

    scripts/require_exported_from.py REPOSITORY CHECKPOINT

Ends with 1 and a sentence where it was not. The Makefile asks, since make compares times, which do not tell.
"""

from __future__ import annotations

import sys
from pathlib import Path

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import is_adapter, read_spec
from resrank.core.errors import ResRankError
from resrank.export.manifest import read_manifest


def main(repository: Path, checkpoint: Path) -> str | None:
    """What is not as it should be; None when nothing is."""
    try:
        exported = read_manifest(repository).checkpoint
        if is_adapter(checkpoint):  # its digest follows from the bases that it is merged with
            if exported.name == validate_adapter(checkpoint).name:
                return None
        elif exported.sha256 == read_spec(checkpoint).digest():
            return None
    except ResRankError as error:
        return str(error)
    return (
        f"{repository} was exported from another checkpoint than {checkpoint}: give it a folder of its own, "
        f"REPOSITORY=FOLDER, or export it again with resrank export {checkpoint} --out {repository} --force"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*map(Path, sys.argv[1:])))
