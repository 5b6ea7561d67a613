"""``/``: the playground, one page without a build step, whose files lie in this package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

FOLDER = Path(__file__).parents[1] / "playground"

_HEADERS = {
    # It asks nobody but this gateway. Widths of bars are styles of elements.
    "Content-Security-Policy": "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def playground() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)
