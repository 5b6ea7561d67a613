"""The figures of ``docs/gpu.md`` come from its formulas and the published sizes of the models."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.backbone_sizes import Backbone

DOCS = Path(__file__).parents[3] / "docs" / "gpu.md"
GIB = 2**30


class Bert(Backbone):
    """No gate in the MLP, as many key heads as query heads; positions and types count as vocabulary."""

    @property
    def body(self) -> int:
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.width)

    @property
    def norms(self) -> int:
        return 0


BACKBONES = {
    "all-MiniLM-L6": Bert(30522 + 512 + 2, 384, 6, 12, 12, 32, 1536),
    "SmolLM2-135M": Backbone(49152, 576, 30, 9, 3, 64, 1536),
    "Qwen3-0.6B": Backbone(151936, 1024, 28, 16, 8, 128, 3072),
    "Qwen3-4B": Backbone(151936, 2560, 36, 32, 8, 128, 9728),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_sizes_follow_from_the_formulas(name: str) -> None:
    one = BACKBONES[name]
    matrices = one.table + one.body
    per_position = 8 * one.hidden + 6 * one.width
    expected = [
        name,
        f"{(matrices + one.norms) / 1e6:.1f} M",
        f"{(4 * matrices + 4 * one.norms) / GIB:.2f}",
        f"{(2 * matrices + 4 * one.norms) / GIB:.2f}",
        f"{2 * one.body / 1e12 * 1e3:.2f}",
        f"{64 * 512 * per_position / GIB:.2f}",
        f"{16 * 512 * per_position / GIB:.2f}",
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS.read_text().splitlines() if "|" in line]
    assert expected in rows


@pytest.mark.parametrize(("name", "published"), [("SmolLM2-135M", 134_515_008), ("Qwen3-0.6B", 596_049_920)])
def test_the_formulas_count_what_the_checkpoints_hold(name: str, published: int) -> None:
    one = BACKBONES[name]
    # Qwen3 normalises each head's queries and keys, which the formula leaves out: two vectors of a head's size a layer.
    q_and_k_norms = 2 * one.head_size * one.layers if name.startswith("Qwen3") else 0
    assert one.table + one.body + one.norms + q_and_k_norms == published
