"""``--explain`` tells about every field, and what it tells is what the config does."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field
from rich.console import Console

from resrank.training.config import TrainConfig
from resrank.training.explain import FieldHelp, describe, explain_table


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Square(BaseModel):
    kind: Literal["square"] = Field(description="Four sides.")
    side: float = Field(gt=0, description="Its side.", json_schema_extra={"unit": "m", "source": "a ruler"})
    colour: Colour = Field(default=Colour.RED, description="Its colour.")


class Circle(BaseModel):
    kind: Literal["circle"] = Field(description="Round.")
    colour: Colour = Field(default=Colour.RED, description="Its colour.")


class Drawing(BaseModel):
    shapes: tuple[Annotated[Square | Circle, Field(discriminator="kind")], ...] = Field(default=(), description="All.")
    frame: Square | None = Field(default=None, description="Around it.")
    title: str | None = Field(default=None, max_length=9, description="Its title.")
    copies: int = Field(default=1, ge=1, le=5, description="How many.")
    where: Path = Field(description="The file.")


def test_every_kind_of_field_is_described() -> None:
    assert describe(Drawing) == [
        FieldHelp("shapes", "list of sections", "", "", "", "All."),
        FieldHelp("shapes[].kind (square)", "square", None, "", "", "Four sides."),
        FieldHelp("shapes[].side (square)", "number > 0", None, "m", "a ruler", "Its side."),
        FieldHelp("shapes[].colour", "red | blue", "red", "", "", "Its colour."),
        FieldHelp("shapes[].kind (circle)", "circle", None, "", "", "Round."),
        FieldHelp("frame", "section or null", "null", "", "", "Around it."),
        FieldHelp("frame.kind", "square", None, "", "", "Four sides."),
        FieldHelp("frame.side", "number > 0", None, "m", "a ruler", "Its side."),
        FieldHelp("frame.colour", "red | blue", "red", "", "", "Its colour."),
        FieldHelp("title", "text or null", "null", "", "", "Its title."),
        FieldHelp("copies", "whole number ≥ 1 and ≤ 5", "1", "", "", "How many."),
        FieldHelp("where", "path", None, "", "", "The file."),
    ]


def test_every_field_of_the_config_says_what_it_does_and_every_number_its_unit() -> None:
    fields = describe(TrainConfig)
    assert [field.path for field in fields if not field.description] == []
    unitless = [
        field.path
        for field in fields
        if ("number" in field.type and not field.unit) and not field.path.endswith(("weight", "seed", "shuffle"))
    ]
    assert [path for path in unitless if not path.startswith("data.")] == []


def test_the_default_that_is_told_is_the_one_that_holds() -> None:
    """Compares with a config in which every section is there and nothing optional is written in it."""
    config = TrainConfig.model_validate_json(
        """{
        "name": "x", "output": "x", "start": {"encoder": "a", "reranker": "b"},
        "data": {"train": [{"kind": "listwise", "path": "a"}], "development": [{"kind": "beir", "path": "b"}]},
        "stages": {"encoder_alignment": {}, "reranker_alignment": {}, "joint": {"encoder": {"clip_norm": 1}}}
        }"""
    ).model_dump(mode="json")
    compared = 0
    for field in describe(TrainConfig):
        path, _, alternative = field.path.partition(" (")
        value: Any = config
        for part in path.replace("[]", ".0").split("."):
            value = value[int(part)] if isinstance(value, list) else value.get(part) if value else None
        if (
            field.default
            and alternative not in {"listwise)", "synthetic)"}
            and value is not None
            and not isinstance(value, dict)
        ):
            assert value == yaml.load(field.default, Loader=yaml.SafeLoader) or value == float(field.default), path
            compared += 1
    assert compared > 70


def test_the_table_fits_a_terminal_and_tells_type_default_unit_and_source() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(explain_table(describe(Drawing)))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    side = next(index for index, line in enumerate(lines) if line.startswith("shapes[].side (square)"))
    assert "number > 0 · required · m" in lines[side + 1]
    assert "(a ruler)" in lines[side + 1]
