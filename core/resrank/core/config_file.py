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


_TAG = "tag:yaml.org,2002:"
_KINDS = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_MERGE = f"{_TAG}merge"
_DEEPEST = 64
_MOST_FIELDS = 1000  # of one section, with those that << brings: in a few lines, they can be a billion
_MOST_VALUES = (
    100_000  # what aliases stand for counts as often as they do: nine lines of them can mean a billion values
)


class _ConfigLoader(yaml.SafeLoader):
    """YAML 1.2's numbers, texts and nothing else, without the traps of 1.1, which PyYAML reads.

    There 012 is 10, 1:30 is 90, 1e-4 is text, 2026-01-01 is a date and a key that is given twice is given once. Keys
    are text as it is written: nothing that has fields here has them under anything else.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)  # merges what << names, whose keys may be given again
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = f"{_TAG}str"
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_FIELDS:
            raise yaml.constructor.ConstructorError(None, None, "a section of too many fields", node.start_mark)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """A whole number in base 10, 16 (``0x``) or 8 (``0o``)."""
        text = self.construct_scalar(node).replace("_", "")
        digits = text.lstrip("+-")
        base = {"0x": 16, "0o": 8}.get(digits[:2], 10)
        return int(text, base)


_ConfigLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in {f"{_TAG}null", f"{_TAG}bool", _MERGE}]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_ConfigLoader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag in _KINDS or tag is None
}
_ConfigLoader.add_constructor(f"{_TAG}int", _ConfigLoader.construct_integer)
# The core schema of YAML 1.2.2, section 10.3.2, and underscores between digits.
_ConfigLoader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_ConfigLoader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
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
        raise sentence(error, config) from None


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML.

    Args:
        text: The YAML.
        where: What the text is, for messages.

    Raises:
        InvalidInputError: It is not YAML, a key is given twice, it is nested too deeply or holds too much, or a text is
            no valid Unicode.
    """
    try:
        value = yaml.load(text, Loader=_ConfigLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInputError(where, f"not valid YAML{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InvalidInputError(where, f"not valid YAML: {error}") from None
    except RecursionError:
        raise InvalidInputError(where, "nested too deeply", limit=_DEEPEST, value="more") from None
    except (ValueError, KeyError) as error:  # of a number of too many digits, or of a text that a tag calls a number
        raise InvalidInputError(where, f"not valid YAML: {error}") from None
    _check_extent(value, where)
    return value


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


def _check_extent(value: Any, where: str) -> None:
    """Refuses what no config is: an alias inside of what it stands for, depth, bulk, and texts that no path can be."""
    waiting = [(value, 0)]
    count = 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST:
            raise InvalidInputError(
                where, "nested too deeply, or an alias stands inside itself", limit=_DEEPEST, value="more"
            )
        if count > _MOST_VALUES:
            raise InvalidInputError(
                where, "too many values, with what aliases stand for", limit=_MOST_VALUES, value="more"
            )
        match part:
            case dict():
                waiting += [(inner, depth + 1) for pair in part.items() for inner in pair]
            case list():
                waiting += [(inner, depth + 1) for inner in part]
            case str():
                if "\0" in part or any("\ud800" <= character <= "\udfff" for character in part):
                    raise InvalidInputError(where, f"{shown(part)} holds a NUL character or half of a surrogate pair")


def sentence(error: ValidationError, root: type[BaseModel]) -> InvalidInputError:
    """The first mistake as one sentence, with how many more there are.

    Args:
        error: What pydantic found.
        root: The config's class.
    """
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
