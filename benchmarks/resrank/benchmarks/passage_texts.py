"""Real text cut into passages of a wanted length."""

from __future__ import annotations

from pathlib import Path

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import ENCODER_DIR
from resrank.core.corpus import read_passages
from resrank.core.tokenization import load_tokenizer


class PassageTexts:
    """A corpus as one long text, cut into passages of as many of the encoder's tokens as wanted."""

    def __init__(self, deployment: Deployment, corpus: Path) -> None:
        """Reads and tokenizes the corpus.

        Args:
            deployment: Whose encoder's tokens count.
            corpus: JSON lines as BEIR has them.

        Raises:
            CorpusError: A line of the corpus is bad.
        """
        self._text = " ".join(passage.encoder_text for passage in read_passages(corpus))
        tokenizer = load_tokenizer(deployment.checkpoint / ENCODER_DIR)
        self._offsets = tokenizer.encode(self._text, add_special_tokens=False).offsets

    def of_length(self, tokens: int, count: int) -> list[str]:
        """The first passages of a length, without special tokens; consecutive and disjoint.

        A piece that is cut inside of a word may have a token more or less when it is tokenized alone.

        Raises:
            BenchmarkError: The corpus is too short.
        """
        if count * tokens > len(self._offsets):
            raise BenchmarkError(
                f"{count} passages of {tokens} tokens need a corpus of {count * tokens}, this has {len(self._offsets)}"
            )
        return [
            self._text[self._offsets[start][0] : self._offsets[start + tokens - 1][1]]
            for start in range(0, count * tokens, tokens)
        ]
