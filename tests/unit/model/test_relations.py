"""The torch twin of the relations gives what NumPy gives one list at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resrank.core import relations as by_numpy
from resrank.core.fusion import CosineMap
from resrank.core.prompt import pad_candidates
from resrank.model import relations as by_torch
from support.triton_requests import unit_vectors

MAP = CosineMap(slope=4.84, center=0.72, offset=0.05)


@pytest.mark.parametrize("cosine_map", [None, MAP], ids=["raw", "mapped"])
@pytest.mark.parametrize("neighbors", [3, 9, 40])
def test_batches_of_unequal_lists_agree_with_numpy(neighbors: int, cosine_map: CosineMap | None) -> None:
    counts = [9, 1, 4, 30]
    queries = unit_vectors(len(counts), 32, seed=1).astype(np.float32)
    lists = [unit_vectors(count, 32, seed=count) for count in counts]
    padded = np.concatenate([pad_candidates(one[None], max(counts)) for one in lists])
    tensors = torch.from_numpy(queries), torch.from_numpy(padded), torch.tensor(counts)
    order = by_torch.canonical_order(*tensors)
    in_order = tensors[1].gather(1, order[:, :, None].expand_as(tensors[1]))
    found = by_torch.relations(tensors[0], in_order, tensors[2], neighbors=neighbors, cosine_map=cosine_map).numpy()
    assert found.dtype == np.float32
    expected = []
    for row, one in enumerate(lists):
        mine = by_numpy.canonical_order(queries[row], one).order
        assert order[row, : len(one)].tolist() == mine.tolist()
        expected.append(by_numpy.relations(queries[row], one[mine], neighbors=neighbors, cosine_map=cosine_map))
    np.testing.assert_allclose(found, by_numpy.padded_relations(expected, max(counts)), atol=1e-6)
