"""Config files in YAML, validated by pydantic, and one sentence for whatever is wrong in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from resrank.core.errors import InvalidInputError

Config = TypeVar("Config", bound=BaseModel)

_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "expected")


class _ConfigLoader(yaml.SafeLoader):
    """YAML without its two traps: a key that is given twice, and 1e-4 read as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a signed exponent in a float; everyone writes 1e-4.
_ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_fields(path: Path) -> dict[str, Any]:
    """Reads a config without validating its fields.

    Args:
        path: The YAML file.

    Raises:
        InvalidInputError: The file cannot be read, is not YAML, gives a key twice, or holds no fields.
    """
    try:
        fields = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(str(path), f"cannot be read ({reason})") from error
    if not isinstance(fields, dict):
        raise InvalidInputError(str(path), f"must hold fields and their values, not {shown(fields)}")
    return fields


def validate(config: type[Config], fields: dict[str, Any]) -> Config:
    """Validates fields as YAML or JSON gives them.

    Args:
        config: The config's class.
        fields: Its fields.

    Raises:
        InvalidInputError: A field is unknown or wrong, or two contradict each other; the sentence names the field, its
            limit and the value.
    """
    # As JSON, where pydantic's strict mode reads paths, enums and tuples from text and lists, and nothing else.
    try:
        return config.model_validate_json(json.dumps(fields, default=str), strict=True)
    except ValidationError as error:
        raise _sentence(error, config) from None


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML.

    Args:
        text: The YAML.
        where: What the text is, for messages.

    Raises:
        InvalidInputError: It is not YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader=_ConfigLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInputError(where, f"not valid YAML{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InvalidInputError(where, f"not valid YAML: {error}") from None


def shown(value: object) -> str:
    """A value as messages show it, short whatever it is.

    Args:
        value: What YAML or JSON gave.
    """
    match value:
        case None:
            return "nothing"
        case dict():
            return "a section"
        case list():
            return "a list"
        case _:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."


def alternatives(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections that an annotation allows, by the name under which pydantic reports mistakes in them.

    Args:
        annotation: A field's annotation: a section, a list of sections, one of several, or anything else.

    Returns:
        Nothing for a plain field.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {str(get_args(kind.annotation)[0]) if kind else annotation.__name__: annotation}
    found: dict[str, type[BaseModel]] = {}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        found = alternatives(inner)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        return dict(zip(tags, found.values(), strict=True)) if tags else found
    for part in get_args(annotation):
        found.update(alternatives(part))
    return found


def _sentence(error: ValidationError, root: type[BaseModel]) -> InvalidInputError:
    """The first mistake as one sentence, with how many more there are."""
    every = error.errors(include_url=False)
    # A list of which an element is wrong counts as too short, too.
    causes = [found for found in every if not any(_within(other["loc"], found["loc"]) for other in every)]
    # An unknown field first: what it was meant to be is often reported as missing, too.
    details = sorted(causes, key=lambda found: found["type"] != "extra_forbidden")
    found = details[0]
    path, sections = _resolve(found, root)
    context = found.get("ctx", {})
    limit = next((context[name] for name in _BOUNDS if name in context), None)
    match found["type"]:
        case "extra_forbidden":
            problem = _unknown(path, sections)
        case "missing":
            problem = "missing"
        case "value_error":
            problem = str(context["error"])
            if not path:  # what is said about the whole names its field
                path, problem = problem.split(": ", maxsplit=1)
        case "union_tag_invalid":
            path, kinds = f"{path}.kind", context["expected_tags"].replace("'", "")
            problem = f"must be one of {kinds}, not {context['tag']!r}"
        case "union_tag_not_found":
            problem = found["msg"]
        case kind if kind.endswith("_kind"):  # what a config's own discriminator says
            problem = found["msg"]
        case _:
            # Pydantic's "Input should be …".
            problem = re.sub(r"^\w+ should ", "must ", found["msg"])
            if limit is None:
                problem += f", not {shown(found['input'])}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return InvalidInputError(path, problem + more, limit=limit, value=None if limit is None else shown(found["input"]))


def _unknown(path: str, sections: Sequence[type[BaseModel]]) -> str:
    known = sorted({name for section in sections for name in section.model_fields})
    near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1, cutoff=0.5)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; there are {', '.join(known)}"


def _resolve(found: ErrorDetails, root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted path of a mistake, and the sections that may hold its last part."""
    path: list[str] = []
    holders: list[type[BaseModel]] = []
    inside: dict[str, type[BaseModel]] = {"": root}
    for part in found["loc"]:
        if isinstance(part, int):
            path.append(str(part))
            continue
        fields = [model.model_fields[part] for model in inside.values() if part in model.model_fields]
        if not fields and part in inside:  # which alternative of a union pydantic was in
            inside = {part: inside[part]}
        elif fields or found["type"] == "extra_forbidden":
            path.append(part)
            holders = list(inside.values())
            inside = {tag: model for field in fields for tag, model in alternatives(field.annotation).items()}
    return ".".join(path), holders


def _within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer
