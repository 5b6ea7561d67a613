"""Answers as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

JSON = "application/json"


def json_response(body: BaseModel | list[Any], headers: dict[str, str] | None = None) -> Response:
    """An answer, without the fields that have nothing to say.

    Args:
        body: What is answered.
        headers: Sent along.
    """
    return Response(to_json(body, exclude_none=True), headers=headers, media_type=JSON)
