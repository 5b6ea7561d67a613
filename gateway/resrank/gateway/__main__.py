"""``python -m resrank.gateway``: one gateway, set up by variables and the file ``RESRANK_GATEWAY_CONFIG``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from resrank.core.errors import InvalidInputError, ResRankError


def main() -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        0 stopped as told, 1 cannot serve, 2 a setting is wrong; the reason is on standard error.
    """
    from resrank.core.terminal import discard_output
    from resrank.gateway.server import serve
    from resrank.gateway.settings import CONFIG_VARIABLE, read_settings

    file = os.environ.get(CONFIG_VARIABLE)
    try:
        serve(read_settings(Path(file) if file else None))
    except ResRankError as error:
        print(f"resrank.gateway: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    except OSError as error:  # of its own output
        discard_output()
        print(f"resrank.gateway: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
