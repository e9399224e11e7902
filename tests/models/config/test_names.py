"""Keys that a class names otherwise: read by its names, and given to transformers by them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from pipeline.models import config
from tests.models.config import FILE, Refused, assert_refused, read

NEOX = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
READ: list[tuple[dict[str, Any], float, float]] = [
    ({}, 10000, 0.25),
    ({"rotary_emb_base": 500000, "rotary_pct": 0.5}, 500000, 0.5),
    ({"rotary_pct": 1.0, "partial_rotary_factor": 1.0}, 10000, 1.0),
    ({"rope_theta": 10000, "partial_rotary_factor": 0.25}, 10000, 0.25),
    ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, 5e5, 0.5),
    ({"rope_parameters": {"rope_theta": 5e5}, "rotary_pct": 0.5}, 5e5, 0.5),
]


@pytest.mark.parametrize(("keys", "theta", "factor"), READ)
def test_the_class_s_names_are_read(keys: dict[str, Any], theta: float, factor: float) -> None:
    ours = read("gpt_neox", **NEOX, **keys)
    assert (ours["rope_theta"], ours["partial_rotary_factor"]) == (theta, factor)
    assert not {"rotary_emb_base", "rotary_pct"} & set(ours)
    given = config.for_transformers(ours)
    assert (given["rotary_emb_base"], given["rotary_pct"]) == (theta, factor)
    assert not {"rope_theta", "partial_rotary_factor"} & set(given)
    theirs = config.older_form(CONFIG_MAPPING["gpt_neox"].from_dict(given).to_dict(), FILE)
    assert theirs["rope_theta"] == theta and theirs["partial_rotary_factor"] == factor


NONSENSE: list[Refused] = [
    (
        "gpt_neox",
        {"rotary_pct": 0.5, "partial_rotary_factor": 0.25},
        r"partial_rotary_factor is 0\.25, but gpt_neox reads rotary_pct; rotary_pct is 0\.5$",
    ),
    (
        "gpt_neox",
        {"rope_theta": 5e5},  # which transformers passes over
        r"rope_theta is 500000\.0, but gpt_neox reads rotary_emb_base; .* is 10000 where it is not given$",
    ),
    (
        "gpt_neox",
        {"rotary_emb_base": 10000, "rope_parameters": {"rope_theta": 5e5}},
        r"rope_theta is 10000, and 500000\.0 in rope_parameters",
    ),
    ("gpt_neox", {"rotary_pct": 1.5}, r"partial_rotary_factor is 1\.5"),
    ("gpt_neox", {**NEOX, "num_key_value_heads": 2}, "num_key_value_heads is 2, but gpt_neox derives 4"),
    ("gpt_neox", {**NEOX, "head_dim": 32}, "head_dim is 32, but gpt_neox derives 16"),
    ("gpt_neox", {**NEOX, "hidden_size": 66}, "66 is not a multiple of num_attention_heads 4"),
    ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual is 1"),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), NONSENSE)
def test_names_that_contradict_each_other_are_refused(
    model_type: str, keys: dict[str, Any], why: str
) -> None:
    assert_refused(model_type, keys, why)
