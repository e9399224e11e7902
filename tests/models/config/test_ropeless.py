"""Layers without rope: as transformers' class has them, and refused where the list is too short."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from tests.models.config import assert_refused, read

LAYERS: list[dict[str, Any]] = [
    {},
    {"no_rope_layer_interval": 1},
    {"no_rope_layer_interval": 3, "num_hidden_layers": 8},
    {"no_rope_layer_interval": 3, "no_rope_layers": None},
    {"no_rope_layer_interval": 2, "no_rope_layers": [1, 1, 0, 1, 0], "num_hidden_layers": 4},
]


@pytest.mark.parametrize("keys", LAYERS)
def test_they_are_those_of_the_class(keys: dict[str, Any]) -> None:
    assert read("smollm3", **keys)["no_rope_layers"] == CONFIG_MAPPING["smollm3"](**keys).no_rope_layers


@pytest.mark.parametrize("count", [0, 3])
def test_a_list_that_ends_too_early_is_refused(count: int) -> None:
    keys = {"num_hidden_layers": 4, "no_rope_layers": [1] * count}
    assert_refused("smollm3", keys, f"no_rope_layers has {count} entries for 4 layers")
