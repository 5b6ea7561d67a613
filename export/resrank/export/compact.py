"""``compact``: a small decoder that reads slots alone, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaModel

from resrank.core.errors import InvalidInputError

COMPACT = "compact"
"""What stands for such a decoder where a backbone's name or folder is asked for."""

_HEAD_SIZE = 24


@dataclass(frozen=True)
class CompactDecoder:
    """The shape of one.

    Attributes:
        layers: Decoder layers.
        width: h, a multiple of 24: heads are of that size.
        seed: Of its weights.
    """

    layers: int = 2
    width: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            InvalidInputError: One of them is not possible.
        """
        if self.layers < 1:
            raise InvalidInputError("layers", "too few", limit="at least 1", value=self.layers)
        if self.width < 1 or self.width % _HEAD_SIZE:
            raise InvalidInputError("width", "not possible", limit=f"a multiple of {_HEAD_SIZE}", value=self.width)

    @property
    def source(self) -> str:
        """What ``resrank.json`` says about where the weights came from."""
        return f"{COMPACT} ({self.layers} layers of width {self.width}, seed {self.seed})"

    def draw(self, positions: int) -> LlamaModel:
        """Draws the weights: Llama's form without a vocabulary, since no text is read.

        Args:
            positions: Most that a row may have.
        """
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // _HEAD_SIZE,
            num_key_value_heads=self.width // _HEAD_SIZE,
            max_position_embeddings=positions,
            # torch's own start of a linear layer, as a deviation: Llama's .02 is for layers of thousands.
            initializer_range=(3 * self.width) ** -0.5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: LlamaModel = LlamaModel(config).eval()  # type: ignore[no-untyped-call]
            return model
