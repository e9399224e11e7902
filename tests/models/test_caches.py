"""Caches of models of which some layers have no attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from pipeline.models import caches
from pipeline.models.reference import Reference
from tests import tiny


def cache_of(*layers: int) -> DynamicCache:
    """One with two tokens in these layers, each number that of its layer and one more."""
    cache = DynamicCache()
    for i in range(max(layers) + 1):
        if i in layers:
            cache.update(torch.full((1, 2, 2, 4), i + 1.0), torch.full((1, 2, 2, 4), -i - 1.0), i)
    return cache


def test_a_gap_is_zeros_behind_what_was_there() -> None:
    longer = caches.with_gap(cache_of(0, 1), 2, [0, 1], 3)
    for i in (0, 1):
        keys, values = caches.arrays(longer, [0, 1])[i]
        assert keys.shape == values.shape == (1, 2, 5, 4)
        assert (keys[:, :, :2] == i + 1).all() and (values[:, :, :2] == -i - 1).all()
        assert not keys[:, :, 2:].any() and not values[:, :, 2:].any()


def test_a_layer_without_attention_has_the_length_of_the_others() -> None:
    longer = caches.with_gap(cache_of(0, 1), 3, [1], 1)
    assert longer.get_seq_length() == 3
    assert sorted(caches.arrays(longer, [1])) == [1]
    assert (caches.arrays(longer, [0])[0][0][:, :, :2] == 2).all()  # those of layer 1
    assert not caches.with_gap(cache_of(0), 2, [], 1).layers


def test_a_model_takes_its_cache_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = Reference(tiny.checkpoint(tmp_path)).model
    model(input_ids=torch.tensor([[3, 4]]), **{caches.argument(model): DynamicCache()}, use_cache=True)
    assert not [str(one.message) for one in recwarn if "deprecated" in str(one.message)]
