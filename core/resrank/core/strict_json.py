"""JSON files whose every field is known: read whole or refused with the field's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resrank.core.errors import CheckpointError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StrictModel(BaseModel):
    """Fields of a file: unknown ones are refused, read ones never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Fields = TypeVar("_Fields", bound=BaseModel)


def read_fields(model: type[_Fields], file: Path) -> _Fields:
    """Reads and validates one JSON file.

    Args:
        model: What it shall hold.
        file: The file.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It cannot be read, is not JSON, or a field is wrong; the message names it.
    """
    try:
        return model.model_validate_json(file.read_text(encoding="utf-8"), strict=True)
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    except ValidationError as error:
        raise CheckpointError(f"{file}: {validation_sentence(error)}") from None


def validation_sentence(error: ValueError) -> str:
    """The first thing that is wrong, with its field: of pydantic's errors, or of a plain one of a model's checks."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole file"
    return f"{field}: {first['msg']}"
