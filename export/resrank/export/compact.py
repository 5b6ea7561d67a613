"""``compact``: a small decoder that reads slots alone, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaModel

from resrank.core.errors import InvalidInputError
from resrank.core.names import COMPACT

_HEAD_SIZE = 24
_MOST_LAYERS = 64
_GREATEST_WIDTH = 3072
"""With 64 layers 6.6 billion weights: beyond that it is a mistake rather than a small decoder."""


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
        if not 1 <= self.layers <= _MOST_LAYERS:
            raise InvalidInputError("layers", "not possible", limit=f"1 to {_MOST_LAYERS}", value=self.layers)
        if not 1 <= self.width <= _GREATEST_WIDTH or self.width % _HEAD_SIZE:
            limit = f"a multiple of {_HEAD_SIZE}, at most {_GREATEST_WIDTH}"
            raise InvalidInputError("width", "not possible", limit=limit, value=self.width)

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
