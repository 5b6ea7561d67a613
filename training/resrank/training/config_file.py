"""Reads a training config: YAML, and the overrides of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrank.core.config_file import parse_yaml, read_fields, shown, validate
from resrank.core.errors import InvalidInputError
from resrank.training.config import TrainConfig

_OVERRIDE = "--set"


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads and validates a config.

    Args:
        path: The YAML file.
        overrides: ``dotted.field=value`` each, the value in YAML; numbers in the path count a list's elements from 0.

    Returns:
        The config; relative paths in it stay relative.

    Raises:
        InvalidInputError: The file or an override cannot be read, a field is unknown or wrong, or two contradict each
            other; the sentence names the field, its limit and the value.
    """
    fields = read_fields(path)
    for override in overrides:
        _apply(fields, override)
    return parse_config(fields)


def parse_config(fields: dict[str, Any]) -> TrainConfig:
    """Validates fields as YAML or JSON gives them.

    Raises:
        InvalidInputError: A field is unknown or wrong, or two contradict each other.
    """
    return validate(TrainConfig, fields)


def _apply(fields: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise InvalidInputError(_OVERRIDE, f"must be dotted.field=value, not {override!r}")
    *parents, last = parts
    value = parse_yaml(text, f"{_OVERRIDE} {path}")
    holder: Any = fields
    for depth, part in enumerate(parents):
        if isinstance(holder, dict):
            if holder.get(part) is None:
                holder[part] = {}
            holder = holder[part]
        else:
            holder = _element(holder, part, parts[:depth], override)
    if isinstance(holder, dict):
        holder[last] = value
    else:
        _element(holder, last, parents, override)
        holder[int(last)] = value


def _element(holder: Any, part: str, parents: Sequence[str], override: str) -> Any:
    """An element of a list inside an override's path."""
    field = ".".join(parents)
    if not isinstance(holder, list):
        raise InvalidInputError(_OVERRIDE, f"{override!r}: {field} is {shown(holder)} and has no fields")
    if not part.isdecimal() or int(part) >= len(holder):
        raise InvalidInputError(
            _OVERRIDE, f"{override!r}: {field} is a list with elements 0 to {len(holder) - 1}, {part!r} is none of them"
        )
    return holder[int(part)]
