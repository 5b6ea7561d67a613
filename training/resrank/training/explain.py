"""Every field of a training config as ``resrank train --explain`` prints it, read off the config's own classes."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.table import Table
from rich.text import Text

from resrank.core.config_file import alternatives

_PLAIN: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
}
_SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
_SECTION = "section"


@dataclass(frozen=True)
class FieldHelp:
    """One field.

    Attributes:
        path: Dotted; ``[]`` stands for a list's element, ``(beir)`` for the alternative that alone has the field.
        type: What may stand there, with its limits.
        default: As YAML; None when the field is required.
        unit: Of a number; empty where there is none.
        source: Where the default comes from; empty where it needs none.
        description: What the field does.
    """

    path: str
    type: str
    default: str | None
    unit: str
    source: str
    description: str


def describe(model: type[BaseModel]) -> list[FieldHelp]:
    """All fields of a config and of its sections, a section before its fields.

    Args:
        model: The config's class.
    """
    return list(dict.fromkeys(_fields(model, "")))


def explain_table(fields: list[FieldHelp]) -> Table:
    """Two columns, so that it stays readable on 80: what can be written, and what it means.

    Args:
        fields: Of :func:`describe`.
    """
    table = Table(show_header=True, show_lines=False, box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("field", overflow="fold", ratio=5)
    table.add_column("what it does", overflow="fold", ratio=6)
    for field in fields:
        left = Text(field.path, style="bold" if field.type.startswith(_SECTION) else "bold cyan")
        default = "required" if field.default is None else f"default {field.default}" if field.default else ""
        unit = "" if _says_the_type(field.unit, field.type) else field.unit
        left.append("\n  " + " · ".join(filter(None, (field.type, default, unit))), style="not bold default")
        right = Text(field.description)
        if field.source:
            right.append(f"\n({field.source})", style="dim")
        table.add_row(left, right)
    return table


def _fields(model: type[BaseModel], prefix: str) -> Iterator[FieldHelp]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        sections = alternatives(field.annotation)
        yield _help(path, field, is_section=bool(sections))
        element = f"{path}[]" if get_origin(field.annotation) is tuple else path
        tags: dict[FieldHelp, list[str]] = {}
        for tag, section in sections.items():
            for found in _fields(section, f"{element}."):
                tags.setdefault(found, []).append(tag)
        for found, having in tags.items():
            everywhere = len(having) == len(sections)
            yield found if everywhere else replace(found, path=f"{found.path} ({', '.join(having)})")


def _help(path: str, field: FieldInfo, *, is_section: bool) -> FieldHelp:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    bounds = [
        f"{_SIGNS[type(item)]} {getattr(item, type(item).__name__.lower())}"
        for item in field.metadata
        if type(item) in _SIGNS
    ]
    default = None if field.is_required() else _yaml(field.default)
    return FieldHelp(
        path=path,
        type=" ".join(filter(None, (_type_name(field.annotation), " and ".join(bounds)))),
        default="" if is_section and default != "null" and not field.is_required() else default,
        unit=str(extra.get("unit", "")),
        source=str(extra.get("source", "")),
        description=field.description or "",
    )


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}s"
    if origin in {Union, types.UnionType}:
        return " or ".join(dict.fromkeys(map(_type_name, arguments)))
    if issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    return _SECTION if issubclass(annotation, BaseModel) else _PLAIN[annotation]


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return str(value) or '""'
    return json.dumps(value, default=str)


def _says_the_type(unit: str, kind: str) -> bool:
    """Whether a unit only repeats the choices, as in ``l2 or none`` for ``l2 | none``."""
    return not unit or set(re.split(r",? or |, ", unit)) <= set(re.split(r" \| | or ", kind))
