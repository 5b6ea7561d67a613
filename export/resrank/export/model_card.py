"""The model card of a training run: what it was made of, how, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class DevelopmentFigures:
    """What a run measured on one development set.

    Attributes:
        lists: How many lists the figures are means of.
        ndcg: Each way to rank them to its nDCG@10, dense retrieval among them; the same ways in every set.
    """

    lists: int
    ndcg: Mapping[str, float]


@dataclass(frozen=True)
class RunCard:
    """What a run knows about its checkpoint.

    Attributes:
        name: The checkpoint's name.
        encoder: ``encoder.source`` of its base.
        reranker: ``reranker.source`` of its base.
        data: Each training source's name to how many lists it gave.
        recipe: The run's config, as plain JSON values.
        seed: The run's seed.
        development: Each development set's name to its figures.
    """

    name: str
    encoder: str
    reranker: str
    data: Mapping[str, int]
    recipe: Mapping[str, Any]
    seed: int
    development: Mapping[str, DevelopmentFigures]


def run_card(run: RunCard) -> str:
    """Writes the ``README.md`` of a run's checkpoint.

    The front matter is the Hugging Face hub's (https://huggingface.co/docs/hub/model-cards#model-card-metadata). A
    licence is not among it: it follows from those of the bases and of the data, which the run does not know.

    Returns:
        Markdown with YAML front matter.
    """
    front = {
        "base_model": list(dict.fromkeys(source.split(" ", maxsplit=1)[0] for source in (run.encoder, run.reranker))),
        "datasets": list(run.data),
        "library_name": "resrank",
        "pipeline_tag": "text-ranking",
        "tags": ["resrank", "reranking", "retrieval"],
    }
    return f"""---
{_yaml(front)}---

# {_line(run.name)}

A ResRank checkpoint ([arXiv 2604.22180](https://arxiv.org/abs/2604.22180)): a reranker that reads one vector per
passage, and the encoder that makes these vectors.

| | |
|---|---|
| base of the encoder | {_line(run.encoder)} |
| base of the reranker | {_line(run.reranker)} |
| seed | {run.seed} |

## Data

{_table(("source", "lists"), {name: [f"{lists:,}"] for name, lists in run.data.items()})}

## Figures

nDCG@10 over the development lists, which the best step of the run was chosen by:

{_figures(run.development)}

Not evaluated beyond development: `resrank eval` measures it on other collections, in retrieved and in shuffled order.

## Licence

Not stated here. It follows from the licences of both base models and of the data.

## Recipe

```yaml
{_yaml(run.recipe)}```
"""


def _yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)


def _figures(development: Mapping[str, DevelopmentFigures]) -> str:
    ways = next(iter(development.values())).ndcg
    rows = {
        name: [f"{figures.lists:,}", *(f"{figures.ndcg[way]:.4f}" for way in ways)]
        for name, figures in development.items()
    }
    return _table(("set", "lists", *ways), rows)


def _table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join((_line(name), *cells))} |" for name, cells in rows.items()),
    ]
    return "\n".join(lines)


def _line(text: str) -> str:
    """Text that can end neither a line nor a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
